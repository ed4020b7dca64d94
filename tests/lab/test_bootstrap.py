from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from normkit.lab.bootstrap import bootstrap_difference, bootstrap_mean, bootstrap_ratio
from normkit.lab.intervals import mean_interval, paired_ratio

DRAWS: dict[str, tuple[Callable[[np.random.Generator, int], np.ndarray], float]] = {
    "normal": (lambda rng, n: rng.normal(size=n), 0.0),
    "exponential": (lambda rng, n: rng.exponential(size=n), 1.0),
    "log-normal": (lambda rng, n: rng.lognormal(0, 0.5, size=n), math.exp(0.125)),
}


@pytest.mark.parametrize("count", [6, 12])
@pytest.mark.parametrize("name", DRAWS)
def test_interval_holds_the_mean_about_as_often_as_it_says(name: str, count: int) -> None:
    """Percentile intervals of 6 values hold it in 81 to 86 of 100 cases, and would fail here."""
    draw, mean = DRAWS[name]
    rng, cases = np.random.default_rng(1), 600
    estimates = [bootstrap_mean(draw(rng, count).tolist()) for _ in range(cases)]
    covered = sum(not (e.below(mean) or e.above(mean)) for e in estimates) / cases
    # 92 % is the least of the measured coverages; three standard errors of a share in 600 cases.
    assert covered >= 0.92 - 3 * math.sqrt(0.92 * 0.08 / cases)
    assert covered <= 0.97 + 3 * math.sqrt(0.97 * 0.03 / cases)


def test_skewed_values_have_an_interval_that_leans() -> None:
    estimate = bootstrap_mean([1.0, 1.1, 1.2, 1.3, 1.5, 4.0, 1.05, 1.4])
    assert estimate.low is not None
    assert estimate.high is not None
    assert estimate.high - estimate.mean > 1.5 * (estimate.mean - estimate.low)


def test_it_is_that_of_a_plain_loop() -> None:
    """One resample after the other, in Python's own arithmetic."""
    values = [0.3, -0.2, 0.9, 0.4, 0.1, 0.7]
    mean, s = float(np.mean(values)), float(np.std(values, ddof=1))
    rng, ts = np.random.default_rng(20), []
    for chosen in rng.integers(6, size=(9999, 6)):
        drawn = [values[index] for index in chosen]
        if len(set(drawn)) > 1:
            ts.append(
                (math.fsum(drawn) / 6 - mean) / math.sqrt(sum((v - sum(drawn) / 6) ** 2 for v in drawn) / 5)
            )
    estimate = bootstrap_mean(values)
    # Rounding alone: sums of six values, and a quantile between two neighbors.
    assert estimate.low == pytest.approx(mean - np.quantile(ts, 0.975) * s, rel=1e-9)
    assert estimate.high == pytest.approx(mean - np.quantile(ts, 0.025) * s, rel=1e-9)


@given(
    st.lists(st.floats(-100, 100), min_size=5, max_size=9, unique=True),
    st.floats(0.01, 100),
    st.floats(-100, 100),
)
def test_it_moves_and_stretches_with_the_values(values: list[float], scale: float, shift: float) -> None:
    a, b = bootstrap_mean(values), bootstrap_mean([scale * value + shift for value in values])
    assert a.low is not None
    assert b.low is not None
    if np.std(values) > 1e-3:  # else the shift's rounding is all there is
        # Rounding of the shift, 1e2 · 2⁻⁵³, over the least deviation.
        assert b.low == pytest.approx(scale * a.low + shift, rel=1e-6, abs=1e-6)
    assert (bootstrap_mean(values).low, bootstrap_mean(values).high) == (a.low, a.high)


@pytest.mark.parametrize("values", [[0.0] * 6, [2.5] * 6, [1.0, 1.0]])
def test_values_that_are_all_the_same_have_no_width(values: list[float]) -> None:
    estimate = bootstrap_mean(values)
    assert estimate.low == estimate.mean == estimate.high == values[0]


@pytest.mark.parametrize(
    "values", [[0.0, 0.0, 0.0, 0.0, 0.0, 1.0], [0.0, 0.0, 1.0, 0.0], [0.1, 0.4, 0.2], [1.0, 2.0]]
)
def test_ties_and_few_values_have_students_interval(values: list[float]) -> None:
    assert bootstrap_mean(values) == mean_interval(values)


def test_what_rounding_hides_widens_either_end() -> None:
    values = [1.0, 1.1, 1.2, 1.3, 1.5, 4.0, 1.05, 1.4]
    plain, coarse = bootstrap_mean(values), bootstrap_mean(values, resolution=1.0)
    hidden = stats.t.ppf(0.975, 7) / 12**0.5
    assert None not in (plain.low, plain.high, coarse.low, coarse.high)
    ends = [
        (plain.mean - plain.low, coarse.mean - coarse.low),
        (plain.high - plain.mean, coarse.high - coarse.mean),
    ]
    for exact, rounded in ends:
        assert rounded == pytest.approx(math.hypot(exact, hidden), rel=1e-12)


@pytest.mark.parametrize("seeds", [2, 6])
def test_steps_that_tie_have_students_interval_of_what_rounding_hides(seeds: int) -> None:
    a, b = [10.0] * seeds, [15.0] * seeds
    estimate, student = bootstrap_ratio(a, b, every=5), paired_ratio(a, b, every=5)
    # Rounding alone: the difference of two logarithms, and the logarithm of a ratio.
    assert (estimate.low, estimate.high) == pytest.approx((student.low, student.high), rel=1e-12)
    assert not estimate.below(1.0)


def test_one_value_decides_nothing() -> None:
    assert bootstrap_mean([0.7]).low is None


def test_differences_and_ratios_are_of_pairs() -> None:
    rng = np.random.default_rng(0)
    seeds = 100 * np.exp(rng.normal(size=8))
    a, b = (seeds * factor * np.exp(0.01 * rng.normal(size=8)) for factor in (0.5, 1.0))
    ratio = bootstrap_ratio(a.tolist(), b.tolist())
    assert ratio.mean == pytest.approx(math.exp(np.mean(np.log(a) - np.log(b))), rel=1e-12)
    assert ratio.below(0.55)
    assert ratio.above(0.45)
    assert bootstrap_difference([3.0, 5.0], [1.0, 2.0]).mean == 2.5


@pytest.mark.parametrize("values", [[], [1.0, math.nan], [1.0, math.inf]])
def test_missing_values_are_refused(values: list[float]) -> None:
    with pytest.raises(ValueError, match="finite"):
        bootstrap_mean(values)


def test_a_ratio_of_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="positive"):
        bootstrap_ratio([1.0, 0.0], [1.0, 1.0])
