"""Contrast and brightness against their definition."""

from __future__ import annotations

import numpy as np

from normkit.lab.tasks.shift import shift


def test_mean_and_deviation_are_those_asked_for() -> None:
    x = np.random.default_rng(0).normal(3, 2, (50, 1, 8, 8)).astype(np.float32)
    shifted = shift(x, 0.25, -1.5)
    assert shifted.dtype == np.float32
    # Rounded to float32 at a magnitude of 6 or less, 3200 values: far below 1e-6 each.
    np.testing.assert_allclose(shifted.std(dtype=np.float64), 0.25 * x.std(dtype=np.float64), rtol=1e-6)
    expected = x.mean(dtype=np.float64) - 1.5 * x.std(dtype=np.float64)
    np.testing.assert_allclose(shifted.mean(dtype=np.float64), expected, atol=1e-6)


def test_nothing_changes_at_full_contrast() -> None:
    """Within the rounding of x - m + m: half a unit of float32 at the end, that of float64 before."""
    x = np.random.default_rng(0).normal(size=(5, 1, 8, 8)).astype(np.float32)
    np.testing.assert_allclose(shift(x, 1, 0), x, rtol=2**-23, atol=1e-15)
