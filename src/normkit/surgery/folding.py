r"""The arithmetic of folding: a map :math:`s x + t` per channel, taken into the linear layer before or after it.

In float64, whatever the dtype of the layer: it is rounded once, by who stores it.
"""

from __future__ import annotations

import torch
from torch import Tensor


def affine_of(
    mean: Tensor, var: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    r"""Batch norm by running statistics: :math:`s = \gamma / \sqrt{v + \epsilon}`, :math:`t = \beta - s m`."""
    scale = (var.double() + eps).rsqrt()
    if weight is not None:
        scale = scale * weight.double()
    shift = -mean.double() * scale
    return scale, shift if bias is None else shift + bias.double()


def after(
    weight: Tensor,
    bias: Tensor | None,
    scale: Tensor,
    shift: Tensor,
    *,
    groups: int = 1,
    transposed: bool = False,
) -> tuple[Tensor, Tensor]:
    """Weight and bias of a layer whose outputs are mapped.

    Args:
        weight: (O, I / groups, *), or (I, O / groups, *) of a transposed convolution.
        bias: (O) or None.
        scale: (O).
        shift: (O).
        groups: of a convolution.
        transposed: whether it is transposed.
    """
    weight = weight.double()
    if transposed:
        parts = weight.unflatten(0, (groups, -1))  # groups, I / groups, O / groups, *
        weight = (parts * _along(scale.view(groups, 1, -1), parts)).flatten(0, 1)
    else:
        weight = weight * _along(scale, weight)
    return weight, shift if bias is None else shift + scale * bias.double()


def before(
    weight: Tensor,
    bias: Tensor | None,
    scale: Tensor,
    shift: Tensor,
    *,
    groups: int = 1,
    transposed: bool = False,
) -> tuple[Tensor, Tensor]:
    """Weight and bias of a layer whose inputs are mapped: of a convolution whose padding is mapped too, or none.

    Args:
        weight: (O, I / groups, *), or (I, O / groups, *) of a transposed convolution.
        bias: (O) or None.
        scale: (I).
        shift: (I).
        groups: of a convolution.
        transposed: whether it is transposed.
    """
    parts = weight.double().unflatten(
        0, (groups, -1)
    )  # groups, O / groups, I / groups, *; or with I before O
    view = (groups, -1, 1) if transposed else (groups, 1, -1)
    moved = parts * _along(shift.view(view), parts)
    added = moved.sum([1 if transposed else 2, *range(3, parts.dim())]).flatten()
    weight = (parts * _along(scale.view(view), parts)).flatten(0, 1)
    return weight, added if bias is None else added + bias.double()


def _along(values: Tensor, like: Tensor) -> Tensor:
    """Values of the first axes, for all positions of the rest."""
    return values.reshape(list(values.shape) + [1] * (like.dim() - values.dim()))


def example_size(kernel: int, stride: int, padding: int, dilation: int) -> int:
    """A length that a convolution takes, and that shows its padding and its stride."""
    return max(dilation * (kernel - 1) + 1, padding + 1) + stride


def random_like(shape: list[int]) -> Tensor:
    """Values for a check, the same ones every time, from no generator of the user's."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
