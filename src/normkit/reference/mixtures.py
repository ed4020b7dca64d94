"""Norms by a mixture of statistics: switch norm, virtual batch norm, adaptive batch norm."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from normkit.reference.standardize import Array, Shape, all_but_channel, average, shaped, without_padding


@dataclass(frozen=True, eq=False)
class Part:
    """One of the statistics that a mixture takes in, of x along `axes`, or a constant where axes is None.

    mean and var broadcast to x; count is the number of valid values of each set.
    """

    axes: Shape | None
    mean: Array
    var: Array
    count: NDArray[np.int64] | int = 0


@dataclass(frozen=True, eq=False, kw_only=True)
class Mixture:
    """What a norm of mixed statistics keeps for its backward pass.

    x̂ = (x - m) / √(v + ε), with m = Σ_k a_k μ_k and v = Σ_k b_k σ²_k; of merged values (`merged`, where a = b)
    v = Σ_k b_k (σ²_k + (μ_k - m)²), the variance of all of them together.
    """

    x: Array  # 0 at padded positions
    valid: NDArray[np.bool_]
    parts: list[Part]
    a: Array
    b: Array
    merged: bool
    mean: Array  # m
    var: Array  # v
    xhat: Array
    eps: float
    weight: Array | None
    bias: Array | None
    logits: bool  # whether a and b are the softmax of what the norm learns

    def backward(self, dy: Array) -> list[Array | None]:
        """dx, dweight, dbias, and where they are learned the gradients of the logits of a and of b.

        With g = γ dy and s = 1 / √(v + ε), sums over space: dm = -Σ g s, dv = -½ Σ g x̂ s². A part receives
        dμ_k = a_k dm and dσ²_k = b_k dv, summed over its set, and passes dμ_k / M + 2 (x - μ_k) dσ²_k / M on to x.
        """
        space, channel = tuple(range(2, dy.ndim)), all_but_channel(dy)
        dy = np.where(self.valid, dy, 0.0)
        g = dy if self.weight is None else dy * np.expand_dims(self.weight, channel)
        s = 1 / np.sqrt(self.var + self.eps)
        dm = -(g * s).sum(axis=space, keepdims=True)
        dv = -0.5 * (g * self.xhat * s**2).sum(axis=space, keepdims=True)
        dx, da, db = g * s, np.zeros(len(self.parts)), np.zeros(len(self.parts))
        for k, part in enumerate(self.parts):
            # Σ a_k = 1, so that a common offset of the means, which may be large, changes nothing below.
            da[k], db[k] = (dm * (part.mean - self.mean)).sum(), (dv * part.var).sum()
            if part.axes is None:
                continue
            dmu = self.a[k] * dm + (2 * self.b[k] * (part.mean - self.mean) * dv if self.merged else 0.0)
            dmu = dmu.sum(axis=part.axes, keepdims=True)
            dsigma2 = self.b[k] * dv.sum(axis=part.axes, keepdims=True)
            dx = dx + (dmu + 2 * (self.x - part.mean) * dsigma2) / np.maximum(part.count, 1)
        dweight = None if self.weight is None else (dy * self.xhat).sum(axis=channel)
        dbias = None if self.bias is None else dy.sum(axis=channel)
        learned = [p * (d - (p * d).sum()) for p, d in ((self.a, da), (self.b, db))] if self.logits else []
        return [np.where(self.valid, dx, 0.0), dweight, dbias, *learned]


def switch_norm(
    x: ArrayLike,
    weight: ArrayLike | None,
    bias: ArrayLike | None,
    mean_weight: ArrayLike,
    var_weight: ArrayLike,
    eps: float = 1e-5,
    mask: ArrayLike | None = None,
    running: tuple[ArrayLike, ArrayLike] | None = None,
) -> tuple[Array, Mixture]:
    """Switchable norm: mean and variance are mixtures of those of instance, layer and batch norm.

    y = γ (x - Σ_k a_k μ_k) / √(Σ_k b_k σ²_k + ε) + β, a = softmax(mean_weight), b = softmax(var_weight)

    mean_weight, var_weight: (3,), in the order instance, layer, batch. running: mean and variance (C,) in the
    place of the batch's, in inference. One value per sample and channel has no instance statistic: the
    softmax is of the other two. Luo, Ren, Peng, Zhang and Li 2018, arXiv:1806.10779.
    """
    x, valid = without_padding(x, mask)
    space, layer = tuple(range(2, x.ndim)), tuple(range(1, x.ndim))
    first = 1 if math.prod(x.shape[2:]) == 1 else 0
    parts = [_part(x, valid, axes) for axes in (space, layer)]
    parts.append(_part(x, valid, all_but_channel(x)) if running is None else _constant(x, *running))
    a, b = (
        np.concatenate([np.zeros(first), _softmax(np.asarray(logits, np.float64)[first:])])
        for logits in (mean_weight, var_weight)
    )
    return _mix(x, valid, parts, a, b, eps, weight, bias, logits=True)


def virtual_batch_norm(
    x: ArrayLike,
    reference_mean: ArrayLike,
    reference_var: ArrayLike,
    reference_size: int,
    weight: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    eps: float = 1e-5,
    mask: ArrayLike | None = None,
) -> tuple[Array, Mixture]:
    """Virtual batch norm: each sample by the moments of a reference batch and itself, as one more sample of it.

    With reference statistics μ_r, σ²_r (C,), constants, of n samples, and those of the sample over space:
    a = b = (n, 1) / (n + 1), merged. Salimans et al. 2016, arXiv:1606.03498.
    """
    x, valid = without_padding(x, mask)
    parts = [_constant(x, reference_mean, reference_var), _part(x, valid, tuple(range(2, x.ndim)))]
    share = np.array([reference_size, 1]) / (reference_size + 1)
    return _mix(x, valid, parts, share, share, eps, weight, bias, merged=True)


def adaptive_batch_norm(
    x: ArrayLike,
    running_mean: ArrayLike,
    running_var: ArrayLike,
    prior: float,
    weight: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    eps: float = 1e-5,
    mask: ArrayLike | None = None,
    *,
    per_sample: bool = False,
) -> tuple[Array, Mixture]:
    """Adaptive batch norm in inference: running statistics, blended with those of the samples at hand.

    a = b = (N, n) / (N + n), not merged: N is `prior`, n the number of samples (of samples that are not all
    padding), or 1 where each sample is on its own. Schneider et al. 2020, arXiv:2006.16971, equation 1.
    """
    x, valid = without_padding(x, mask)
    n = 1 if per_sample else int(valid.any(axis=tuple(range(1, x.ndim))).sum())
    axes = tuple(range(2, x.ndim)) if per_sample else all_but_channel(x)
    parts = [_constant(x, running_mean, running_var), _part(x, valid, axes)]
    share = np.array([1.0, 0.0]) if n == 0 or prior == math.inf else np.array([prior, n]) / (prior + n)
    return _mix(x, valid, parts, share, share, eps, weight, bias)


def _mix(
    x: Array,
    valid: NDArray[np.bool_],
    parts: list[Part],
    a: Array,
    b: Array,
    eps: float,
    weight: ArrayLike | None,
    bias: ArrayLike | None,
    *,
    merged: bool = False,
    logits: bool = False,
) -> tuple[Array, Mixture]:
    """Standardize x by a mixture of statistics, then y = γ x̂ + β."""
    row, channel = x.shape[1:2], all_but_channel(x)
    gamma, beta = shaped("weight", weight, row), shaped("bias", bias, row)
    # As Σ a_k = 1: from the first towards the others, so that a common offset, which may be large, does not round.
    first = parts[0].mean
    mean = first + sum(
        (share * (part.mean - first) for share, part in zip(a, parts, strict=True)), np.zeros(())
    )
    between = [(part.mean - mean) ** 2 if merged else 0.0 for part in parts]
    var = sum(
        (share * (part.var + d) for share, part, d in zip(b, parts, between, strict=True)), np.zeros(())
    )
    xhat = np.where(valid, (x - mean) / np.sqrt(var + eps), 0.0)
    y = xhat if gamma is None else xhat * np.expand_dims(gamma, channel)
    y = y if beta is None else y + np.expand_dims(beta, channel)
    return np.where(valid, y, 0.0), Mixture(
        x=x, valid=valid, parts=parts, a=a, b=b, merged=merged, mean=mean, var=var, xhat=xhat, eps=eps,
        weight=gamma, bias=beta, logits=logits,
    )  # fmt: skip


def _part(x: Array, valid: NDArray[np.bool_], axes: Shape) -> Part:
    """Mean and variance along axes, which stay with length 1."""
    mean = average(x, valid, axes)
    mean = mean + average(x - mean, valid, axes)
    return Part(axes, mean, average((x - mean) ** 2, valid, axes), valid.sum(axis=axes, keepdims=True))


def _constant(x: Array, mean: ArrayLike, var: ArrayLike) -> Part:
    """Given statistics (C,)."""
    shape = [-1 if axis == 1 else 1 for axis in range(x.ndim)]
    return Part(None, np.asarray(mean, np.float64).reshape(shape), np.asarray(var, np.float64).reshape(shape))


def _softmax(logits: Array) -> Array:
    e = np.exp(logits - logits.max())
    return e / e.sum()
