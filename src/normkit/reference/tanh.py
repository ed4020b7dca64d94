"""Dynamic tanh, which stands in for a norm and has no statistic."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from normkit.reference.activations import tanh_derivative
from normkit.reference.standardize import Array, shaped


@dataclass(frozen=True, eq=False, kw_only=True)
class TanhCache:
    """What dynamic tanh keeps for its backward pass."""

    x: Array
    alpha: float
    weight: Array | None
    bias: Array | None

    def backward(self, dy: ArrayLike) -> tuple[Array | None, ...]:
        """The gradients dx, dweight, dbias and dalpha: with t = tanh(α x), dt = γ dy, dx = α dt t', dα = Σ dt t' x."""
        dy = np.asarray(dy, np.float64)

        def over_rows(a: Array, parameter: Array | None) -> Array | None:
            return None if parameter is None else a.sum(axis=tuple(range(a.ndim - parameter.ndim)))

        dz = (dy if self.weight is None else dy * self.weight) * tanh_derivative(self.alpha * self.x)
        dweight = over_rows(dy * np.tanh(self.alpha * self.x), self.weight)
        return dz * self.alpha, dweight, over_rows(dy, self.bias), np.asarray((dz * self.x).sum())


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
    gamma, beta = shaped("weight", weight, row), shaped("bias", bias, row)
    y = np.tanh(scale * x)
    y = y if gamma is None else y * gamma
    y = y if beta is None else y + beta
    return y, TanhCache(x=x, alpha=scale, weight=gamma, bias=beta)
