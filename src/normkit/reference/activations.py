"""Activations and their derivatives, which keep their digits in the tails."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from normkit.reference.standardize import Array


def _sigmoid(x: Array) -> Array:
    """1 / (1 + e^-x), from e^-|x|, which cannot overflow and keeps the digits of a result near 0."""
    e = np.exp(-np.abs(x))
    return np.where(x >= 0, 1.0, e) / (1 + e)


def tanh_derivative(x: Array) -> Array:
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


# name: (f, f'), on float64 arrays. At a kink f' is the one that torch takes.
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
    "tanh": (np.tanh, tanh_derivative),
    "relu6": (lambda x: np.clip(x, 0.0, 6.0), lambda x: np.where((x > 0) & (x < 6), 1.0, 0.0)),
    "hardswish": (
        lambda x: x * (np.clip(x + 3, 0.0, 6.0) / 6),
        lambda x: np.where(x >= 3, 1.0, np.where(x <= -3, 0.0, np.clip(x, -3, 3) / 3 + 0.5)),
    ),
}
