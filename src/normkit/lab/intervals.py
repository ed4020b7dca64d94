"""What may be said of a handful of seeds: means with Student-t intervals, and times that were cut short."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit

CONFIDENCE = 0.95


class NoValuesError(ValueError):
    """A mean was asked for of no value, as where every run diverged."""


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds and its two-sided interval; one value alone has none, and both ends are None."""

    mean: float
    low: float | None
    high: float | None
    count: int

    @property
    def half_width(self) -> float | None:
        """Half the length of the interval: the number after ±."""
        return None if self.low is None or self.high is None else (self.high - self.low) / 2

    def below(self, value: float) -> bool:
        """Whether the whole interval lies below `value`."""
        return self.high is not None and self.high < value

    def above(self, value: float) -> bool:
        """Whether the whole interval lies above `value`."""
        return self.low is not None and self.low > value


def mean_interval(values: Sequence[float], confidence: float = CONFIDENCE) -> Estimate:
    """Estimate the mean of independent values: mean ± t · s / √n, t of n-1 degrees of freedom (Student 1908).

    Raises ValueError where there is no value (NoValuesError), or one is not finite: a missing value is never averaged
    over.

    >>> mean_interval([1.0, 2.0, 3.0]).mean
    2.0
    """
    x = np.asarray(values, dtype=np.float64)
    if x.size == 0:
        raise NoValuesError("a mean needs one or more finite values, got none")
    if not np.isfinite(x).all():
        raise ValueError(f"a mean needs one or more finite values, got {list(values)}")
    mean = float(x.mean())
    if x.size == 1:
        return Estimate(mean, None, None, 1)
    t = float(stdtrit(x.size - 1, (1 + confidence) / 2))
    half = t * float(x.std(ddof=1)) / math.sqrt(x.size)
    return Estimate(mean, mean - half, mean + half, x.size)


def paired_difference(a: Sequence[float], b: Sequence[float], confidence: float = CONFIDENCE) -> Estimate:
    """Estimate the mean of a - b where a[i] and b[i] share a seed, so that what the seed decides cancels."""
    return mean_interval([p - q for p, q in zip(a, b, strict=True)], confidence)


def paired_ratio(a: Sequence[float], b: Sequence[float], confidence: float = CONFIDENCE) -> Estimate:
    """Estimate the geometric mean of a / b over shared seeds: the paired difference of logarithms, undone.

    Every value must be positive.
    """
    logs = paired_difference(np.log(a).tolist(), np.log(b).tolist(), confidence)
    low, high = (None if end is None else math.exp(end) for end in (logs.low, logs.high))
    return Estimate(math.exp(logs.mean), low, high, logs.count)


@dataclass(frozen=True)
class StepsToTarget:
    """Steps until a target was reached, one value per seed; None where a run ended without reaching it.

    A run that never got there is censored: its true value is known to lie above `limit` and nothing else is,
    so there is no mean then, only a median and a count.
    """

    values: tuple[int | None, ...]
    limit: int  # steps of a full run

    @property
    def reached(self) -> int:
        """How many runs reached the target."""
        return sum(value is not None for value in self.values)

    @property
    def complete(self) -> bool:
        """Whether every run reached the target."""
        return self.reached == len(self.values)

    @property
    def mean(self) -> Estimate | None:
        """The mean and its interval where every run reached the target, else None."""
        reached = [float(value) for value in self.values if value is not None]
        return mean_interval(reached) if self.complete else None

    @property
    def median(self) -> int | None:
        """The fewest steps by which half the runs had reached the target; None: more than `limit`."""
        reached = sorted(value for value in self.values if value is not None)
        half = (len(self.values) + 1) // 2
        return reached[half - 1] if len(reached) >= half else None

    @property
    def lower_bounds(self) -> list[int]:
        """The values, with `limit` in the place of those that lie above it."""
        return [self.limit if value is None else value for value in self.values]
