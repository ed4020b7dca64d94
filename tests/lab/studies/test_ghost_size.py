"""C7 by sub-batches: the verdict on made results; a real run."""

from __future__ import annotations

from typing import Any

import pytest
from made_results import conclude, measured_twice

from normkit.lab.studies.ghost_size import STUDY


def gaps(change: float) -> Any:
    """The gap with sub-batches minus that with whole batches."""

    def value(shared: float, ghost: int) -> dict[str, float]:
        gap = 0.1 * shared + (change if ghost < 128 else 0)
        return {"gap": gap, "loss": 0.1 + gap, "accuracy": 97.0}

    return value


@pytest.mark.parametrize(
    ("change", "verdict"), [(-0.02, "supported"), (0.0, "undecided"), (0.02, "contradicted")]
)
def test_verdict(change: float, verdict: str) -> None:
    finding = conclude(STUDY, gaps(change))
    assert finding.verdict == verdict
    assert finding.effects[0].estimate.mean == pytest.approx(change, abs=5e-4)


def test_measures_the_same_twice() -> None:
    measured = measured_twice(STUDY, ghost=16)
    assert measured["accuracy"] > 90
    assert measured["loss"] > measured["gap"] > 0
