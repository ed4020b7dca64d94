"""A weight by the axis that counts its filters."""

from __future__ import annotations

from torch import Tensor


def axis(weight: Tensor, dim: int) -> int:
    """The axis dim, counted from the front."""
    if not -weight.dim() <= dim < weight.dim():
        raise IndexError(
            f"Dimension out of range (expected to be in range of [{-weight.dim()}, {weight.dim() - 1}], but got {dim})"
        )
    return dim % weight.dim()


def as_channels(weight: Tensor, dim: int) -> Tensor:
    """A view (N, C, *) whose channels are the axis dim of the weight, without moving what is in its place."""
    if weight.dim() == 1:
        return weight[None]
    return weight[None] if dim == 0 else weight.movedim(dim, 1)


def from_channels(channels: Tensor, weight: Tensor, dim: int) -> Tensor:
    """The weight again, of what `as_channels` made of it."""
    if weight.dim() == 1 or dim == 0:
        return channels[0]
    return channels.movedim(1, dim)
