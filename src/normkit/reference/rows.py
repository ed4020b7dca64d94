"""Norms of a sample's own values: layer, RMS, group and instance norm."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from normkit.reference.standardize import Array, Cache, last_axes, normalize


def layer_norm(
    x: ArrayLike,
    normalized_ndim: int,
    weight: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    eps: float = 1e-5,
    mask: ArrayLike | None = None,
) -> tuple[Array, Cache]:
    """Layer norm: each row, the last `normalized_ndim` axes of x, has its own mean and variance.

    y = γ (x - μ_row) / √(σ²_row + ε) + β, elementwise in the row

    x: any shape. weight and bias: the shape of a row. mask: bool, the shape of x without its last axis.
    Ba, Kiros and Hinton 2016, arXiv:1607.06450.
    """
    row = last_axes(normalized_ndim, x)
    return normalize(x, row, row, eps, weight, bias, mask=mask, mask_lacks=-1)


def rms_norm(
    x: ArrayLike,
    normalized_ndim: int,
    weight: ArrayLike | None = None,
    eps: float = float(np.finfo(np.float64).eps),
    mask: ArrayLike | None = None,
) -> tuple[Array, Cache]:
    """RMS norm: layer norm whose mean is taken to be 0, so that σ² is the mean square, and without a bias.

    y = γ x / √(mean_row(x²) + ε)

    weight: the shape of a row. mask: bool, the shape of x without its last axis. eps defaults, as in torch, to
    the machine epsilon of the dtype, which is float64 here: a layer of another dtype has that of its own.
    Zhang and Sennrich 2019, arXiv:1910.07467.
    """
    row = last_axes(normalized_ndim, x)
    zeros = np.zeros(np.shape(x)[: row[0]])
    return normalize(x, row, row, eps, weight, mean=zeros, mask=mask, mask_lacks=-1)


def group_norm(
    x: ArrayLike,
    num_groups: int,
    weight: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    eps: float = 1e-5,
    mask: ArrayLike | None = None,
) -> tuple[Array, Cache]:
    """Group norm: each run of C/G neighboring channels of each sample has its own mean and variance.

    y = γ_c (x - μ_ng) / √(σ²_ng + ε) + β_c, where g = ⌊c G / C⌋

    weight and bias: (C,) or, per sample, (N, C). num_groups is G and divides C. mask as in `batch_norm`.
    Wu and He 2018, arXiv:1803.08494.
    """
    n, channels, *spatial = np.shape(x)
    if num_groups < 1 or channels % num_groups:
        raise ValueError(
            f"num_groups must divide the channels, got {num_groups} groups and {channels} channels"
        )
    view = (n, num_groups, channels // num_groups, *spatial)
    return normalize(x, tuple(range(2, len(view))), (1,), eps, weight, bias, mask=mask, view=view)


def instance_norm(
    x: ArrayLike,
    weight: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    eps: float = 1e-5,
    mask: ArrayLike | None = None,
) -> tuple[Array, Cache]:
    """Instance norm: each channel of each sample has its own mean and variance, over space.

    y = γ_c (x - μ_nc) / √(σ²_nc + ε) + β_c

    weight and bias: (C,) or, per sample, (N, C). mask as in `batch_norm`.
    Ulyanov, Vedaldi and Lempitsky 2016, arXiv:1607.08022.
    """
    return normalize(x, tuple(range(2, np.ndim(x))), (1,), eps, weight, bias, mask=mask)
