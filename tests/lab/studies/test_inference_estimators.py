"""C20: the verdict on made results; a real network keeps its statistics; a real run."""

from __future__ import annotations

from typing import Any

import pytest
from made_results import conclude, measured_twice

from normkit.lab.studies.inference_estimators import ESTIMATORS, STUDY


def accuracies(noise: float = 0.0, **changes: float) -> Any:
    """Points from the whole training set's accuracy; `noise` is how far the seed alone moves the others."""

    def value(shared: float, batch: int) -> dict[str, float]:
        own = noise * (shared - 1)
        return {name: 95 + changes.get(name, 0.0) + (own if name != "exact" else 0) for name in ESTIMATORS}

    return value


@pytest.mark.parametrize(
    ("made", "verdict"),
    [
        (accuracies(10, random=-5.0), "supported"),
        (accuracies(10, random=5.0), "supported"),
        (accuracies(0), "contradicted"),
        (accuracies(1), "contradicted"),
        (accuracies(100), "undecided"),
    ],
)
def test_verdict(made: Any, verdict: str) -> None:
    assert conclude(STUDY, made).verdict == verdict


def test_measures_the_same_twice() -> None:
    measured = measured_twice(STUDY, batch=32)
    assert set(measured) == set(ESTIMATORS)
    assert all(50 < accuracy <= 100 for accuracy in measured.values())
    assert measured["random"] <= measured["exact"] + 1  # one batch of 32 is no better than the whole
