"""Choosing from what was measured: numbers, curves, and each arm of a study at the best of its levels."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from normkit.lab.studies.study import Level, Result, Results


def best_level(results: Results, over: str, value: str, *, most: bool = True, **levels: Level) -> Level:
    """The level of the factor `over` at which an arm has the best mean of a value over its seeds.

    A seed without the value (None: it diverged, it never got there) rules a level out, unless all are ruled out;
    then the level with the most seeds that have one is taken. Of equal levels the first is.
    """
    sign = 1.0 if most else -1.0

    def merit(level: Level) -> tuple[int, float]:
        values = numbers(results.of(**levels, **{over: level}), value)
        return len(values), sign * float(np.mean(values)) if values else -math.inf

    tried = [level for level in results.levels(over) if results.has(**levels, **{over: level})]
    return max(tried, key=merit)


def numbers(by_seed: Mapping[int, Result], value: str) -> list[float]:
    """A value of every seed that has one, in the order of the seeds."""
    found = (by_seed[seed][value] for seed in sorted(by_seed))
    return [float(number) for number in found if isinstance(number, (int, float))]


def curve(result: Result, value: str) -> list[float]:
    """A list of numbers that was measured."""
    measured = result[value]
    assert isinstance(measured, list), f"{value} is no list"
    return [float(number) for number in measured]
