"""What may be said of a handful of paired seeds whose distribution is unknown: studentized bootstrap intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from normkit.lab.intervals import CONFIDENCE, Estimate, log_cell, mean_interval

RESAMPLES = 9999  # the quantiles of an interval of 95% are then order statistics, the 250th from either end
_GENERATOR = 20  # the same resamples for all: equal values have equal intervals
_FEW = 0.01  # of the resamples may have no spread
_NONE = 1e-9  # of the values' spread is none


def bootstrap_mean(
    values: Sequence[float], confidence: float = CONFIDENCE, *, resolution: float = 0.0
) -> Estimate:
    r"""Estimate the mean of independent values by resampling them.

    .. math:: \left[m - t^*_{(1+c)/2}\, s/\sqrt n,\; m - t^*_{(1-c)/2}\, s/\sqrt n\right], \quad
              t^* = \frac{m^* - m}{s^* / \sqrt n}

    m* and s* being those of a resample, so that the interval leans to where the values are skewed. Of 5 to 12 values,
    percentile and BCa intervals hold the mean in 73 to 92 of 100 cases where they should in 95; these in 88 to 96.

    Resamples that are all one value have no t* and are left out. Where these are more than a hundredth, as with many
    ties or fewer than five values, the interval is Student's. Values that are all the same have one of length 0 unless
    they were read with a `resolution`, which widens either end as it does Student's (`mean_interval`). One value has
    none.

    Efron and Tibshirani (1993), chapter 12.

    Raises:
        ValueError: no value, or one that is not finite.
    """
    student = mean_interval(values, confidence, resolution=resolution)
    x = np.asarray(values, dtype=np.float64)
    if student.low is None or student.low == student.high:
        return student
    hidden = mean_interval([0.0] * x.size, confidence, resolution=resolution).half_width or 0.0
    resampled = x[np.random.default_rng(_GENERATOR).integers(x.size, size=(RESAMPLES, x.size))]
    spread = resampled.std(axis=1, ddof=1)
    varied = spread > _NONE * float(x.std())
    if np.mean(~varied) > _FEW:
        return student
    t = (resampled[varied].mean(axis=1) - student.mean) / spread[varied]
    low, high = np.quantile(t, [(1 - confidence) / 2, (1 + confidence) / 2])
    s = float(x.std(ddof=1))
    below, above = (math.copysign(math.hypot(end * s, hidden), end) for end in (float(high), -float(low)))
    return Estimate(student.mean, student.mean - below, student.mean + above, x.size)


def bootstrap_difference(a: Sequence[float], b: Sequence[float], confidence: float = CONFIDENCE) -> Estimate:
    """Estimate the mean of a - b where a[i] and b[i] share a seed, so that what the seed decides cancels."""
    return bootstrap_mean([p - q for p, q in zip(a, b, strict=True)], confidence)


def bootstrap_ratio(
    a: Sequence[float], b: Sequence[float], confidence: float = CONFIDENCE, *, every: int = 0
) -> Estimate:
    """Estimate the geometric mean of a / b over shared seeds, from the differences of logarithms.

    Counts of steps that were looked at `every` so many have the resolution of `log_cell`.

    Raises:
        ValueError: a value that is not positive.
    """
    if not (np.greater(a, 0).all() and np.greater(b, 0).all()):
        raise ValueError(f"a ratio of seeds needs positive values, got {list(a)} and {list(b)}")
    differences = [p - q for p, q in zip(np.log(a).tolist(), np.log(b).tolist(), strict=True)]
    resolution = math.hypot(log_cell(a, every), log_cell(b, every))
    logs = bootstrap_mean(differences, confidence, resolution=resolution)
    low, high = (None if end is None else math.exp(end) for end in (logs.low, logs.high))
    return Estimate(math.exp(logs.mean), low, high, logs.count)
