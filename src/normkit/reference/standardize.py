"""The pair of functions that all norms share, forward and backward, and what lies between them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

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

    def backward(self, dy: ArrayLike) -> tuple[Array | None, ...]:
        """The gradients dx, dweight, dbias of `normalize`; dweight and dbias are None where none was given.

        y = γ x̂ + β, hence dβ = Σ dy, dγ = Σ dy x̂ (over the axes along which γ and β are repeated), dx̂ = γ dy

        Padding has dx = 0 and contributes nothing.
        """
        dy = np.asarray(dy, np.float64)
        if dy.shape != self.xhat.shape:
            raise ValueError(f"dy must have the shape of x, {self.xhat.shape}, got {dy.shape}")
        dy = np.where(self.valid.reshape(dy.shape), dy, 0.0)
        repeated = other_axes(self.affine_axes, dy.ndim)
        dbias = None if self.bias is None else dy.sum(axis=repeated)
        dweight = None if self.weight is None else (dy * self.xhat).sum(axis=repeated)
        dxhat = dy if self.weight is None else dy * np.expand_dims(self.weight, repeated)
        return standardize_backward(dxhat, self), dweight, dbias


class Kept(Protocol):
    """What a norm keeps of its forward pass."""

    def backward(self, dy: Array) -> Any:
        """The gradients of what the norm was given."""
        ...


def backward(dy: ArrayLike, cache: Kept) -> tuple[Any, ...]:
    """The gradients of any norm of this package, from dy, the gradient of its y: dx, dweight, dbias, and others.

    dweight and dbias are None where the norm was given none.
    """
    return tuple(cache.backward(np.asarray(dy, np.float64)))


def normalize(
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
    sets = tuple(view[axis] for axis in other_axes(axes, len(view)))
    row = tuple(x.shape[axis] for axis in affine_axes)
    repeated = other_axes(affine_axes, x.ndim)
    gamma, beta = shaped("weight", weight, row), shaped("bias", bias, row)
    given = shaped("running_mean", mean, sets), shaped("running_var", var, sets)

    valid = valid_positions(mask, x.shape, mask_lacks)
    xhat, mu, sigma2 = standardize(x.reshape(view), valid.reshape(view), axes, eps, *given)
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


def standardize(
    x: Array, valid: NDArray[np.bool_], axes: Shape, eps: float, mean: Array | None, var: Array | None
) -> tuple[Array, Array, Array]:
    """x̂ = (x - μ) / √(σ² + ε), with μ = (1/m) Σ x and σ² = (1/m) Σ (x - μ)² over the m valid values of a set.

    Centered before it is squared, so that a mean far larger than the deviation costs no digits. Centered
    twice, as the first mean is rounded at the scale of x, that of what is left at that of the deviation.
    """
    x = np.where(valid, x, 0.0)  # padding may hold anything, NaN included
    if mean is None:
        mu = average(x, valid, axes)
        centered = x - mu
        rest = average(centered, valid, axes)
        mu, centered = mu + rest, centered - rest
    else:
        mu = np.expand_dims(mean, axes)
        centered = x - mu
    sigma2 = average(centered**2, valid, axes) if var is None else np.expand_dims(var, axes)
    xhat = np.where(valid, centered / np.sqrt(sigma2 + eps), 0.0)
    return xhat, mu.squeeze(axes), sigma2.squeeze(axes)


def standardize_backward(dxhat: Array, cache: Cache) -> Array:
    """The gradient of x: dx = (dx̂ - (1/m) Σ dx̂ - x̂ (1/m) Σ dx̂ x̂) / √(σ² + ε), sums over the set.

    The second term is there because μ depends on x, the third because σ² does: a constant brings none.
    """
    g, xhat = dxhat.reshape(cache.valid.shape), cache.xhat.reshape(cache.valid.shape)
    dx = g
    if cache.mean_from_x:
        dx = dx - average(g, cache.valid, cache.axes)
    if cache.var_from_x:
        dx = dx - xhat * average(g * xhat, cache.valid, cache.axes)
    dx = dx / np.sqrt(np.expand_dims(cache.var, cache.axes) + cache.eps)
    return np.where(cache.valid, dx, 0.0).reshape(dxhat.shape)


def average(a: Array, valid: NDArray[np.bool_], axes: Shape) -> Array:
    """(1/m) Σ a over the m valid values of each set, the axes kept with length 1; 0 where m = 0."""
    m = valid.sum(axis=axes, keepdims=True)
    return np.where(valid, a, 0.0).sum(axis=axes, keepdims=True) / np.maximum(m, 1)


def other_axes(axes: Shape, ndim: int) -> Shape:
    return tuple(axis for axis in range(ndim) if axis not in axes)


def all_but_channel(x: ArrayLike) -> Shape:
    return other_axes((1,), np.ndim(x))


def last_axes(normalized_ndim: int, x: ArrayLike) -> Shape:
    ndim = np.ndim(x)
    if not 1 <= normalized_ndim <= ndim:
        raise ValueError(f"normalized_ndim must lie in 1..{ndim}, the axes of x, got {normalized_ndim}")
    return tuple(range(ndim - normalized_ndim, ndim))


def valid_positions(mask: ArrayLike | None, shape: Shape, lacks: int = 1) -> NDArray[np.bool_]:
    """The mask, which lacks one axis of x, in the shape of x."""
    if mask is None:
        return np.ones(shape, np.bool_)
    mask = np.asarray(mask)
    lacking = lacks % len(shape)
    expected = tuple(shape[axis] for axis in other_axes((lacking,), len(shape)))
    if mask.dtype != np.bool_ or mask.shape != expected:
        raise ValueError(f"mask must be bool of shape {expected}, got {mask.dtype} of shape {mask.shape}")
    return np.broadcast_to(np.expand_dims(mask, lacking), shape)


def without_padding(x: ArrayLike, mask: ArrayLike | None) -> tuple[Array, NDArray[np.bool_]]:
    """x with 0 in its padding, which may hold anything, and where it is valid."""
    x = np.asarray(x, np.float64)
    valid = valid_positions(mask, x.shape)
    return np.where(valid, x, 0.0), valid


def shaped(name: str, array: ArrayLike | None, shape: Shape) -> Array | None:
    if array is None:
        return None
    array = np.asarray(array, np.float64)
    if array.shape != shape:  # NumPy would broadcast a near miss, into a silently different norm
        raise ValueError(f"{name} must have shape {shape}, got {array.shape}")
    return array
