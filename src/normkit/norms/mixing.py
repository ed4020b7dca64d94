"""What the norms that mix statistics share: checks, the call of the engine, running statistics, the module."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from normkit import kernels
from normkit.kernels.recomputation import recomputing
from normkit.norms import inputs
from normkit.statistics import pooled, update_running_

# From mean, biased variance (N, C) and count of each sample's channels, and tensors by name, to the mean, variance,
# weight and bias that normalize.
Rule = Callable[..., tuple[Tensor, Tensor, Tensor | None, Tensor | None]]


def check(
    name: str,
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    training: bool,
    eps: float,
    activation: str | None,
    residual: Tensor | None,
) -> None:
    """What batch norm checks, for a norm with a batch's statistics among its own."""
    if input.dim() < 2:
        raise ValueError(f"{name} takes (N, C) or (N, C, *), got input size {list(input.shape)}")
    inputs.check_dtype(name, input)
    if eps <= 0:
        raise ValueError(f"{name} eps must be positive, got {eps}")
    inputs.check_running(running_mean, running_var, needed=not training)
    inputs.check_channels(input, running_mean=running_mean, running_var=running_var, weight=weight, bias=bias)
    if training:
        values = inputs.count([input.shape[0], *input.shape[2:]])
        inputs.check_several_values(values, input, what="value per channel")
    inputs.check_activation(activation)
    inputs.check_residual(residual, input)


def mix(
    input: Tensor,
    rule: Rule,
    tensors: dict[str, Tensor | None],
    eps: float,
    activation: str | None,
    residual: Tensor | None,
    mask: Tensor | None,
    *,
    per_sample: bool = True,
) -> tuple[Tensor, Tensor, int | Tensor]:
    """Normalize by what the rule makes of the moments (N, C), or (C): the output, these moments, their count.

    The rule gets its tensors by name; those that are None pass around the engine, which knows none.
    """
    names = [name for name, tensor in tensors.items() if tensor is not None]
    absent = dict.fromkeys(tensors)

    def combine(mean: Tensor, var: Tensor, count: int | Tensor, *present: Tensor):
        return rule(mean, var, count, **{**absent, **dict(zip(names, present, strict=True))})

    present = [tensor for tensor in tensors.values() if tensor is not None]
    return kernels.combined(
        input,
        combine,
        present,
        eps,
        per_sample=per_sample,
        activation=activation,
        residual=residual,
        mask=mask,
    )


def samples(input: Tensor, mask: Tensor | None) -> int | Tensor:
    """How many samples there are that are not all padding."""
    return input.shape[0] if mask is None else mask.unsqueeze(-1).flatten(1).any(1).sum()


def track(
    running_mean: Tensor | None,
    running_var: Tensor | None,
    stats: Tensor,
    count: int | Tensor,
    momentum: float | None,
    num_batches_tracked: Tensor | None,
) -> None:
    """Move running statistics, where there are any, towards those of the batch, from moments (N, C)."""
    if running_mean is None or running_var is None or recomputing():
        return
    with torch.no_grad():
        batch = torch.stack([row.squeeze(0) for row in pooled(stats[0], stats[1], count, 0)])
    total = count.sum() if isinstance(count, Tensor) else count * stats.shape[1]
    update_running_(running_mean, running_var, batch, total, momentum, num_batches_tracked)


class MixedNorm(torch.nn.modules.batchnorm._NormBase):  # pyright: ignore[reportPrivateUsage]
    """A norm with running statistics that is no batch norm, so that nothing fuses or converts it as one."""

    activation: str | None = None

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        bias: bool = True,
        activation: str | None = None,
    ) -> None:
        inputs.check_activation(activation)
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device, dtype, bias=bias)
        self.activation = activation

    def _statistics(self) -> tuple[Tensor | None, Tensor | None, Tensor | None, bool]:
        """Running mean and variance, the count of batches, whether the batch's own normalize: as in batch norm."""
        running = not self.training or self.track_running_stats
        mean, var = (self.running_mean, self.running_var) if running else (None, None)
        batches = self.num_batches_tracked if self.training and running else None
        return mean, var, batches, self.training or (mean is None and var is None)

    def extra_repr(self) -> str:
        """The arguments, the activation where there is one."""
        return super().extra_repr() + inputs.repr_activation(self.activation)
