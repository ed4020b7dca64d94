"""The specification: every norm in NumPy float64, forward and backward, the equation beside the code.

A norm answers three questions, and each function here is its three answers:

    norm         over which axes        statistic from      affine map along
    ---------    -------------------    ----------------    ----------------
    batch        batch, space           x                   channel
      inference  (one per channel)      running averages    channel
      ghost      sub-batch, space       x                   channel
      renorm     batch, space           x, then corrected   channel
    layer        last k                 x                   last k
    RMS          last k                 x, the mean is 0    last k, no bias
    group        space, C/G channels    x                   channel
    instance     space                  x                   channel
    switch       mixes instance, layer and batch            channel
    virtual      mixes instance and a reference batch       channel
    adaptive     mixes running averages and batch           channel
    batch-inst.  mixes the outputs of batch and instance    channel
    filter       space                  x, the mean is 0    channel, then max(y, τ)
      response
    weight       a weight's filter      v, the mean is 0    filter, no bias
    weight       a weight's filter      the weight          none
      standard.

Dynamic tanh and spectral norm stand beside them: one has no statistic, the other's is a singular value.

The rest is one pair that all share, `_standardize` and `_standardize_backward`. Arrays are converted to
float64; x has shape (N, C, *spatial) unless stated. Every norm returns (y, cache), and `backward(dy, cache)`
serves all but spectral norm. Of packages this file needs NumPy alone, and no other module of this package imports it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
Shape = tuple[int, ...]


@dataclass(frozen=True, eq=False, kw_only=True)
class Cache:
    """What a forward pass keeps for its backward pass.

    A set is the elements of x that share a statistic. mean, var and count have one element per set, so shape
    (C,) in batch, the leading axes of x in layer and RMS, (N, G) in group and (N, C) in instance norm.
    """

    xhat: Array  # standardized input, in the shape of x; 0 at padded positions
    mean: Array  # μ per set; 0 in RMS norm
    var: Array  # biased variance about μ per set: the mean square in RMS norm
    count: NDArray[np.int64]  # m, valid values per set
    eps: float
    axes: Shape  # the axes along which a set lies: of x, in group norm of its view (N, G, C/G, *spatial)
    valid: NDArray[np.bool_]  # False where x is padding; in the shape of x, in group norm of its view
    mean_from_x: bool  # whether μ is a function of x, or a constant
    var_from_x: bool
    weight: Array | None
    bias: Array | None
    affine_axes: Shape  # the axes of x that weight and bias run along

    @property
    def unbiased_var(self) -> Array:
        """(1 / (m - 1)) Σ (x - μ)², what running averages store; ValueError where m is 0 or 1."""
        if np.any(self.count < 2):
            raise ValueError(f"an unbiased variance takes two or more values, got {self.count.min()}")
        return self.var * (self.count / (self.count - 1))


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
    return _normalize(x, _all_but_channel(x), (1,), eps, weight, bias, mask=mask)


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
    return _normalize(
        x, _all_but_channel(x), (1,), eps, weight, bias, mean=running_mean, var=running_var, mask=mask
    )


@dataclass(frozen=True, eq=False)
class Ghosts:
    """What ghost batch norm keeps: the cache of each sub-batch."""

    parts: list[Cache]

    def backward(self, dy: Array) -> list[Array | None]:
        """dx, dweight, dbias: each sub-batch on its own, and what they share summed."""
        cuts = np.cumsum([part.xhat.shape[0] for part in self.parts])[:-1]
        pairs = zip(np.split(dy, cuts), self.parts, strict=True)
        dxs, dweights, dbiases = zip(*(backward(piece, part) for piece, part in pairs), strict=True)
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
        repeated = _all_but_channel(dy)
        dy = np.where(self.batch.valid, dy, 0.0)
        r, d = np.expand_dims(self.r, repeated), np.expand_dims(self.d, repeated)
        dweight = None if self.weight is None else (dy * (r * self.batch.xhat + d)).sum(axis=repeated)
        dbias = None if self.bias is None else dy.sum(axis=repeated)
        gamma = 1.0 if self.weight is None else np.expand_dims(self.weight, repeated)
        return [backward(gamma * r * dy, self.batch)[0], dweight, dbias]


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
    row, repeated = xhat.shape[1:2], _all_but_channel(xhat)
    gamma, beta = _shaped("weight", weight, row), _shaped("bias", bias, row)
    sigma = np.sqrt(np.asarray(running_var, np.float64) + eps)
    r = np.clip(np.sqrt(batch.var + eps) / sigma, 1 / r_max, r_max)
    d = np.clip((batch.mean - np.asarray(running_mean, np.float64)) / sigma, -d_max, d_max)
    y = np.expand_dims(r, repeated) * xhat + np.expand_dims(d, repeated)
    y = y if gamma is None else y * np.expand_dims(gamma, repeated)
    y = y if beta is None else y + np.expand_dims(beta, repeated)
    return np.where(batch.valid, y, 0.0), Corrected(batch, r, d, gamma, beta)


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
    row = _last(normalized_ndim, x)
    return _normalize(x, row, row, eps, weight, bias, mask=mask, mask_lacks=-1)


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
    row = _last(normalized_ndim, x)
    zeros = np.zeros(np.shape(x)[: row[0]])
    return _normalize(x, row, row, eps, weight, mean=zeros, mask=mask, mask_lacks=-1)


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
    return _normalize(x, tuple(range(2, len(view))), (1,), eps, weight, bias, mask=mask, view=view)


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
    return _normalize(x, tuple(range(2, np.ndim(x))), (1,), eps, weight, bias, mask=mask)


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
        space, channel = tuple(range(2, dy.ndim)), _all_but_channel(dy)
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
    x, valid = _clean(x, mask)
    space, layer = tuple(range(2, x.ndim)), tuple(range(1, x.ndim))
    first = 1 if math.prod(x.shape[2:]) == 1 else 0
    parts = [_part(x, valid, axes) for axes in (space, layer)]
    parts.append(_part(x, valid, _all_but_channel(x)) if running is None else _constant(x, *running))
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
    x, valid = _clean(x, mask)
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
    x, valid = _clean(x, mask)
    n = 1 if per_sample else int(valid.any(axis=tuple(range(1, x.ndim))).sum())
    axes = tuple(range(2, x.ndim)) if per_sample else _all_but_channel(x)
    parts = [_constant(x, running_mean, running_var), _part(x, valid, axes)]
    share = np.array([1.0, 0.0]) if n == 0 or prior == math.inf else np.array([prior, n]) / (prior + n)
    return _mix(x, valid, parts, share, share, eps, weight, bias)


@dataclass(frozen=True, eq=False)
class Interpolation:
    """What batch-instance norm keeps: the caches of both, and ρ."""

    batch: Cache
    instance: Cache
    rho: Array

    def backward(self, dy: Array) -> list[Array | None]:
        """dx, dweight, dbias, drho; as y = ρ y_B + (1 - ρ) y_I, both receive their part of dy."""
        rho, repeated = np.expand_dims(self.rho, _all_but_channel(dy)), _all_but_channel(dy)
        ours, theirs = backward(rho * dy, self.batch), backward((1 - rho) * dy, self.instance)
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
    share = np.expand_dims(rho, _all_but_channel(x))
    return share * y_batch + (1 - share) * y_instance, Interpolation(batch, instance, rho)


@dataclass(frozen=True, eq=False)
class Conditional:
    """What a conditional norm keeps: the cache of the norm with an affine map per sample, and the classes."""

    cache: Cache
    labels: NDArray[np.int64]
    num_classes: int

    def backward(self, dy: Array) -> list[Array | None]:
        """dx, dweight, dbias: the gradient of a class's map is the sum of those of its samples' maps."""
        dx, *each = backward(dy, self.cache)
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


@dataclass(frozen=True, eq=False, kw_only=True)
class FilterResponseCache(Cache):
    """What filter response norm keeps besides."""

    above: NDArray[np.bool_] | None  # where y > τ; None without a threshold
    learned_eps: float | None


def filter_response_norm(
    x: ArrayLike,
    weight: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    threshold: ArrayLike | None = None,
    eps: float = 1e-6,
    learned_eps: ArrayLike | None = None,
    mask: ArrayLike | None = None,
) -> tuple[Array, FilterResponseCache]:
    """Filter response norm: each channel of each sample is divided by its root mean square over space.

    z = max(y, τ_c), y = γ_c x / √(ν²_nc + ε) + β_c, ν²_nc = mean over space of x², ε = eps + |learned_eps|

    weight, bias and threshold τ: (C,). learned_eps: one number. mask: as in `batch_norm`. Without a threshold
    z = y. Singh and Krishnan 2020, arXiv:1911.09737.
    """
    n, channels, *space = np.shape(x)
    learned = None if learned_eps is None else float(np.asarray(learned_eps).item())
    y, cache = _normalize(
        x,
        tuple(range(2, 2 + len(space))),
        (1,),
        eps + abs(learned or 0.0),
        weight,
        bias,
        mean=np.zeros((n, channels)),
        mask=mask,
    )
    tau, above = _shaped("threshold", threshold, (channels,)), None
    if tau is not None:
        tau = np.expand_dims(tau, _others((1,), y.ndim))
        above, y = y > tau, np.where(cache.valid, np.maximum(y, tau), 0.0)
    return y, FilterResponseCache(**vars(cache), above=above, learned_eps=learned)


def filter_response_backward(dz: ArrayLike, cache: FilterResponseCache) -> tuple[Array | None, ...]:
    """The gradients dx, dweight, dbias, then those of the threshold and of learned_eps where these were given.

    dτ = Σ dz where τ was the larger; ∂x̂/∂ε = -½ x̂ / (ν² + ε)
    """
    dz = np.where(cache.valid, np.asarray(dz, np.float64), 0.0)
    others = _others((1,), dz.ndim)
    dy = dz if cache.above is None else np.where(cache.above, dz, 0.0)
    dx, dweight, dbias = _normalize_backward(dy, cache)
    gradients = [dx, dweight, dbias]
    if cache.above is not None:
        gradients.append((dz - dy).sum(axis=others))
    if cache.learned_eps is not None:
        dxhat = dy if cache.weight is None else dy * np.expand_dims(cache.weight, others)
        slope = -0.5 * (dxhat * cache.xhat).sum(axis=cache.axes) / (cache.var + cache.eps)
        gradients.append(np.sign(cache.learned_eps) * slope.sum())
    return tuple(gradients)


def weight_norm(v: ArrayLike, g: ArrayLike, dim: int = 0) -> tuple[Array, Cache]:
    """Weight norm: the length of each filter of a weight is a parameter, and v gives its direction alone.

    w_o = g_o v_o / ‖v_o‖ = (g_o / √M) v_o / √(mean(v_o²)), M being the values of a filter

    v: any shape, axis `dim` of which counts the filters. g: (O,). The gradient of the cache's weight, g / √M,
    is √M times that of g. Salimans and Kingma 2016, arXiv:1602.07868.
    """
    shape = np.shape(v)
    filters, size = shape[dim], math.prod(shape) // shape[dim]
    gamma = np.asarray(g, np.float64) / math.sqrt(size)
    return _normalize(v, _others((dim,), len(shape)), (dim,), 0.0, gamma, mean=np.zeros(filters))


def weight_standardization(weight: ArrayLike, eps: float, dim: int = 0) -> tuple[Array, Cache]:
    """Weight standardization: each filter of a weight has mean 0 and variance 1, biased.

    ŵ_o = (w_o - μ_o) / √(σ²_o + ε)

    weight: any shape, axis `dim` of which counts the filters. Qiao et al. 2019, arXiv:1903.10520.
    """
    return _normalize(weight, _others((dim,), np.ndim(weight)), (dim,), eps)


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


@dataclass(frozen=True, eq=False, kw_only=True)
class TanhCache:
    """What dynamic tanh keeps for its backward pass."""

    x: Array
    alpha: float
    weight: Array | None
    bias: Array | None


def dynamic_tanh(
    x: ArrayLike, alpha: ArrayLike, weight: ArrayLike | None = None, bias: ArrayLike | None = None
) -> tuple[Array, TanhCache]:
    """Dynamic tanh: what layer norm does to large values, without a statistic.

    y = γ tanh(α x) + β, elementwise in the row

    alpha: one number. weight and bias: the shape of a row, the last axes of x.
    Zhu, Chen, He, LeCun and Liu 2025, arXiv:2503.10622.
    """
    x, scale = np.asarray(x, np.float64), float(np.asarray(alpha).item())
    given = weight if weight is not None else bias
    row = () if given is None else np.shape(given)
    gamma, beta = _shaped("weight", weight, row), _shaped("bias", bias, row)
    y = np.tanh(scale * x)
    y = y if gamma is None else y * gamma
    y = y if beta is None else y + beta
    return y, TanhCache(x=x, alpha=scale, weight=gamma, bias=beta)


def dynamic_tanh_backward(dy: ArrayLike, cache: TanhCache) -> tuple[Array | None, ...]:
    """The gradients dx, dweight, dbias and dalpha: with t = tanh(α x), dt = γ dy, dx = α dt t', dα = Σ dt t' x."""
    dy = np.asarray(dy, np.float64)

    def over_rows(a: Array, parameter: Array | None) -> Array | None:
        return None if parameter is None else a.sum(axis=tuple(range(a.ndim - parameter.ndim)))

    dz = (dy if cache.weight is None else dy * cache.weight) * _tanh_derivative(cache.alpha * cache.x)
    dweight = over_rows(dy * np.tanh(cache.alpha * cache.x), cache.weight)
    return dz * cache.alpha, dweight, over_rows(dy, cache.bias), np.asarray((dz * cache.x).sum())


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


def batchnorm_backward(dout: ArrayLike, cache: Cache) -> tuple[Array, Array | None, Array | None]:
    """The gradients (dx, dgamma, dbeta) of `batchnorm_forward`, from dout, the gradient of its output."""
    return _normalize_backward(dout, cache)


def backward(
    dy: ArrayLike, cache: Cache | TanhCache | Ghosts | Corrected | Mixture | Interpolation | Conditional
) -> tuple[Any, ...]:
    """The gradients of any norm of this file, from dy, the gradient of its y: dx, dweight, dbias, and others.

    dweight and dbias are None where the norm was given none.
    """
    if isinstance(cache, FilterResponseCache):
        return filter_response_backward(dy, cache)
    if isinstance(cache, TanhCache):
        return dynamic_tanh_backward(dy, cache)
    if isinstance(cache, Ghosts | Corrected | Mixture | Interpolation | Conditional):
        return tuple(cache.backward(np.asarray(dy, np.float64)))
    return _normalize_backward(dy, cache)


def _normalize_backward(dy: ArrayLike, cache: Cache) -> tuple[Array, Array | None, Array | None]:
    """The gradients of `_normalize`.

    y = γ x̂ + β, hence dβ = Σ dy, dγ = Σ dy x̂ (over the axes along which γ and β are repeated), dx̂ = γ dy

    Padding has dx = 0 and contributes nothing.
    """
    dy = np.asarray(dy, np.float64)
    if dy.shape != cache.xhat.shape:
        raise ValueError(f"dy must have the shape of x, {cache.xhat.shape}, got {dy.shape}")
    dy = np.where(cache.valid.reshape(dy.shape), dy, 0.0)
    repeated = _others(cache.affine_axes, dy.ndim)
    dbias = None if cache.bias is None else dy.sum(axis=repeated)
    dweight = None if cache.weight is None else (dy * cache.xhat).sum(axis=repeated)
    dxhat = dy if cache.weight is None else dy * np.expand_dims(cache.weight, repeated)
    return _standardize_backward(dxhat, cache), dweight, dbias


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
    row, channel = x.shape[1:2], _all_but_channel(x)
    gamma, beta = _shaped("weight", weight, row), _shaped("bias", bias, row)
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


def _clean(x: ArrayLike, mask: ArrayLike | None) -> tuple[Array, NDArray[np.bool_]]:
    """x with 0 in its padding, which may hold anything, and where it is valid."""
    x = np.asarray(x, np.float64)
    valid = _valid(mask, x.shape)
    return np.where(valid, x, 0.0), valid


def _part(x: Array, valid: NDArray[np.bool_], axes: Shape) -> Part:
    """Mean and variance along axes, which stay with length 1."""
    mean = _average(x, valid, axes)
    mean = mean + _average(x - mean, valid, axes)
    return Part(axes, mean, _average((x - mean) ** 2, valid, axes), valid.sum(axis=axes, keepdims=True))


def _constant(x: Array, mean: ArrayLike, var: ArrayLike) -> Part:
    """Given statistics (C,)."""
    shape = [-1 if axis == 1 else 1 for axis in range(x.ndim)]
    return Part(None, np.asarray(mean, np.float64).reshape(shape), np.asarray(var, np.float64).reshape(shape))


def _softmax(logits: Array) -> Array:
    e = np.exp(logits - logits.max())
    return e / e.sum()


def running_update(running: ArrayLike, batch: ArrayLike, momentum: float) -> Array:
    """One step of an exponential moving average: (1 - momentum) · running + momentum · batch.

    A batch is standardized by its biased variance, but the variance to store is the unbiased one,
    `cache.unbiased_var`: the running average estimates the variance of the population.
    """
    return (1 - momentum) * np.asarray(running, np.float64) + momentum * np.asarray(batch, np.float64)


def _normalize(
    x: ArrayLike,
    axes: Shape,
    affine_axes: Shape,
    eps: float,
    weight: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    *,
    mean: ArrayLike | None = None,
    var: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    mask_lacks: int = 1,
    view: Shape | None = None,
) -> tuple[Array, Cache]:
    """Standardize x over `axes` of `view`, then y = γ x̂ + β. A statistic that is None is computed from x."""
    x = np.asarray(x, np.float64)
    view = view or x.shape
    if affine_axes == (1,) and 2 in (np.ndim(p) for p in (weight, bias) if p is not None):
        affine_axes = (0, 1)  # given per sample
    sets = tuple(view[axis] for axis in _others(axes, len(view)))
    row = tuple(x.shape[axis] for axis in affine_axes)
    repeated = _others(affine_axes, x.ndim)
    gamma, beta = _shaped("weight", weight, row), _shaped("bias", bias, row)
    given = _shaped("running_mean", mean, sets), _shaped("running_var", var, sets)

    valid = _valid(mask, x.shape, mask_lacks)
    xhat, mu, sigma2 = _standardize(x.reshape(view), valid.reshape(view), axes, eps, *given)
    xhat = xhat.reshape(x.shape)
    y = xhat if gamma is None else xhat * np.expand_dims(gamma, repeated)
    y = y if beta is None else y + np.expand_dims(beta, repeated)
    return np.where(valid, y, 0.0), Cache(
        xhat=xhat,
        mean=mu,
        var=sigma2,
        count=valid.reshape(view).sum(axis=axes),
        eps=eps,
        axes=axes,
        valid=valid.reshape(view),
        mean_from_x=mean is None,
        var_from_x=var is None,
        weight=gamma,
        bias=beta,
        affine_axes=affine_axes,
    )


def _standardize(
    x: Array, valid: NDArray[np.bool_], axes: Shape, eps: float, mean: Array | None, var: Array | None
) -> tuple[Array, Array, Array]:
    """x̂ = (x - μ) / √(σ² + ε), with μ = (1/m) Σ x and σ² = (1/m) Σ (x - μ)² over the m valid values of a set.

    Centered before it is squared, so that a mean far larger than the deviation costs no digits. Centered
    twice, as the first mean is rounded at the scale of x, that of what is left at that of the deviation.
    """
    x = np.where(valid, x, 0.0)  # padding may hold anything, NaN included
    if mean is None:
        mu = _average(x, valid, axes)
        centered = x - mu
        rest = _average(centered, valid, axes)
        mu, centered = mu + rest, centered - rest
    else:
        mu = np.expand_dims(mean, axes)
        centered = x - mu
    sigma2 = _average(centered**2, valid, axes) if var is None else np.expand_dims(var, axes)
    xhat = np.where(valid, centered / np.sqrt(sigma2 + eps), 0.0)
    return xhat, mu.squeeze(axes), sigma2.squeeze(axes)


def _standardize_backward(dxhat: Array, cache: Cache) -> Array:
    """The gradient of x: dx = (dx̂ - (1/m) Σ dx̂ - x̂ (1/m) Σ dx̂ x̂) / √(σ² + ε), sums over the set.

    The second term is there because μ depends on x, the third because σ² does: a constant brings none.
    """
    g, xhat = dxhat.reshape(cache.valid.shape), cache.xhat.reshape(cache.valid.shape)
    dx = g
    if cache.mean_from_x:
        dx = dx - _average(g, cache.valid, cache.axes)
    if cache.var_from_x:
        dx = dx - xhat * _average(g * xhat, cache.valid, cache.axes)
    dx = dx / np.sqrt(np.expand_dims(cache.var, cache.axes) + cache.eps)
    return np.where(cache.valid, dx, 0.0).reshape(dxhat.shape)


def _average(a: Array, valid: NDArray[np.bool_], axes: Shape) -> Array:
    """(1/m) Σ a over the m valid values of each set, the axes kept with length 1; 0 where m = 0."""
    m = valid.sum(axis=axes, keepdims=True)
    return np.where(valid, a, 0.0).sum(axis=axes, keepdims=True) / np.maximum(m, 1)


def _others(axes: Shape, ndim: int) -> Shape:
    return tuple(axis for axis in range(ndim) if axis not in axes)


def _all_but_channel(x: ArrayLike) -> Shape:
    return _others((1,), np.ndim(x))


def _last(normalized_ndim: int, x: ArrayLike) -> Shape:
    ndim = np.ndim(x)
    if not 1 <= normalized_ndim <= ndim:
        raise ValueError(f"normalized_ndim must lie in 1..{ndim}, the axes of x, got {normalized_ndim}")
    return tuple(range(ndim - normalized_ndim, ndim))


def _valid(mask: ArrayLike | None, shape: Shape, lacks: int = 1) -> NDArray[np.bool_]:
    """The mask, which lacks one axis of x, in the shape of x."""
    if mask is None:
        return np.ones(shape, np.bool_)
    mask = np.asarray(mask)
    lacking = lacks % len(shape)
    expected = tuple(shape[axis] for axis in _others((lacking,), len(shape)))
    if mask.dtype != np.bool_ or mask.shape != expected:
        raise ValueError(f"mask must be bool of shape {expected}, got {mask.dtype} of shape {mask.shape}")
    return np.broadcast_to(np.expand_dims(mask, lacking), shape)


def _shaped(name: str, array: ArrayLike | None, shape: Shape) -> Array | None:
    if array is None:
        return None
    array = np.asarray(array, np.float64)
    if array.shape != shape:  # NumPy would broadcast a near miss, into a silently different norm
        raise ValueError(f"{name} must have shape {shape}, got {array.shape}")
    return array


def _sigmoid(x: Array) -> Array:
    """1 / (1 + e^-x), from e^-|x|, which cannot overflow and keeps the digits of a result near 0."""
    e = np.exp(-np.abs(x))
    return np.where(x >= 0, 1.0, e) / (1 + e)


def _tanh_derivative(x: Array) -> Array:
    """1 / cosh² x = (2e / (1 + e²))², e = e^-|x|: 1 - tanh² x would cancel."""
    e = np.exp(-np.abs(x))
    return (2 * e / (1 + e * e)) ** 2


def _normal_cdf(x: Array) -> Array:
    """Φ(x) = erfc(-x / √2) / 2: (1 + erf) / 2 would cancel in the left tail."""
    erfc = np.vectorize(math.erfc, otypes=[np.float64])
    return 0.5 * erfc(-x / math.sqrt(2))


def _normal_pdf(x: Array) -> Array:
    """φ(x) = e^(-x²/2) / √(2π), which is 0 in float64 beyond |x| = 39: clipped, for x² may overflow."""
    return np.exp(-0.5 * np.clip(x, -40, 40) ** 2) / math.sqrt(2 * math.pi)


# name: (f, f'), on float64 arrays. At a kink f' is the derivative from the left, as in torch.
ACTIVATIONS: dict[str, tuple[Callable[[Array], Array], Callable[[Array], Array]]] = {
    "relu": (lambda x: np.maximum(x, 0.0), lambda x: np.where(x > 0, 1.0, 0.0)),
    "leaky_relu": (lambda x: np.where(x > 0, x, 0.01 * x), lambda x: np.where(x > 0, 1.0, 0.01)),
    "silu": (lambda x: x * _sigmoid(x), lambda x: _sigmoid(x) * (1 + x * _sigmoid(-x))),
    "gelu": (lambda x: x * _normal_cdf(x), lambda x: _normal_cdf(x) + x * _normal_pdf(x)),
    "elu": (
        lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0.0))),
        lambda x: np.exp(np.minimum(x, 0.0)),
    ),
    "sigmoid": (_sigmoid, lambda x: _sigmoid(x) * _sigmoid(-x)),
    "tanh": (np.tanh, _tanh_derivative),
}
