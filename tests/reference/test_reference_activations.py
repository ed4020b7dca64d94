"""The activations of the specification: those of torch, and right in the tails where torch is not."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal

from normkit import reference

U = 2.0**-53  # unit roundoff of float64


@pytest.mark.parametrize(
    "name", ["relu", "leaky_relu", "silu", "gelu", "elu", "sigmoid", "tanh", "relu6", "hardswish"]
)
def test_activations_are_those_of_torch(name: str) -> None:
    x = np.concatenate([np.linspace(-30, 30, 2001), [0.0, -0.0, 1e-300, -1e-300]])
    f, derivative = reference.ACTIVATIONS[name]
    leaf = torch.from_numpy(x.copy()).requires_grad_()
    y = getattr(torch.nn.functional, name)(leaf)
    (slope,) = torch.autograd.grad(y.sum(), leaf)
    # torch's own cancel in the tails: they are right to a few units of 1, and of |x| where x is a factor.
    atol = 8 * U * (1 + np.abs(x))
    assert np.all(np.abs(f(x) - y.detach().numpy()) <= atol)
    assert np.all(np.abs(derivative(x) - slope.numpy()) <= atol)


SATURATED = {  # for large x: (f(-x), f(x)) and (f'(-x), f'(x))
    "relu": (lambda x: (0, x), (0, 1)),
    "leaky_relu": (lambda x: (-0.01 * x, x), (0.01, 1)),
    "silu": (lambda x: (0, x), (0, 1)),
    "gelu": (lambda x: (0, x), (0, 1)),
    "elu": (lambda x: (-1, x), (0, 1)),
    "sigmoid": (lambda x: (0, 1), (0, 0)),
    "tanh": (lambda x: (-1, 1), (0, 0)),
    "relu6": (lambda x: (0, 6), (0, 0)),
    "hardswish": (lambda x: (0, x), (0, 1)),
}


@pytest.mark.parametrize("name", SATURATED)
@pytest.mark.parametrize("x", [1e3, 1e160, 1.7e308])
def test_activations_saturate_without_overflow(name: str, x: float) -> None:
    f, derivative = reference.ACTIVATIONS[name]
    limits, slopes_there = SATURATED[name]
    assert_array_equal(f(np.array([-x, x])), limits(x))
    assert_array_equal(derivative(np.array([-x, x])), slopes_there)


@pytest.mark.parametrize(
    ("name", "x", "value", "slope"),
    [
        # e^-50 is far below a unit of 1: what is added to 1 is rounded away, and the leading term is exact.
        ("sigmoid", -50.0, math.exp(-50), math.exp(-50)),
        ("sigmoid", 50.0, 1.0, math.exp(-50)),
        ("tanh", 50.0, 1.0, 4 * math.exp(-100)),
        ("silu", -50.0, -50 * math.exp(-50), -49 * math.exp(-50)),
        ("elu", -1e-300, -1e-300, 1.0),
        # x Φ(x) and Φ(x) + x φ(x), from tabulated Φ(-10) and φ(10).
        ("gelu", -10.0, -7.619853024160526e-23, 7.619853024160526e-24 - 7.694598626706420e-22),
    ],
)
def test_activations_keep_their_digits_in_the_tails(name: str, x: float, value: float, slope: float) -> None:
    f, derivative = reference.ACTIVATIONS[name]
    # A rounding of the exponent is amplified by it, 50 or 100 times.
    assert_allclose(f(np.array(x)), value, rtol=128 * U)
    assert_allclose(derivative(np.array(x)), slope, rtol=128 * U)
