"""What norms that are made of samples' own moments share: the affine map, checks, and the call of the engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from torch import Tensor

from normkit import kernels
from normkit.norms import inputs

# From mean, biased variance (N, C) and count of each sample's channels, and tensors by name, weight and bias among
# them, to the mean, variance, weight and bias that normalize.
Rule = Callable[..., tuple[Tensor, Tensor, Tensor | None, Tensor | None]]


class Affine(NamedTuple):
    """What becomes of normalized values, in the order in which kernels take it."""

    weight: Tensor | None
    bias: Tensor | None
    eps: float
    activation: str | None = None
    residual: Tensor | None = None
    mask: Tensor | None = None

    @property
    def each(self) -> bool:
        """Whether samples have maps of their own, which the kernels of batch norm do not know."""
        weight, bias = self.weight, self.bias
        return (weight is not None and weight.dim() == 2) or (bias is not None and bias.dim() == 2)


def check(
    name: str,
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    affine: Affine,
    training: bool,
    *,
    shared: bool = False,
) -> None:
    """What batch norm checks, for a norm with a batch's statistics among its own; masks are checked as they expand."""
    if input.dim() < 2:
        raise ValueError(f"{name} takes (N, C) or (N, C, *), got input size {list(input.shape)}")
    inputs.check_dtype(name, input)
    if affine.eps <= 0:
        raise ValueError(f"{name} eps must be positive, got {affine.eps}")
    inputs.check_running(running_mean, running_var, needed=not training)
    inputs.check_channels(input, running_mean=running_mean, running_var=running_var)
    if affine.each:
        inputs.check_per_sample(input, input.shape[1:2], affine.weight, affine.bias)
    else:
        inputs.check_channels(input, weight=affine.weight, bias=affine.bias)
    if training and not shared:
        values = inputs.count([input.shape[0], *input.shape[2:]])
        inputs.check_several_values(values, input, what="value per channel")
    inputs.check_activation(affine.activation)
    inputs.check_residual(affine.residual, input)


def mix(
    input: Tensor,
    rule: Rule,
    tensors: Mapping[str, Tensor | None],
    affine: Affine,
    *,
    per_sample: bool = True,
) -> tuple[Tensor, Tensor, int | Tensor]:
    """Normalize by what the rule makes of the moments (N, C), or (C): the output, these moments, their count.

    The rule gets its tensors by name, and weight and bias; those that are None pass around the engine, which knows
    none.
    """
    weight, bias, eps, activation, residual, mask = affine
    tensors = {**tensors, "weight": weight, "bias": bias}
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
