"""The specification forward: loops over scalars in exact rational arithmetic."""

from __future__ import annotations

import math
from collections import defaultdict
from fractions import Fraction

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from known_norms import EPS, Index, Norm, U, close, every_norm, inputs
from numpy.testing import assert_array_equal

from normkit import reference
from normkit.reference import Array


def root(v: Fraction) -> Fraction:
    """√v rounded down to a multiple of 2^-300: exact, beside float64."""
    unit = 2**300
    return Fraction(math.isqrt(v.numerator * unit**2 // v.denominator), unit)


def exact(norm: Norm, x: Array) -> tuple[Array, dict[Index, tuple[Fraction, Fraction, int]]]:
    """x̂, rounded once, and the exact mean, biased variance and count of each set."""
    sets: dict[Index, list[Index]] = defaultdict(list)
    for index in np.ndindex(x.shape):
        if norm.is_valid(index):
            sets[norm.set_of(index)].append(index)
    xhat, statistics = np.zeros(x.shape), {}
    for key, members in sets.items():
        values = [Fraction(float(x[index])) for index in members]
        m = len(values)
        mean = sum(values, Fraction(0)) / m if norm.mean is None else Fraction(float(norm.mean[key]))
        spread = sum(((value - mean) ** 2 for value in values), Fraction(0))
        var = spread / m if norm.var is None else Fraction(float(norm.var[key]))
        statistics[key] = mean, var, m
        for index, value in zip(members, values, strict=True):
            xhat[index] = float((value - mean) / root(var + Fraction(EPS)))
    return xhat, statistics


@every_norm
@settings(max_examples=40)
@given(data=st.data())
def test_statistics_and_xhat_are_exact(norm: Norm, data: st.DataObject) -> None:
    x = data.draw(inputs(norm.shape))
    y, cache = norm.forward(x, None, None)
    xhat, statistics = exact(norm, x)
    # A sum of m terms errs by at most m u times the sum of their magnitudes, and every term of the second
    # sums is at the scale of the deviation. What is left is a handful of roundings.
    most = max(m for _, _, m in statistics.values())
    close(cache.xhat, xhat, atol=(most + 8) * U * np.abs(xhat).max())
    assert_array_equal(y, cache.xhat)
    for key, (mean, var, m) in statistics.items():
        assert cache.count[key] == m
        assert abs(Fraction(float(cache.mean[key])) - mean) <= 4 * U * abs(mean) + m * U * root(var)
        # (x - μ)² below the least float64 may round to 0: hence the floor.
        assert abs(Fraction(float(cache.var[key])) - var) <= (2 * m + 8) * U * var + Fraction(2) ** -1000


def test_many_values_of_a_large_mean_cost_no_digits() -> None:
    m = 10_000
    x = 1e6 + np.random.default_rng(12).standard_normal((m, 2))
    _, cache = reference.batch_norm(x)
    for c in range(2):
        values = [Fraction(float(value)) for value in x[:, c]]
        mean = sum(values, Fraction(0)) / m
        var = sum(((value - mean) ** 2 for value in values), Fraction(0)) / m
        assert abs(Fraction(float(cache.mean[c])) - mean) <= 2 * U * mean  # a sum in order errs by 30 u here
        assert (
            abs(Fraction(float(cache.var[c])) - var) <= math.isqrt(m) * U * var
        )  # roundings add up at random


@every_norm
def test_affine_map_follows_xhat(norm: Norm) -> None:
    rng = np.random.default_rng(0)
    x, (weight, bias) = rng.standard_normal(norm.shape), norm.parameters(rng)
    y, cache = norm.forward(x, weight, bias)
    for index in np.ndindex(norm.shape):
        if not norm.is_valid(index):
            assert y[index] == 0
            continue
        parameter = norm.affine_of(index)
        expected = weight[parameter] * cache.xhat[index]
        assert y[index] == (expected if bias is None else expected + bias[parameter])
