"""The estimated error of statistics is the one that they have, measured against what they are drawn from."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import normkit as nk
from normkit.statistics import Moments
from normkit.surgery.convergence import Evidence, gap

MEAN, DEVIATION = 2.0, 3.0


def batches(generator: torch.Generator, number: int, spread: float, channels: int) -> Tensor:
    """(number, 32, C) of normal values; the batches' means lie `spread` deviations around MEAN."""
    draw = torch.randn(number, 32, channels, generator=generator, dtype=torch.float64)
    offsets = torch.randn(number, 1, channels, generator=generator, dtype=torch.float64)
    inner = math.sqrt(1 - spread**2)
    return MEAN + DEVIATION * (inner * draw + spread * offsets)


@pytest.mark.parametrize("spread", [0.0, 0.7])
@pytest.mark.parametrize("number", [8, 32])
def test_the_error_is_what_it_says(spread: float, number: int) -> None:
    """Over 400 channels: the actual error and the estimated one are root mean squares of as many."""
    x = batches(torch.Generator().manual_seed(number), number, spread, 400)
    evidence = Evidence(eps=0.0)
    for batch in x:
        evidence.update(Moments.of(batch, 0))
    moments = evidence.moments
    truth = torch.full((400,), MEAN), torch.full((400,), DEVIATION**2)
    actual = gap(moments.mean, moments.var(unbiased=True), *truth, 0.0)
    # Both are estimated from 400 channels, so to a twentieth each.
    assert evidence.error().item() == pytest.approx(actual, rel=0.15)


def test_the_gap_is_that_of_normalized_values() -> None:
    """Values of the true distribution, normalized by both."""
    rng = np.random.default_rng(0)
    mean, var, true_mean, true_var = (rng.uniform(0.5, 2, 3) for _ in range(4))
    x = true_mean + np.sqrt(true_var) * rng.standard_normal((400_000, 3))
    far = (x - mean) / np.sqrt(var + 0.1) - (x - true_mean) / np.sqrt(true_var + 0.1)
    expected = np.sqrt((far**2).mean())
    # eps takes part in the truth, which the formula gives exactly for eps = 0; sampling adds 1/sqrt(1.2e6).
    found = gap(*(torch.from_numpy(v) for v in (mean, var, true_mean, true_var)), 0.1)
    assert found == pytest.approx(expected, rel=0.03)
    assert gap(*(torch.from_numpy(v) for v in (mean, var, mean, var)), 0.1) == 0


@pytest.mark.parametrize("var", [-1.0, float("nan"), float("inf")])
def test_a_gap_from_bad_statistics(var: float) -> None:
    one = torch.ones(2)
    found = gap(one, torch.tensor([1.0, var]), one, one, 1e-5)
    assert found == (pytest.approx(math.sqrt(0.5)) if var == math.inf else math.inf)


def test_enough_batches() -> None:
    """The error falls with the root of the number of batches, and is said from when on it is small enough."""
    x = batches(torch.Generator().manual_seed(1), 100, 0.0, 16).float()
    layer = nn.BatchNorm1d(16)
    few = nk.recalibrate(layer, list(x[:4]), tolerance=0.03)
    assert few.enough_after is None
    # 32 values a batch: 1 / sqrt(32 K) for the mean and half its root for the deviation, 0.03 at K = 52.
    assert "too few batches" in few.verdict
    many = nk.recalibrate(layer, list(x), tolerance=0.03)
    assert 35 < many.enough_after < 70
    assert "enough batches" in repr(many)
    assert many.worst.error < 0.03
    one = nk.recalibrate(layer, list(x[:1]))
    assert one.worst.error == math.inf
    assert "take several" in one.verdict


def test_sorted_batches_are_not_enough() -> None:
    """Each batch of one class: as many values say less."""
    x = batches(torch.Generator().manual_seed(2), 100, 0.95, 16).float()
    layer = nn.BatchNorm1d(16)
    assert nk.recalibrate(layer, list(x), tolerance=0.03).enough_after is None
    mixed = x.flatten(0, 1)[torch.randperm(3200, generator=torch.Generator().manual_seed(3))].unflatten(
        0, (100, 32)
    )
    assert nk.recalibrate(layer, list(mixed), tolerance=0.03).enough_after is not None


def test_the_table_says_what_moved() -> None:
    layer = nn.BatchNorm1d(1, eps=1e-12)
    with torch.no_grad():
        layer.running_mean.fill_(5.0)
        layer.running_var.fill_(4.0)
    x = torch.tensor([[-1.0], [1.0]] * 8)
    (row,) = nk.recalibrate(layer, [x, x]).rows
    var = 32 / 31  # of 32 values, unbiased
    assert row.mean_moved == pytest.approx(5 / math.sqrt(var))
    assert row.deviation_ratio == pytest.approx(math.sqrt(var) / 2)
    assert row.gap == pytest.approx(math.sqrt(2.5**2 + (math.sqrt(var) / 2 - 1) ** 2))
    assert row.values == 32
