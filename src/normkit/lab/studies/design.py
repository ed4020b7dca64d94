"""What designs have in common: all combinations of factors with the same seeds in each, and values by seed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import product

from normkit.lab.studies.choices import numbers
from normkit.lab.studies.study import Level, Result, Results, Scale, Trial

SEEDS: Mapping[Scale, int] = {"quick": 6, "full": 12}


def crossed(scale: Scale, **factors: Sequence[Level]) -> list[Trial]:
    """A trial at each combination of levels, for each seed of the scale; seeds outermost.

    >>> [trial.levels for trial in crossed("quick", norm=["none", "batch"])][:2]
    [{'norm': 'none'}, {'norm': 'batch'}]
    """
    return [
        Trial(dict(zip(factors, levels, strict=True)), seed)
        for seed in range(SEEDS[scale])
        for levels in product(*factors.values())
    ]


def finite(values: Mapping[str, float]) -> Result:
    """What is stored of measured values: None for those that are not finite."""
    return {name: value if math.isfinite(value) else None for name, value in values.items()}


def column(results: Results, value: str, **levels: Level) -> list[float]:
    """A value of all seeds at these levels that have one."""
    return numbers(results.of(**levels), value)


def within(results: Results, a: str, b: str, **levels: Level) -> tuple[list[float], list[float]]:
    """Two values of the same trials, over the seeds that have both."""
    found = ((result[a], result[b]) for result in results.of(**levels).values())
    both = [
        (float(p), float(q)) for p, q in found if isinstance(p, (int, float)) and isinstance(q, (int, float))
    ]
    return [p for p, _ in both], [q for _, q in both]
