"""C11: the verdict on made results; what is measured, on a real network."""

from __future__ import annotations

from typing import Any

import pytest
from made_results import conclude, measured_twice

from normkit.lab.studies.train_inference_gap import STUDY


def losses(slow: float, noisy: float, shifted: float) -> Any:
    """Loss rises by these in the three cases, relative to recalibrated statistics."""

    def value(shared: float, batch: int, momentum: float) -> dict[str, float]:
        rise = {(64, 0.003): slow, (4, 1.0): noisy}.get((batch, momentum), 0.001)
        return {
            "running loss": shared * 0.1 + rise * shared,
            "exact loss": shared * 0.1,
            "shifted loss": shared * (0.2 + shifted),
            "shifted exact loss": shared * 0.2,
        }

    return value


@pytest.mark.parametrize(
    ("rises", "verdict"),
    [
        ((1.0, 0.2, 0.4), "supported"),
        ((1.0, 0.0, 0.4), "undecided"),
        ((1.0, -0.05, 0.4), "contradicted"),
    ],
)
def test_verdict(rises: tuple[float, float, float], verdict: str) -> None:
    finding = conclude(STUDY, losses(*rises))
    assert finding.verdict == verdict
    assert [round(effect.estimate.mean, 1) for effect in finding.effects] == [
        round(rise, 1) for rise in rises
    ]


def test_slow_statistics_are_wrong_and_recalibrated() -> None:
    """After 200 steps at momentum 0.003 half of a statistic is still its first value: 0.997^200 = 0.55."""
    measured = measured_twice(STUDY, batch=64, momentum=0.003)
    assert measured["error"] > 0.3  # deviations
    assert measured["running loss"] > measured["exact loss"] + 0.1
    assert abs(measured["own loss"] - measured["exact loss"]) < 0.1  # batches of 64 are near the whole
    assert measured["exact accuracy"] > 0.9
