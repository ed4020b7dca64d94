"""What layer norm and RMS norm have beyond their kernel: masks, and an affine map for each sample."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from normkit import kernels
from normkit.norms import inputs


def general(
    name: str,
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    mask: Tensor | None,
    *,
    centered: bool,
) -> Tensor:
    """Layer norm, or RMS norm where it is not centered, with a mask of the input's shape without its last axis."""
    ndim = len(normalized_shape)
    inputs.check_last_axes(name, input, normalized_shape)
    inputs.check_per_sample(input, normalized_shape, weight, bias, any_dtype=not centered)
    mask = inputs.expand_mask(mask, input, features=-1)
    padding = None if mask is None else ~mask.unsqueeze(-1)
    clean = input if padding is None else input.masked_fill(padding, 0)
    if not inputs.per_sample(weight, bias, ndim) and (ndim == 1 or mask is None):
        # A row is valid as a whole or not at all, so the others are what they are without a mask.
        y = kernels.rows(clean, ndim, weight, bias, eps, centered)
    else:
        wide = clean.float() if clean.dtype.itemsize == 2 else clean  # rounded once, at the end
        if ndim == 1 or mask is None:
            y = kernels.rows(wide, ndim, None, None, eps, centered)
        else:
            y = _partial_rows(wide, ndim, mask, eps, centered)
        for parameter, combine in ((weight, torch.mul), (bias, torch.add)):
            if parameter is not None:
                y = combine(y, _along(parameter, input, ndim).to(y.dtype))
        y = y.to(input.dtype)
    return y if padding is None else y.masked_fill(padding, 0)


def _along(parameter: Tensor, input: Tensor, ndim: int) -> Tensor:
    """A parameter of a row, or one for each sample with axes of length 1 between sample and row."""
    if parameter.dim() == ndim:
        return parameter
    between = [1] * (input.dim() - ndim - 1)
    return parameter.reshape([parameter.shape[0], *between, *parameter.shape[1:]])


def _partial_rows(x: Tensor, ndim: int, mask: Tensor, eps: float, centered: bool) -> Tensor:
    """Rows of several axes, parts of which are padding: each is a sample with a single channel."""
    rows, row = inputs.count(x.shape[:-ndim]), inputs.count(x.shape[-ndim:])
    valid = mask.unsqueeze(-1).expand(x.shape).reshape(rows, row)

    def combine(mean: Tensor, var: Tensor, count: Tensor) -> tuple[Tensor, Tensor, None, None]:
        if centered:
            return mean, var, None, None
        return torch.zeros_like(mean), var + mean.square(), None, None

    y = kernels.combined(x.reshape(rows, 1, row), combine, (), eps, per_sample=True, mask=valid)[0]
    return y.reshape(x.shape)
