"""The adding problem: lengths, marks, padding, the variance of its targets, and that it can be solved."""

from __future__ import annotations

import numpy as np
import pytest

from normkit.lab.tasks.sequences import VARIANCE, adding


def test_equal_seeds_give_equal_arrays_and_others_do_not() -> None:
    a, b, other = adding(50, seed=1), adding(50, seed=1), adding(50, seed=2)
    assert [array.dtype for array in a] == [np.float32, np.int64, np.float32]
    assert all(map(np.array_equal, a, b))
    assert not np.array_equal(a.x, other.x)


@pytest.mark.parametrize("longest", [4, 8, 16])
def test_two_real_steps_are_marked_and_the_rest_is_padding(longest: int) -> None:
    x, lengths, y = adding(2000, seed=0, longest=longest)
    real = np.arange(longest) < lengths[:, None]
    assert set(lengths.tolist()) == {longest // 2, longest * 3 // 4, longest}
    assert (x[~real] == 0).all()
    assert (x[..., 1].sum(1) == 2).all()
    assert (x[..., 1][~real] == 0).all()
    assert set(np.unique(x[..., 1])) == {0.0, 1.0}
    np.testing.assert_array_equal(y, (x[..., 0] * x[..., 1]).sum(1))


def test_every_step_can_be_marked() -> None:
    x, lengths, _ = adding(4000, seed=0)
    whole = x[lengths == 16]
    shares = whole[..., 1].mean(0)
    error = np.sqrt(2 / 16 * (1 - 2 / 16) / len(whole))
    assert abs(shares - 2 / 16).max() < 4.5 * error  # the largest of 16 shares


def test_variance_of_the_target() -> None:
    """The sum of two uniform values has variance 1/6 and, as its kurtosis is 2.4, a known standard error."""
    y = adding(20_000, seed=0).y.astype(np.float64)
    error = VARIANCE * np.sqrt(1.4 / len(y))
    assert abs(y.var() - VARIANCE) < 4 * error


@pytest.mark.parametrize("longest", [0, 3, 10])
def test_lengths_without_quarters_are_refused(longest: int) -> None:
    with pytest.raises(ValueError, match=f"a multiple of 4, got {longest}"):
        adding(1, seed=0, longest=longest)
