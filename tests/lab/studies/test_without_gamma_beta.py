"""C18: linearity against closed forms, what is held, the verdict on made results, a real run."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from made_results import conclude, measured_twice
from scipy.integrate import quad

from normkit.lab.models import build
from normkit.lab.studies.without_gamma_beta import STUDY, linearity, without_affine


def test_linearity_of_lines_and_parabolas() -> None:
    x = torch.linspace(-1, 1, 101)[:, None].expand(-1, 3)
    assert linearity(x, 3 - 2 * x) == pytest.approx(1, abs=1e-12)
    assert linearity(x, x**2) == pytest.approx(0, abs=1e-12)


def test_linearity_leaves_units_out_that_do_not_move() -> None:
    x = torch.linspace(-1, 1, 101)[:, None].expand(-1, 2)
    still = torch.stack([x[:, 0], torch.zeros(101)], 1)
    assert linearity(x, still) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_linearity_of_a_sigmoid_of_normal_values(scale: float) -> None:
    """Against quadrature: cov(z, s(az))² / var s(az), z standard normal. It falls as the slope rises."""

    def mean(function: Any) -> float:
        return quad(lambda z: function(z) * np.exp(-z * z / 2) / np.sqrt(2 * np.pi), -12, 12)[0]

    def sigmoid(z: float) -> float:
        return 1 / (1 + np.exp(-scale * z))

    expected = mean(lambda z: z * sigmoid(z)) ** 2 / mean(lambda z: (sigmoid(z) - 0.5) ** 2)
    count = 200_000
    z = torch.randn(count, 1, generator=torch.Generator().manual_seed(0)).double()
    # The error of a squared correlation near 1 is below that of a correlation, 1 / sqrt(count).
    assert linearity(z, torch.sigmoid(scale * z)) == pytest.approx(expected, abs=4 / count**0.5)


def test_gamma_and_beta_stay_at_one_and_zero() -> None:
    net = without_affine(build("sigmoid", norm="batch", placement="pre", input_shape=(8,), classes=3))
    optimizer = torch.optim.SGD(net.parameters(), 1.0, weight_decay=0.1)
    net(torch.randn(16, 8)).square().sum().backward()
    optimizer.step()
    norms = [module for module in net.modules() if isinstance(module, torch.nn.BatchNorm1d)]
    assert len(norms) == 3
    assert all((norm.weight == 1).all() and (norm.bias == 0).all() for norm in norms)


def accuracies(change: float) -> Any:
    def value(shared: float, activation: str, affine: bool, lr: float) -> dict[str, float]:
        accuracy = 90 * shared + (0 if affine else change) - (5 if lr == 0.3 else 0)
        return {"accuracy": accuracy, "loss": 0.2 * shared, "linearity": 0.9}

    return value


@pytest.mark.parametrize(
    ("change", "verdict"), [(-3.0, "supported"), (0.0, "undecided"), (3.0, "contradicted")]
)
def test_verdict(change: float, verdict: str) -> None:
    finding = conclude(STUDY, accuracies(change))
    assert finding.verdict == verdict
    assert finding.effects[0].estimate.mean == pytest.approx(change, abs=0.5)  # of 90 points' noise of 0.002


def test_measures_the_same_twice() -> None:
    measured = measured_twice(STUDY, activation="sigmoid", affine=False, lr=0.1)
    assert measured["accuracy"] > 90
    assert 0.9 < measured["linearity"] < 1
