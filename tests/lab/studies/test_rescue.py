"""C14: the verdict on made results; the network; a real run that is stuck."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from made_results import conclude, measured_twice
from torch import nn

from normkit.lab.studies.fit import scaled
from normkit.lab.studies.rescue import STUDY, deep_sigmoid


def accuracies(none: dict[int, float], batch: dict[int, float]) -> Any:
    """By depth, at the best rate; the others are half of it."""

    def value(shared: float, depth: int, norm: str, lr: float) -> dict[str, float]:
        best = (none if norm == "none" else batch)[depth]
        return {"accuracy": best * shared * (1 if lr == 0.1 else 0.5), "chance": 0.1}

    return value


GOOD = {3: 0.9, 6: 0.9, 9: 0.9}


@pytest.mark.parametrize(
    ("none", "batch", "verdict", "depth"),
    [
        ({3: 0.9, 6: 0.1, 9: 0.1}, GOOD, "supported", 6),
        ({3: 0.1, 6: 0.1, 9: 0.1}, GOOD, "supported", 3),
        ({3: 0.9, 6: 0.1, 9: 0.1}, {3: 0.9, 6: 0.12, 9: 0.9}, "contradicted", 6),
        ({3: 0.9, 6: 0.1, 9: 0.1}, {3: 0.9, 6: 0.2, 9: 0.9}, "undecided", 6),
        (GOOD, GOOD, "undecided", 9),
    ],
)
def test_verdict(none: dict[int, float], batch: dict[int, float], verdict: str, depth: int) -> None:
    finding = conclude(STUDY, accuracies(none, batch))
    assert finding.verdict == verdict
    assert f"At depth {depth}," in finding.sentence
    assert finding.effects[0].label.startswith(f"batch - none at depth {depth}")


def test_the_network_is_the_original_one_at_depth_three() -> None:
    torch.manual_seed(0)
    net = deep_sigmoid(3, "batch", scaled("digits"))
    layers = [module for module in net.modules() if isinstance(module, nn.Linear)]
    assert [layer.out_features for layer in layers] == [100, 100, 100, 10]
    assert [type(module).__name__ for module in net][1:4] == ["Linear", "BatchNorm1d", "Sigmoid"]
    weights = torch.cat([layer.weight.detach().flatten() for layer in layers[:3]])
    assert abs(float(weights.std()) / 0.1 - 1) < 4 / (2 * len(weights)) ** 0.5  # four standard errors
    assert all(not layer.bias.any() for layer in layers)


def test_nine_layers_are_stuck_at_chance() -> None:
    measured = measured_twice(STUDY, depth=9, norm="none", lr=0.1)
    assert measured["accuracy"] < 0.2
    assert 0.1 <= measured["chance"] < 0.11  # the most frequent of ten digits
