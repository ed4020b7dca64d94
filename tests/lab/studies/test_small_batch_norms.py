"""C12: the verdict on made results; a real run."""

from __future__ import annotations

from typing import Any

import pytest
from made_results import conclude, measured_twice

from normkit.lab.studies.small_batch_norms import STUDY


def losses(**changes: float) -> Any:
    """The loss at batch size 4 over that at 32 of each norm; the worse learning rate has ten times the loss."""

    def value(shared: float, norm: str, batch: int, lr: float) -> dict[str, float]:
        change = {32: 1.0, 4: changes[norm], 2: 2 * changes[norm]}[batch]
        return {"loss": 0.2 * shared * change * (10 if lr == 0.003 else 1), "accuracy": 0.9}

    return value


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        ({"batch": 3.0, "layer": 1.0, "group": 1.0, "instance": 0.8, "renorm": 1.5}, "supported"),
        ({"batch": 3.0, "layer": 1.0, "group": 1.0, "instance": 0.8, "renorm": 3.0}, "undecided"),
        ({"batch": 3.0, "layer": 1.0, "group": 1.0, "instance": 0.8, "renorm": 4.0}, "contradicted"),
    ],
)
def test_verdict(changes: dict[str, float], verdict: str) -> None:
    finding = conclude(STUDY, losses(**changes))
    assert finding.verdict == verdict
    for effect, norm in zip(finding.effects, ("layer", "group", "instance", "renorm"), strict=True):
        assert effect.estimate.mean == pytest.approx(
            changes[norm] / changes["batch"], rel=0.02
        )  # the made noise


def test_measures_the_same_twice() -> None:
    measured = measured_twice(STUDY, norm="renorm", batch=32, lr=0.003)
    assert 0.6 < measured["accuracy"] <= 1
