"""Instance norm: one statistic per sample and channel, shared over space."""

from __future__ import annotations

import warnings
from typing import Literal

import torch
from torch import Tensor

from normkit import kernels
from normkit.kernels.recomputation import recomputing
from normkit.norms import inputs, mixing
from normkit.norms.mixing import Affine
from normkit.norms.naming import for_all_dimensions
from normkit.norms.scope import scope
from normkit.norms.tracing import one_node
from normkit.norms.tracking import Place, Running, Tracked, Tracking
from normkit.statistics import update_running_


def instance_norm(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *,
    activation: str | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    r"""Normalize each channel of each sample over space, by its own statistics or by running ones.

    .. math:: y = f\left(\gamma \frac{x - \mu}{\sqrt{\sigma^2 + \epsilon}} + \beta\right)

    Running statistics, where they are tracked, move towards the average over the batch of the samples'
    means and unbiased variances.

    Args:
        input: (N, C, *), floating; any strides.
        running_mean: (C); changed in place where input statistics are used. None where nothing is tracked.
        running_var: (C), likewise.
        weight: :math:`\gamma`, (C), or (N, C) for one per sample; of the input's dtype, or float32 under half
            input.
        bias: :math:`\beta`, likewise.
        use_input_stats: normalize by the sample's own statistics; otherwise by the running ones.
        momentum: weight of the batch in the running statistics.
        eps: added to the variance.
        activation: :math:`f`: relu, leaky_relu, silu, gelu, elu, sigmoid, tanh, relu6 or hardswish; None: identity.
        mask: bool, broadcastable to the input without channels, true where it is valid. Padded positions
            enter no statistic, come out as 0, and pass no gradient.

    Returns:
        Tensor of the input's shape, dtype and memory format.

    Raises:
        ValueError: one value per sample and channel, whose output would be the bias alone.
        RuntimeError: parameters of another length, dtype or device; no running statistics where needed.

    Ulyanov, Vedaldi and Lempitsky, "Instance Normalization: The Missing Ingredient for Fast Stylization",
    2016.

    >>> instance_norm(torch.tensor([[[1.0, 3.0], [10.0, 30.0]]]), eps=0.0)
    tensor([[[-1.,  1.],
             [-1.,  1.]]])
    """
    affine = Affine(weight, bias, eps, activation, mask=mask)
    y, stats, count = _normalize(input, running_mean, running_var, use_input_stats, affine)
    if use_input_stats and running_mean is not None and running_var is not None and not recomputing():
        update_running_(running_mean, running_var, *_averaged(stats, count), momentum)
    return y


def _normalize(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    use_input_stats: bool,
    affine: Affine,
) -> tuple[Tensor, Tensor, int | Tensor]:
    """Check and normalize: output; mean and biased variance of samples as rows (N, C), where taken; their count."""
    weight, bias, eps, activation, _, mask = affine
    apart = mask is not None or affine.each
    one = (None, None) if apart else (weight, bias)
    values = _check(input, running_mean, running_var, *one, use_input_stats)
    if activation is not None:
        inputs.check_activation(activation)
    if apart:
        inputs.check_per_sample(input, input.shape[1:2], weight, bias)
        affine = affine._replace(mask=inputs.expand_mask(mask, input))
        given = {"running_mean": running_mean, "running_var": running_var}
        tensors = dict.fromkeys(given) if use_input_stats else given
        return mixing.mix(input, _rule, tensors, affine)
    if use_input_stats:
        return *kernels.groups(input, input.shape[1], weight, bias, eps, activation), values
    assert running_mean is not None
    assert running_var is not None
    return kernels.channels_given(input, running_mean, running_var, *affine), running_mean, 0


def _rule(
    mean: Tensor,
    var: Tensor,
    count: int | Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """The moments as they are, or the running ones for every sample."""
    if running_mean is None or running_var is None:
        return mean, var, weight, bias
    running_mean, running_var = (r.to(mean.dtype).expand_as(mean) for r in (running_mean, running_var))
    return running_mean, running_var, weight, bias


@torch.no_grad()
def _averaged(stats: Tensor, count: int | Tensor) -> tuple[Tensor, int | Tensor]:
    """Over the samples that have a variance, of their means and unbiased variances, as statistics of one batch."""
    if not isinstance(count, Tensor):
        return stats.mean(1), count if stats.shape[1] > 0 else 0
    has = (count > 1).to(stats.dtype)
    samples = has.sum(0).clamp(min=1)
    mean = (has * stats[0]).sum(0) / samples
    unbiased = (has * stats[1] * count / (count - 1).clamp(min=1)).sum(0) / samples
    # Two values each, as it were: of them the biased variance is exactly half of the unbiased one.
    return torch.stack((mean, unbiased / 2)), 2 * has.amax() if len(has) else 0


def _check(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    use_input_stats: bool,
) -> int:
    """Check everything; return the number of values per sample and channel."""
    if input.dim() < 2:
        raise ValueError(f"instance norm takes (N, C, *), got input size {list(input.shape)}")
    inputs.check_dtype("instance norm", input)
    inputs.check_running(running_mean, running_var, needed=not use_input_stats)
    inputs.check_channels(input, running_mean=running_mean, running_var=running_var, weight=weight, bias=bias)
    values = inputs.count(input.shape[2:])
    if use_input_stats:
        inputs.check_several_values(values, input, what="spatial element")
    return values


@for_all_dimensions
class _InstanceNorm(Tracked, torch.nn.modules.instancenorm._InstanceNorm):  # pyright: ignore[reportPrivateUsage]
    """What instance norm of every dimension shares; each class below adds torch's class of its dimension."""

    activation: str | None = None

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float = 0.1,
        affine: bool = False,
        track_running_stats: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        bias: bool = True,
        activation: str | None = None,
        guard: Literal["nonfinite"] | None = None,
    ) -> None:
        inputs.check_arguments(eps, momentum, num_features=num_features)
        inputs.check_activation(activation)
        switches = Tracking(guard=guard)
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device, dtype, bias=bias)
        self.activation = activation
        self._follow(switches)

    @one_node
    def forward(
        self,
        input: Tensor,
        *,
        mask: Tensor | None = None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        activation: str | None = None,
    ) -> Tensor:
        """Normalize, activate; see `normkit.functional.instance_norm`. (C, *) is taken as one sample.

        A weight or bias given here, (C) or (N, C), or an activation, stands in for the layer's own.
        """
        self._check_input_dim(input)
        activation = self.activation if activation is None else activation
        axis: int = input.dim() - self._get_no_batch_dim()
        if input.shape[axis] != self.num_features:
            self._wrong_channels(input.shape[axis], axis, used=weight is not None or bias is not None)
        batch = input if axis == 1 else input.unsqueeze(0)
        own_weight, own_bias = inputs.own_affine(self)
        weight, bias = own_weight if weight is None else weight, own_bias if bias is None else bias
        if not (self.tracking.plain and scope.plain):
            y = self._tracked(batch, Affine(weight, bias, self.eps, activation, mask=mask))
            return y if axis == 1 else y.squeeze(0)
        running_mean, running_var, _ = inputs.own_running(self)
        y = instance_norm(
            batch,
            running_mean,
            running_var,
            weight,
            bias,
            self.training or not self.track_running_stats,
            0.0 if self.momentum is None else self.momentum,
            self.eps,
            activation=activation,
            mask=mask,
        )
        return y if axis == 1 else y.squeeze(0)

    def _tracked(self, input: Tensor, affine: Affine) -> Tensor:
        """By the switches and the scope of `tracking`."""
        by_input, moves = self._statistics() == "batch", self._moves()
        running = (None, None)
        if moves or not by_input:
            running = self._running(Place(scope.domain))[:2]
        y, stats, count = _normalize(input, *running, by_input, affine)
        if moves:
            self._track(stats, count)
        return y

    def _update(self, running: Running, stats: Tensor, count: int | Tensor, skipped: Tensor | None) -> None:
        """By the average over samples; as in torch, num_batches_tracked stays, and no momentum is none."""
        momentum = 0.0 if self.momentum is None else self.momentum
        update_running_(running.mean, running.var, *_averaged(stats, count), momentum, None, skipped)

    def _merged(
        self, batches: list[tuple[Tensor, int | Tensor]], skipped: Tensor | None
    ) -> tuple[Tensor, int | Tensor]:
        """The samples of all micro-batches, side by side."""
        stats = torch.cat([stats[:2] for stats, _ in batches], 1)
        counts = [
            (torch.as_tensor(count, device=stats.device).expand(part.shape[1], 1)) for part, count in batches
        ]
        return stats, torch.cat(counts)

    def _wrong_channels(self, received: int, axis: int, *, used: bool) -> None:
        """Without parameters the number of features decides nothing, so torch only warns."""
        fault = (
            f"expected input's size at dim={axis} to match num_features ({self.num_features}), got {received}"
        )
        if used or self.affine or self.running_mean is not None:
            raise ValueError(fault)
        warnings.warn(f"{fault}; it is not used because affine=False", stacklevel=3)

    def extra_repr(self) -> str:
        """The arguments, the activation where there is one."""
        return super().extra_repr() + inputs.repr_activation(self.activation)


class InstanceNorm1d(_InstanceNorm, torch.nn.InstanceNorm1d):
    """Instance norm over (N, C, L) or (C, L), a drop-in for `torch.nn.InstanceNorm1d`.

    Equation and errors as in `normkit.functional.instance_norm`.

    Args:
        num_features: C.
        eps: added to the variance.
        momentum: weight of a batch in the running statistics.
        affine: learn a weight, and a bias where `bias` is true.
        track_running_stats: keep running statistics and normalize by them in evaluation.
        device: of parameters and buffers.
        dtype: of parameters and buffers.
        bias: learn a bias.
        activation: applied at the end: relu, leaky_relu, silu, gelu, elu, sigmoid, tanh, relu6 or hardswish.
        guard: "nonfinite" keeps running statistics from batches that are not finite, as in `BatchNorm1d`; of
            batches that are gathered by `accumulate`, from all together.

    >>> InstanceNorm1d(3, activation="relu")(torch.randn(2, 3, 8)).shape
    torch.Size([2, 3, 8])
    """


class InstanceNorm2d(_InstanceNorm, torch.nn.InstanceNorm2d):
    """Instance norm over (N, C, H, W) or (C, H, W), a drop-in for `torch.nn.InstanceNorm2d`."""


class InstanceNorm3d(_InstanceNorm, torch.nn.InstanceNorm3d):
    """Instance norm over (N, C, D, H, W) or (C, D, H, W), a drop-in for `torch.nn.InstanceNorm3d`."""
