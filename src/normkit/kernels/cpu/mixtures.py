"""Switch norm and batch-instance norm on torch tensors, by the compiled kernels; see `normkit.kernels.cpu`.

Their statistics are mixed of those of each sample's channels, of whole samples and of the batch, by `shares`: logits
(3) of means and logits of variances, of one dtype; or gates (C). Weight and bias are (C).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from normkit.kernels.cpu import _native, _output  # pyright: ignore[reportPrivateUsage]

MIXTURES = {"switched": 0, "interpolated": 1}


def mixture_forward(
    kind: int,
    x: Tensor,
    known: tuple[Tensor, Tensor] | tuple[None, None],
    shares: Sequence[Tensor],
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    activation: int = 0,
    residual: Tensor | None = None,
    mask: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, int]:
    """y; what was measured, and what was mixed of it (6, N, C); the batch's moments (2, C); of how many elements.

    Known mean and variance (C), of one dtype, stand in for those of the batch, and come back as its moments.
    """
    y = _output(x)
    statistics = torch.empty(6, *x.shape[:2], dtype=torch.float64)
    batch = torch.empty(2, x.shape[1], dtype=torch.float64)
    second = shares[1] if len(shares) > 1 else None
    count = _native.mixture_forward(
        kind, activation, eps, x, y, weight, bias, residual, mask, *known, shares[0], second, statistics, batch
    )  # fmt: skip
    return y, statistics, batch, count


def mixture_backward(
    kind: int,
    x: Tensor,
    dy: Tensor,
    statistics: Tensor,
    batch: Tensor,
    known: bool,
    shares: Sequence[Tensor],
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    activation: int = 0,
    residual: Tensor | None = None,
    mask: Tensor | None = None,
    wants_x: bool = True,
) -> tuple[Tensor | None, Tensor | None, Sequence[Tensor], Tensor | None, Tensor | None]:
    """dx, dresidual, those of the shares, dweight, dbias, from what mixture_forward returned."""
    dx = _output(x) if wants_x or residual is not None else None
    dresidual = None if residual is None else _output(x)
    dshares = [torch.empty_like(share) for share in shares]
    dweight = None if weight is None else torch.empty_like(weight)
    dbias = None if bias is None else torch.empty_like(bias)
    second, dsecond = (shares[1], dshares[1]) if len(shares) > 1 else (None, None)
    _native.mixture_backward(
        kind, activation, eps, x, dy, weight, bias, residual, mask, known, shares[0], second, statistics, batch,
        dx, dresidual, dweight, dbias, dshares[0], dsecond,
    )  # fmt: skip
    return dx, dresidual, dshares, dweight, dbias
