"""What the kernels compute, in NumPy: two passes in float64, or in long double for float64 inputs.

Errors are measured in units u of the arithmetic (2^-24, 2^-53 for float64) against the promised bounds,
with E = |gamma xhat| + |beta| (+ |residual|):

    forward          4 u E, and u for an added residual
    input gradient   8 u gamma / sigma (|dy| + mean|dy| + |xhat| mean|dy xhat|)
    parameters       8 u sum|dy xhat|, 8 u sum|dy|: sums of f32 products over short runs, the runs in f64

and half types may also be one unit in the last place of the rounded oracle away. Results below the normal
numbers of a type are rounded to multiples of its smallest one, `tiny`.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import erf

import numpy as np
import torch
from torch import Tensor

UNIT = {torch.float32: 2.0**-24, torch.float64: 2.0**-53, torch.bfloat16: 2.0**-24, torch.float16: 2.0**-24}
ULP = {torch.float32: 0.0, torch.float64: 0.0, torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10}
TINY = {
    torch.float32: 2.0**-149,
    torch.float64: 2.0**-1074,
    torch.bfloat16: 2.0**-133,
    torch.float16: 2.0**-24,
}


def exact(x: Tensor) -> np.ndarray:
    """The values of a tensor in the type of the oracle."""
    return x.double().numpy().astype(np.longdouble if x.dtype == torch.float64 else np.float64)


@dataclass
class Result:
    """The oracle's results and, for each, the error that is allowed."""

    mean: np.ndarray
    var: np.ndarray
    y: np.ndarray
    y_bound: np.ndarray
    dx: np.ndarray | None = None
    dx_bound: np.ndarray | None = None
    dweight: np.ndarray | None = None
    dweight_bound: np.ndarray | None = None
    dbias: np.ndarray | None = None
    dbias_bound: np.ndarray | None = None


def normalize(
    x: np.ndarray,
    axes: tuple[int, ...],
    parameter_axes: tuple[int, ...],
    gamma: np.ndarray,
    beta: np.ndarray,
    eps: float,
    dtype: torch.dtype,
    dz: np.ndarray | None = None,
    residual: np.ndarray | float = 0.0,
    keep: np.ndarray | None = None,
    centred: bool = True,
) -> Result:
    """Normalize over `axes`, with parameters shared over `parameter_axes`; arrays broadcast against `x`."""
    u, ulp, tiny = UNIT[dtype], ULP[dtype], TINY[dtype]
    keep = np.ones_like(x, dtype=bool) if keep is None else np.broadcast_to(keep, x.shape)
    x = np.where(keep, x, 0)
    count = keep.sum(axes, keepdims=True)

    def mean_of(v: np.ndarray) -> np.ndarray:
        return np.where(keep, v, 0).sum(axes, keepdims=True) / count

    # A first mean, rounded to float64, is taken off exactly; what is left has all its digits.
    coarse = mean_of(x).astype(np.float64) if centred else 0.0
    near = x - coarse
    fine = mean_of(near) if centred else 0 * mean_of(x)
    mean, var = coarse + fine, mean_of((near - fine) ** 2)
    sigma = np.sqrt(var + x.dtype.type(eps))
    xhat = np.where(keep, (near - fine) / sigma, 0)
    y = np.where(keep, gamma * xhat + beta + residual, 0)
    scale = abs(gamma * xhat) + abs(beta) + abs(np.asarray(residual))
    result = Result(mean, var, y, (4 + np.any(residual)) * u * scale + ulp * abs(y) + tiny)
    if dz is not None:
        dz = np.where(keep, dz, 0)
        g = gamma * dz
        shift = mean_of(g) if centred else 0
        result.dx = np.where(keep, (g - shift - xhat * mean_of(g * xhat)) / sigma, 0)
        size = abs(g) + mean_of(abs(g)) + abs(xhat) * mean_of(abs(g * xhat))
        result.dx_bound = 8 * u * size / sigma + ulp * abs(result.dx) + tiny
        result.dweight = (dz * xhat).sum(parameter_axes, keepdims=True)
        result.dweight_bound = 8 * u * abs(dz * xhat).sum(parameter_axes, keepdims=True) + tiny
        result.dbias = dz.sum(parameter_axes, keepdims=True)
        result.dbias_bound = 8 * u * abs(dz).sum(parameter_axes, keepdims=True) + tiny
    return result


def worst(got: Tensor | np.ndarray, wanted: np.ndarray, bound: np.ndarray) -> float:
    """The largest error as a share of what is allowed; infinite where one of the two is not finite."""
    value = exact(got) if isinstance(got, Tensor) else got
    error = abs(value.reshape(wanted.shape) - wanted)
    share = np.divide(error, bound, out=np.full_like(error, np.inf), where=np.isfinite(error) & (bound > 0))
    return float(np.max(np.where(error == 0, 0, share)))


def activation(name: str | None, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """a(z) and a'(z)."""
    sigmoid = 1 / (1 + np.exp(-z))
    if name is None:
        return z, np.ones_like(z)
    if name in ("relu", "leaky_relu"):
        slope = np.where(z > 0, 1, 0.01 if name == "leaky_relu" else 0)
        return z * slope, slope
    if name == "silu":
        return z * sigmoid, sigmoid * (1 + z * (1 - sigmoid))
    if name == "gelu":
        cdf = 0.5 * (1 + np.vectorize(erf)(z / np.sqrt(2.0)))
        return z * cdf, cdf + z * np.exp(-0.5 * z * z) / np.sqrt(2 * np.pi)
    if name == "elu":
        return np.where(z > 0, z, np.expm1(z)), np.where(z > 0, 1, np.exp(z))
    if name == "sigmoid":
        return sigmoid, sigmoid * (1 - sigmoid)
    if name == "relu6":
        return np.clip(z, 0, 6), np.where((z > 0) & (z < 6), 1, 0)
    if name == "hardswish":
        return z * np.clip(z + 3, 0, 6) / 6, np.where(z >= 3, 1, np.where(z <= -3, 0, z / 3 + 0.5))
    return np.tanh(z), 1 - np.tanh(z) ** 2
