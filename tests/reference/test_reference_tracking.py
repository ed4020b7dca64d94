"""The specification of ghost batch norm and batch renorm: finite differences, degenerate cases."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from normkit import reference
from normkit.reference import Array

EPS, SHAPE = 1e-3, (5, 3, 2, 3)
RNG = np.random.default_rng(0)
WEIGHT, BIAS = RNG.uniform(0.5, 2, 3), RNG.standard_normal(3)
MASK = RNG.random((5, 2, 3)) > 0.3
# Running statistics so far away that r and d stay at their limits, where they are constant to differences too.
FAR = (np.array([50.0, -50.0, 50.0]), np.array([1e-3, 1e3, 1e3]))

NORMS: dict[str, Callable[..., tuple[Array, object]]] = {
    "ghost": lambda *a, mask: reference.ghost_batch_norm(a[0], 2, *a[1:], EPS, mask),
    "renorm": lambda *a, mask: reference.batch_renorm(a[0], *FAR, 1.5, 0.5, *a[1:], EPS, mask),
}


@pytest.mark.parametrize("name", NORMS)
@pytest.mark.parametrize("mask", [None, MASK], ids=["whole", "masked"])
def test_backward_is_the_slope_of_forward(name: str, mask: np.ndarray | None) -> None:
    rng = np.random.default_rng(1)
    # Distinct multiples of 1/4 keep deviations, and so the higher derivatives, of order one.
    x, dy = rng.permutation(np.prod(SHAPE)).reshape(SHAPE) / 4, rng.standard_normal(SHAPE)
    arrays = [x, WEIGHT, BIAS]
    gradients = reference.backward(dy, NORMS[name](*arrays, mask=mask)[1])
    for i, gradient in enumerate(gradients):
        slopes, h = np.zeros(arrays[i].shape), 1e-3
        for index in np.ndindex(slopes.shape):

            def at(step: float, i: int = i, index: tuple[int, ...] = index) -> float:
                moved = [a.copy() for a in arrays]
                moved[i][index] += step
                return float((dy * NORMS[name](*moved, mask=mask)[0]).sum())

            slopes[index] = (8 * (at(h) - at(-h)) - (at(2 * h) - at(-2 * h))) / (12 * h)
        # h⁴ = 1e-12 and u / h = 1e-13, times derivatives and a loss that stay below 1e4.
        assert_allclose(gradient, slopes, rtol=0, atol=1e-8)


@pytest.mark.parametrize("size", [5, 9])
def test_ghost_of_the_whole_batch_is_batch_norm(size: int) -> None:
    x, dy = RNG.standard_normal((2, *SHAPE))
    y, cache = reference.ghost_batch_norm(x, size, WEIGHT, BIAS, EPS, MASK)
    expected, twin = reference.batch_norm(x, WEIGHT, BIAS, EPS, MASK)
    assert_array_equal(y, expected)
    for a, b in zip(reference.backward(dy, cache), reference.backward(dy, twin), strict=True):
        assert_array_equal(a, b)


def test_renorm_without_a_correction_is_batch_norm() -> None:
    x, dy = RNG.standard_normal((2, *SHAPE))
    y, cache = reference.batch_renorm(x, *FAR, 1, 0, WEIGHT, BIAS, EPS, MASK)
    expected, twin = reference.batch_norm(x, WEIGHT, BIAS, EPS, MASK)
    assert_array_equal(y, expected)
    for a, b in zip(reference.backward(dy, cache), reference.backward(dy, twin), strict=True):
        assert_allclose(a, b, rtol=1e-14)


def test_renorm_without_limits_is_inference() -> None:
    x = RNG.standard_normal(SHAPE)
    y, _ = reference.batch_renorm(x, *FAR, np.inf, np.inf, WEIGHT, BIAS, EPS)
    assert_allclose(y, reference.batch_norm_inference(x, *FAR, WEIGHT, BIAS, EPS)[0], rtol=1e-12, atol=1e-10)
