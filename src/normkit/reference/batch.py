"""Norms over batch and space: batch norm, in training and in inference, and its running averages."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from normkit.reference.standardize import Array, Cache, all_but_channel, normalize


def batch_norm(
    x: ArrayLike,
    weight: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    eps: float = 1e-5,
    mask: ArrayLike | None = None,
) -> tuple[Array, Cache]:
    """Batch norm in training: one mean and one biased variance per channel, over batch and space.

    y = γ_c (x - μ_c) / √(σ²_c + ε) + β_c

    weight γ and bias β: (C,) or, per sample, (N, C). mask: bool (N, *spatial), True = valid; padding does not
    enter the statistics, and y is 0 there. Without any valid value mean and variance are 0.
    Ioffe and Szegedy 2015, arXiv:1502.03167.
    """
    return normalize(x, all_but_channel(x), (1,), eps, weight, bias, mask=mask)


def batch_norm_inference(
    x: ArrayLike,
    running_mean: ArrayLike,
    running_var: ArrayLike,
    weight: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    eps: float = 1e-5,
    mask: ArrayLike | None = None,
) -> tuple[Array, Cache]:
    """Batch norm in inference: as `batch_norm`, but μ and σ² are constants, of shape (C,)."""
    return normalize(
        x, all_but_channel(x), (1,), eps, weight, bias, mean=running_mean, var=running_var, mask=mask
    )


def running_update(running: ArrayLike, batch: ArrayLike, momentum: float) -> Array:
    """One step of an exponential moving average: (1 - momentum) · running + momentum · batch.

    A batch is standardized by its biased variance, but the variance to store is the unbiased one,
    `cache.unbiased_var`: the running average estimates the variance of the population.
    """
    return (1 - momentum) * np.asarray(running, np.float64) + momentum * np.asarray(batch, np.float64)


def batchnorm_forward(
    x: ArrayLike, gamma: ArrayLike, beta: ArrayLike, eps: float = 1e-5
) -> tuple[Array, Cache]:
    """Batch norm of an N x D array, under the names it is usually taught by: each column over the batch.

    out = γ (x - μ) / √(σ² + ε) + β, with μ = (1/N) Σ_n x_n and σ² = (1/N) Σ_n (x_n - μ)²

    gamma and beta: (D,).
    """
    if np.ndim(x) != 2:
        raise ValueError(f"x must be N x D, got shape {np.shape(x)}: batch_norm takes (N, C, *spatial)")
    return batch_norm(x, gamma, beta, eps)


def batchnorm_backward(dout: ArrayLike, cache: Cache) -> tuple[Array | None, ...]:
    """The gradients (dx, dgamma, dbeta) of `batchnorm_forward`, from dout, the gradient of its output."""
    return cache.backward(dout)
