"""Results made by hand: what a study would conclude from them, and that it measures the same twice."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from normkit.lab import drawing
from normkit.lab.studies.study import Finding, Level, Result, Results, Study, Subject, Trial

# From levels and a factor near 1, which the seed decides and all levels of a seed share, to a result.
Value = Callable[..., Result]


def results(study: Study, value: Value, noise: float = 0.02) -> Results:
    """All trials of the quick scale, with the results that `value(shared, **levels)` gives.

    Each trial has noise of its own besides: `shared` differs between levels by a tenth of what seeds differ by.
    """

    def of(trial: Trial) -> Result:
        seed = np.random.default_rng(trial.seed).normal(0, noise)
        own = np.random.default_rng([trial.seed, *map(ord, repr(sorted(trial.levels.items())))]).normal(
            0, noise / 10
        )
        return value(float(np.exp(seed + own)), **trial.levels)

    return Results((trial, of(trial)) for trial in study.trials("quick"))


def conclude(study: Study, value: Value, noise: float = 0.02) -> Finding:
    """What a study finds in made results; its figure is drawn on the way, in all of its colors."""
    made = results(study, value, noise)
    picture = drawing.svg(lambda: study.figure(made), study.name)
    assert picture.startswith("<svg")
    finding = study.judge(made)
    assert "\n" not in finding.sentence
    assert "nan" not in finding.sentence
    return finding


def measured_twice(study: Study, seed: int = 0, **levels: Level) -> dict[str, Any]:
    """A trial's result, which is what JSON holds and the same to the bit whatever the generators were before."""
    trial = next(t for t in study.trials("full") if dict(t.levels) == levels and t.seed == seed)
    with one_thread():
        torch.manual_seed(1)
        first = json.dumps(study.measure(trial, Subject()), allow_nan=False)
        torch.manual_seed(2)
        again = json.dumps(study.measure(trial, Subject()), allow_nan=False)
    assert first == again
    return json.loads(first)


@contextmanager
def one_thread() -> Generator[None]:
    """As workers have it."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
