"""Norms of weights."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from normkit.reference.standardize import Array, Cache, normalize, other_axes


def weight_norm(v: ArrayLike, g: ArrayLike, dim: int = 0) -> tuple[Array, Cache]:
    """Weight norm: the length of each filter of a weight is a parameter, and v gives its direction alone.

    w_o = g_o v_o / ‖v_o‖ = (g_o / √M) v_o / √(mean(v_o²)), M being the values of a filter

    v: any shape, axis `dim` of which counts the filters. g: (O,). The gradient of the cache's weight, g / √M,
    is √M times that of g. Salimans and Kingma 2016, arXiv:1602.07868.
    """
    shape = np.shape(v)
    filters, size = shape[dim], math.prod(shape) // shape[dim]
    gamma = np.asarray(g, np.float64) / math.sqrt(size)
    return normalize(v, other_axes((dim,), len(shape)), (dim,), 0.0, gamma, mean=np.zeros(filters))


def weight_standardization(weight: ArrayLike, eps: float, dim: int = 0) -> tuple[Array, Cache]:
    """Weight standardization: each filter of a weight has mean 0 and variance 1, biased.

    ŵ_o = (w_o - μ_o) / √(σ²_o + ε)

    weight: any shape, axis `dim` of which counts the filters. Qiao et al. 2019, arXiv:1903.10520.
    """
    return normalize(weight, other_axes((dim,), np.ndim(weight)), (dim,), eps)


def spectral_norm(weight: ArrayLike) -> tuple[Array, tuple[Array, float, Array]]:
    """Spectral norm: a matrix divided by its largest singular value; and u, σ, v with w v = σ u.

    ŵ = w / σ. Miyato et al. 2018, arXiv:1802.05957.
    """
    w = np.asarray(weight, np.float64)
    u, sigma, v = np.linalg.svd(w)
    return w / sigma[0], (u[:, 0], float(sigma[0]), v[0])


def spectral_norm_backward(dy: ArrayLike, weight: ArrayLike) -> Array:
    """The gradient of the matrix: dw = (dŵ - (Σ dŵ ŵ) u vᵀ) / σ, as ∂σ/∂w = u vᵀ."""
    y, (u, sigma, v) = spectral_norm(weight)
    dy = np.asarray(dy, np.float64)
    return (dy - (dy * y).sum() * np.outer(u, v)) / sigma
