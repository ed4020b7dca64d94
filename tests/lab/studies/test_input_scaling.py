"""C17: the verdict on made curves; a real run."""

from __future__ import annotations

from typing import Any

import pytest
from made_results import conclude, measured_twice

from normkit.lab.studies.input_scaling import EVERY, RATES, SCALINGS, STEPS, STUDY


def curves(steps: dict[str, float], rates: dict[str, int]) -> Any:
    """Accuracy 1 from so many steps on at the best learning rate; so many rates get there at all."""

    def value(shared: float, scaling: str, lr: float) -> dict[str, Any]:
        rank = RATES.index(lr)
        reached = steps[scaling] * shared * (1 + 0.3 * rank) if rank < rates[scaling] else STEPS + 1
        return {
            "scores": [float(step >= reached) for step in range(0, STEPS + 1, EVERY)],
            "diverged": False,
        }

    return value


@pytest.mark.parametrize(
    ("steps", "rates", "verdict"),
    [
        ((100, 50, 40), (3, 4, 5), "supported"),
        ((100, 50, 40), (3, 4, 3), "undecided"),
        ((100, 50, 40), (3, 2, 5), "contradicted"),
        ((50, 100, 40), (3, 4, 5), "contradicted"),
    ],
)
def test_verdict(steps: tuple[int, ...], rates: tuple[int, ...], verdict: str) -> None:
    made = curves(dict(zip(SCALINGS, steps, strict=True)), dict(zip(SCALINGS, rates, strict=True)))
    finding = conclude(STUDY, made, noise=0.2)
    assert finding.verdict == verdict
    assert finding.effects[1].estimate.mean == rates[1] - rates[0]


def test_a_target_that_no_run_reached_takes_all_steps() -> None:
    finding = conclude(STUDY, curves(dict.fromkeys(SCALINGS, 100.0), {"none": 0, "minmax": 1, "standard": 1}))
    assert finding.effects[0].estimate.mean == pytest.approx(100 / STEPS, rel=0.1)  # to EVERY steps
    assert finding.effects[1].estimate.mean == 1


def test_measures_the_same_twice() -> None:
    measured = measured_twice(STUDY, scaling="standard", lr=0.03)
    assert len(measured["scores"]) == STEPS // EVERY + 1
    assert measured["scores"][-1] > 0.9
