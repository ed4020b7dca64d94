from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from normkit.lab.intervals import StepsToTarget, mean_interval, paired_difference, paired_ratio

# Rounding alone: a few operations in float64 on values of order one.
CLOSE = {"rel": 1e-12, "abs": 1e-12}


def test_interval_of_a_textbook_example() -> None:
    # t(0.975, 4 degrees of freedom) = 2.776445 from printed tables; mean 3, deviation √2.5.
    estimate = mean_interval([1.0, 2.0, 3.0, 4.0, 5.0])
    assert estimate.mean == 3.0
    assert estimate.half_width == pytest.approx(2.776445 * math.sqrt(2.5) / math.sqrt(5), rel=1e-6)
    assert estimate.count == 5


@given(st.lists(st.floats(-100, 100), min_size=2, max_size=9), st.sampled_from([0.9, 0.95, 0.99]))
def test_interval_is_scipys(values: list[float], confidence: float) -> None:
    estimate = mean_interval(values, confidence)
    if np.std(values) == 0:
        assert estimate.low == estimate.mean == estimate.high
        return
    low, high = stats.t.interval(confidence, len(values) - 1, loc=np.mean(values), scale=stats.sem(values))
    assert estimate.low == pytest.approx(low, **CLOSE)
    assert estimate.high == pytest.approx(high, **CLOSE)


def test_interval_covers_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    trials = 4000
    covered = sum(
        not (estimate.below(0.0) or estimate.above(0.0))
        for estimate in (mean_interval(rng.normal(size=5).tolist()) for _ in range(trials))
    )
    # Four standard errors of a share of 0.95 in 4000 trials.
    assert covered / trials == pytest.approx(0.95, abs=4 * math.sqrt(0.95 * 0.05 / trials))


@pytest.mark.parametrize("count", [2, 3, 5, 10])
@pytest.mark.parametrize(
    "spread", [0.0, 0.1, 0.3, 1.0, 3.0]
)  # of the differences, in distances between marks
def test_differences_of_rounded_values_cover_the_truth(spread: float, count: int) -> None:
    """Without the resolution, two seeds cover it in 14 of 100 cases where the spread is a tenth of the mark."""
    rng, trials = np.random.default_rng(2), 1500
    truth = rng.uniform(-3, 3, size=(trials, 2, 1))  # anywhere between the marks
    values = np.round(truth + spread / math.sqrt(2) * rng.normal(size=(trials, 2, count)))
    estimates = [paired_difference(a, b, resolution=1.0) for a, b in values.tolist()]
    differences = (truth[:, 0] - truth[:, 1]).ravel()
    covered = np.mean([not (e.below(d) or e.above(d)) for e, d in zip(estimates, differences, strict=True)])
    # Four standard errors of a share of 0.95 in 1500 trials.
    assert covered >= 0.95 - 4 * math.sqrt(0.95 * 0.05 / trials)


@pytest.mark.parametrize("count", [2, 3, 5, 10])
@pytest.mark.parametrize("samples", [10, 30, 120])
@pytest.mark.parametrize("accuracy", [0.5, 0.9, 0.99])
def test_accuracies_on_few_samples_cover_the_truth(accuracy: float, samples: int, count: int) -> None:
    """Each is a share of right answers, of which a coarse grid ties many: most at 0.99 of 10 samples."""
    rng, trials = np.random.default_rng(3), 1500
    values = rng.binomial(samples, accuracy, size=(trials, 2, count)) / samples
    estimates = [paired_difference(a, b, resolution=1 / samples) for a, b in values.tolist()]
    covered = np.mean([not (e.below(0.0) or e.above(0.0)) for e in estimates])
    assert covered >= 0.95 - 4 * math.sqrt(0.95 * 0.05 / trials)


@pytest.mark.parametrize("count", [2, 3, 5, 10])
@pytest.mark.parametrize("every", [1, 5, 25, 100])
def test_ratios_of_steps_cover_the_truth_however_seldom_a_run_was_looked_at(every: int, count: int) -> None:
    rng, trials = np.random.default_rng(4), 1500
    median = np.exp(rng.uniform(math.log(20), math.log(400), size=(trials, 2, 1)))
    steps = np.ceil(median * np.exp(0.05 * rng.normal(size=(trials, 2, count))) / every) * every
    estimates = [paired_ratio(a, b, every=every) for a, b in steps.tolist()]
    ratios = (median[:, 0] / median[:, 1]).ravel()
    covered = np.mean([not (e.below(r) or e.above(r)) for e, r in zip(estimates, ratios, strict=True)])
    assert covered >= 0.95 - 4 * math.sqrt(0.95 * 0.05 / trials)


@pytest.mark.parametrize("seeds", [2, 3, 12])
def test_seeds_that_tie_leave_a_width(seeds: int) -> None:
    """The numbers of two arms that both stood one mark apart for every seed: perhaps no difference at all."""
    difference = paired_difference([0.52] * seeds, [0.51] * seeds, resolution=0.01)
    ratio = paired_ratio([40.0] * seeds, [50.0] * seeds, every=10)
    for estimate in (difference, ratio):
        assert estimate.low is not None
        assert estimate.high is not None
        assert estimate.low < estimate.mean < estimate.high
    if seeds == 2:
        assert not difference.above(0.0)
        assert not ratio.below(1.0)


def test_one_value_has_no_interval_and_decides_nothing() -> None:
    estimate = mean_interval([0.7])
    assert (estimate.mean, estimate.low, estimate.high, estimate.half_width) == (0.7, None, None, None)
    assert not estimate.below(1.0)
    assert not estimate.above(0.0)


@pytest.mark.parametrize("values", [[], [1.0, math.nan], [1.0, math.inf]])
def test_missing_values_are_refused(values: list[float]) -> None:
    with pytest.raises(ValueError, match="finite"):
        mean_interval(values)


def test_pairing_removes_what_the_seeds_share() -> None:
    shared = [0.0, 10.0, 20.0, 30.0]
    estimate = paired_difference([s + 1.0 for s in shared], shared)
    assert (estimate.mean, estimate.low, estimate.high) == (1.0, 1.0, 1.0)
    with pytest.raises(ValueError, match="zip"):
        paired_difference([1.0], [1.0, 2.0])


def test_ratio_is_geometric_and_turns_over() -> None:
    a, b = [10.0, 40.0, 30.0], [20.0, 20.0, 90.0]
    there, back = paired_ratio(a, b), paired_ratio(b, a)
    assert there.mean == pytest.approx((0.5 * 2.0 / 3.0) ** (1 / 3), **CLOSE)
    assert there.low is not None
    assert back.high == pytest.approx(1 / there.low, **CLOSE)


def test_steps_that_all_arrived_have_a_mean() -> None:
    steps = StepsToTarget((10, 20, 30), limit=100)
    assert steps.mean is not None
    assert (steps.reached, steps.complete, steps.mean.mean, steps.median) == (3, True, 20.0, 20)


@pytest.mark.parametrize(
    ("values", "median"),
    [
        ((10, None, 30), 30),
        ((None, 30, 10, None), 30),
        ((10, None, None), None),
        ((None, None), None),
    ],
)
def test_censored_steps_have_no_mean(values: tuple[int | None, ...], median: int | None) -> None:
    steps = StepsToTarget(values, limit=100)
    assert steps.mean is None
    assert steps.median == median
    assert steps.lower_bounds == [100 if value is None else value for value in values]


@given(st.lists(st.integers(1, 99), min_size=1, max_size=9), st.integers(0, 9))
def test_median_does_not_depend_on_how_late_the_censored_would_have_been(
    arrived: list[int], missing: int
) -> None:
    censored = StepsToTarget((*arrived, *[None] * missing), limit=100)
    if censored.median is not None:
        for late in (101, 10**6):
            full = StepsToTarget((*arrived, *[late] * missing), limit=10**7)
            assert full.median == censored.median
