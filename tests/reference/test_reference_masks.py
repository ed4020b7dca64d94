"""The specification under masks, and of nothing at all."""

from __future__ import annotations

import numpy as np
import pytest
from known_norms import MASK_2D, NORMS, Index, Norm, U, close
from numpy.testing import assert_array_equal

from normkit import reference
from normkit.reference import Array


def test_batch_norm_with_a_mask_is_batch_norm_of_the_valid_values() -> None:
    rng = np.random.default_rng(4)
    x, dy = rng.standard_normal((2, 4, 2, 3))
    weight, bias = rng.standard_normal((2, 2))
    y, cache = reference.batch_norm(x, weight, bias, mask=MASK_2D)
    dx, dweight, dbias = reference.backward(dy, cache)

    def rows(a: Array) -> Array:
        return np.moveaxis(a, 1, -1)[MASK_2D]  # (valid, C)

    y_rows, rows_cache = reference.batch_norm(rows(x), weight, bias)
    dx_rows, dweight_rows, dbias_rows = reference.backward(rows(dy), rows_cache)
    atol = 32 * U * float(np.abs(dy).sum())  # sums in another order, of terms of the size of dy
    close(rows(y), y_rows, atol)
    close(rows(dx), dx_rows, atol)
    close(dweight, dweight_rows, atol)
    close(dbias, dbias_rows, atol)
    padding = np.broadcast_to(~MASK_2D[:, None], x.shape)
    assert_array_equal(y[padding], 0)
    assert_array_equal(dx[padding], 0)


@pytest.mark.parametrize("norm", [norm for norm in NORMS if norm.mask is not None], ids=str)
@pytest.mark.parametrize("padding", [np.nan, np.inf, -1e300])
def test_what_padding_holds_does_not_matter(norm: Norm, padding: float) -> None:
    rng = np.random.default_rng(5)
    x, dy = rng.standard_normal((2, *norm.shape))
    valid = norm.valid()
    weight, bias = norm.parameters(rng)
    results = []
    for fill in (0.0, padding):
        y, cache = norm.forward(np.where(valid, x, fill), weight, bias)
        results.append((y, *reference.backward(np.where(valid, dy, fill), cache)))
    for clean, padded in zip(*results, strict=True):
        assert_array_equal(padded, clean)


@pytest.mark.parametrize("shape", [(0, 3), (0, 3, 2), (2, 3, 0)])
def test_no_values_give_zero_statistics_and_no_warning(shape: Index) -> None:
    y, cache = reference.batch_norm(np.ones(shape), np.ones(3), np.ones(3))
    assert y.shape == shape
    for statistic in (cache.mean, cache.var, cache.count):
        assert_array_equal(statistic, np.zeros(3))
    dx, dweight, dbias = reference.backward(np.ones(shape), cache)
    assert dx.shape == shape
    close(dweight, np.zeros(3), atol=0)
    close(dbias, np.zeros(3), atol=0)


def test_a_batch_that_is_all_padding_is_all_zeros() -> None:
    y, cache = reference.batch_norm(np.ones((2, 3)), np.ones(3), np.ones(3), mask=np.zeros(2, np.bool_))
    assert_array_equal(y, np.zeros((2, 3)))
    assert_array_equal(cache.count, np.zeros(3))
