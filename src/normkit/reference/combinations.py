"""Norms made of whole norms: batch-instance norm, and any norm with an affine map for each class."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from normkit.reference.batch import batch_norm, batch_norm_inference
from normkit.reference.rows import instance_norm
from normkit.reference.standardize import Array, Cache, all_but_channel


@dataclass(frozen=True, eq=False)
class Interpolation:
    """What batch-instance norm keeps: the caches of both, and ρ."""

    batch: Cache
    instance: Cache
    rho: Array

    def backward(self, dy: Array) -> list[Array | None]:
        """dx, dweight, dbias, drho; as y = ρ y_B + (1 - ρ) y_I, both receive their part of dy."""
        rho, repeated = np.expand_dims(self.rho, all_but_channel(dy)), all_but_channel(dy)
        ours, theirs = self.batch.backward(rho * dy), self.instance.backward((1 - rho) * dy)
        gradients = [None if a is None or b is None else a + b for a, b in zip(ours, theirs, strict=True)]
        gamma = 1.0 if self.batch.weight is None else np.expand_dims(self.batch.weight, repeated)
        difference = np.where(self.batch.valid, dy, 0.0) * gamma * (self.batch.xhat - self.instance.xhat)
        return [*gradients, difference.sum(axis=repeated)]


def batch_instance_norm(
    x: ArrayLike,
    weight: ArrayLike | None,
    bias: ArrayLike | None,
    rho: ArrayLike,
    eps: float = 1e-5,
    mask: ArrayLike | None = None,
    running: tuple[ArrayLike, ArrayLike] | None = None,
) -> tuple[Array, Interpolation]:
    """Batch-instance norm: y = γ (ρ x̂_batch + (1 - ρ) x̂_instance) + β, ρ (C,) in [0, 1] per channel.

    running: mean and variance (C,) in the place of the batch's, in inference.
    Nam and Kim 2018, arXiv:1805.07925.
    """
    if running is None:
        y_batch, batch = batch_norm(x, weight, bias, eps, mask)
    else:
        y_batch, batch = batch_norm_inference(x, *running, weight, bias, eps, mask)
    y_instance, instance = instance_norm(x, weight, bias, eps, mask)
    rho = np.asarray(rho, np.float64)
    share = np.expand_dims(rho, all_but_channel(x))
    return share * y_batch + (1 - share) * y_instance, Interpolation(batch, instance, rho)


@dataclass(frozen=True, eq=False)
class Conditional:
    """What a conditional norm keeps: the cache of the norm with an affine map per sample, and the classes."""

    cache: Cache
    labels: NDArray[np.int64]
    num_classes: int

    def backward(self, dy: Array) -> list[Array | None]:
        """dx, dweight, dbias: the gradient of a class's map is the sum of those of its samples' maps."""
        dx, *each = self.cache.backward(dy)
        classes = [self.labels == k for k in range(self.num_classes)]
        return [dx, *(None if d is None else np.stack([d[c].sum(axis=0) for c in classes]) for d in each)]


def conditional_norm(
    norm: Callable[..., tuple[Array, Cache]],
    x: ArrayLike,
    labels: ArrayLike,
    weight: ArrayLike,
    bias: ArrayLike,
    **options: Any,
) -> tuple[Array, Conditional]:
    """Conditional norm: the affine map is that of the sample's class.

    y = γ_k x̂ + β_k, k = labels_n

    norm: batch_norm or instance_norm, or group_norm with its groups in options. labels: int (N,). weight and bias:
    (classes, C). Dumoulin, Shlens and Kudlur 2017, arXiv:1610.07629; de Vries et al. 2017, arXiv:1707.00683.
    """
    labels, weight, bias = np.asarray(labels), np.asarray(weight), np.asarray(bias)
    y, cache = norm(x, weight=weight[labels], bias=bias[labels], **options)
    return y, Conditional(cache, labels, len(weight))
