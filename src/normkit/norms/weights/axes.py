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
