"""What may be said of a few seeds, coarsely measured: means with Student-t intervals, times that were cut short."""

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


def mean_interval(
    values: Sequence[float], confidence: float = CONFIDENCE, *, resolution: float = 0.0
) -> Estimate:
    r"""Estimate the mean of independent values that were read from a scale with marks.

    .. math:: m \pm t \sqrt{s^2 / n + h^2 / 12}

    with t of n-1 degrees of freedom (Student 1908) and h the `resolution`, the distance between marks: 1 / samples of
    an accuracy, 0 of what is not rounded. Values on the same mark have s = 0, which says that they differ by less than
    h and not that they are equal. What rounding hides has a standard uncertainty of h / √12 (JCGM 100:2008, F.2.2.1);
    it may be the same in every value, so that more of them do not average it away. Taking t for this part too is on the
    safe side: two values on one mark decide nothing within 3.6 h of it.

    Raises:
        ValueError: no value (NoValuesError), or one that is not finite: a missing value is never averaged over.

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
    half = t * math.hypot(float(x.std(ddof=1)) / math.sqrt(x.size), resolution / math.sqrt(12))
    return Estimate(mean, mean - half, mean + half, x.size)


def paired_difference(
    a: Sequence[float], b: Sequence[float], confidence: float = CONFIDENCE, *, resolution: float = 0.0
) -> Estimate:
    """Estimate the mean of a - b where a[i] and b[i] share a seed, so that what the seed decides cancels.

    Both are read with `resolution`, whose uncertainties add as squares.
    """
    differences = [p - q for p, q in zip(a, b, strict=True)]
    return mean_interval(differences, confidence, resolution=math.sqrt(2) * resolution)


def paired_ratio(
    a: Sequence[float], b: Sequence[float], confidence: float = CONFIDENCE, *, every: int = 0
) -> Estimate:
    """Estimate the geometric mean of a / b over shared seeds: the paired difference of logarithms, undone.

    Every value must be positive. Where they are counts of steps that were looked at `every` so many, see `log_cell`.
    """
    logs = mean_interval(
        [math.log(p / q) for p, q in zip(a, b, strict=True)],
        confidence,
        resolution=math.hypot(log_cell(a, every), log_cell(b, every)),
    )
    low, high = (None if end is None else math.exp(end) for end in (logs.low, logs.high))
    return Estimate(math.exp(logs.mean), low, high, logs.count)


def log_cell(steps: Sequence[float], every: int) -> float:
    """The resolution of the logarithms of counts of steps that were looked at `every` so many.

    A count of k stands for k - every + 1, ..., k, as the step itself was not seen: as numbers from k - every + ½ to
    k + ½, whose logarithms lie in a cell that is wide where k is small. The root mean square of the cells; 0 for
    counts that are exact, with `every` 0.
    """
    k = np.asarray(steps, dtype=np.float64)
    return float(np.sqrt(np.mean(np.log((k + 0.5) / (k - every + 0.5)) ** 2))) if every else 0.0


@dataclass(frozen=True)
class StepsToTarget:
    """Steps until a target was reached, one value per seed; None where a run ended without reaching it.

    A run that never got there is censored: its true value is known to lie above `limit` and nothing else is,
    so there is no mean then, only a median and a count.
    """

    values: tuple[int | None, ...]
    limit: int  # steps of a full run
    every: int = 0  # steps from one look at a run to the next; 0 where each step was looked at

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
        return mean_interval(reached, resolution=self.every) if self.complete else None

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
