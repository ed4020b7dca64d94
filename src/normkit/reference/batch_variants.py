"""Ghost batch norm and batch renorm: batch norm of a part, and batch norm that is corrected."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from normkit.reference.batch import batch_norm
from normkit.reference.standardize import Array, Cache, all_but_channel, shaped


@dataclass(frozen=True, eq=False)
class Ghosts:
    """What ghost batch norm keeps: the cache of each sub-batch."""

    parts: list[Cache]

    def backward(self, dy: Array) -> list[Array | None]:
        """dx, dweight, dbias: each sub-batch on its own, and what they share summed."""
        cuts = np.cumsum([part.xhat.shape[0] for part in self.parts])[:-1]
        pairs = zip(np.split(dy, cuts), self.parts, strict=True)
        dxs, dweights, dbiases = zip(*(part.backward(piece) for piece, part in pairs), strict=True)
        shared = [None if of[0] is None else np.sum(of, axis=0) for of in (dweights, dbiases)]
        return [np.concatenate(dxs), *shared]


def ghost_batch_norm(
    x: ArrayLike,
    ghost_size: int,
    weight: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    eps: float = 1e-5,
    mask: ArrayLike | None = None,
) -> tuple[Array, Ghosts]:
    """Ghost batch norm: `batch_norm` of each run of ghost_size samples, and of those that remain.

    Hoffer, Hubara and Soudry 2017, arXiv:1705.08741, algorithm 1.
    """
    x = np.asarray(x, np.float64)
    starts = range(0, len(x), ghost_size)
    results = [
        batch_norm(
            x[i : i + ghost_size],
            weight,
            bias,
            eps,
            None if mask is None else np.asarray(mask)[i : i + ghost_size],
        )
        for i in starts
    ]
    return np.concatenate([y for y, _ in results]), Ghosts([cache for _, cache in results])


@dataclass(frozen=True, eq=False)
class Corrected:
    """What batch renorm keeps: the cache of the batch norm within, r and d."""

    batch: Cache  # without weight and bias
    r: Array
    d: Array
    weight: Array | None
    bias: Array | None

    def backward(self, dy: Array) -> list[Array | None]:
        """dx, dweight, dbias: y = γ (r x̂ + d) + β with r and d constant, hence dx̂ = γ r dy, dγ = Σ dy (r x̂ + d)."""
        repeated = all_but_channel(dy)
        dy = np.where(self.batch.valid, dy, 0.0)
        r, d = np.expand_dims(self.r, repeated), np.expand_dims(self.d, repeated)
        dweight = None if self.weight is None else (dy * (r * self.batch.xhat + d)).sum(axis=repeated)
        dbias = None if self.bias is None else dy.sum(axis=repeated)
        gamma = 1.0 if self.weight is None else np.expand_dims(self.weight, repeated)
        return [self.batch.backward(gamma * r * dy)[0], dweight, dbias]


def batch_renorm(
    x: ArrayLike,
    running_mean: ArrayLike,
    running_var: ArrayLike,
    r_max: float,
    d_max: float,
    weight: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    eps: float = 1e-5,
    mask: ArrayLike | None = None,
) -> tuple[Array, Corrected]:
    """Batch renorm in training: y = γ (r x̂ + d) + β, with x̂ that of batch norm.

    r = clip(σ_B / σ, 1 / r_max, r_max), d = clip((μ_B - μ) / σ, -d_max, d_max), where σ² = running_var + ε and
    σ_B² = σ²_batch + ε; both are constants to the gradient. Ioffe 2017, arXiv:1702.03275, algorithm 1.
    """
    xhat, batch = batch_norm(x, eps=eps, mask=mask)
    row, repeated = xhat.shape[1:2], all_but_channel(xhat)
    gamma, beta = shaped("weight", weight, row), shaped("bias", bias, row)
    sigma = np.sqrt(np.asarray(running_var, np.float64) + eps)
    r = np.clip(np.sqrt(batch.var + eps) / sigma, 1 / r_max, r_max)
    d = np.clip((batch.mean - np.asarray(running_mean, np.float64)) / sigma, -d_max, d_max)
    y = np.expand_dims(r, repeated) * xhat + np.expand_dims(d, repeated)
    y = y if gamma is None else y * np.expand_dims(gamma, repeated)
    y = y if beta is None else y + np.expand_dims(beta, repeated)
    return np.where(batch.valid, y, 0.0), Corrected(batch, r, d, gamma, beta)
