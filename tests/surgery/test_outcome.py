"""What an outcome shows, and how outputs are compared."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from normkit.surgery.outcome import Outcome, difference, tolerance_of

NAN, INF = float("nan"), float("inf")


def test_a_line_for_each_layer() -> None:
    outcome = Outcome("fold", nn.Identity())
    outcome.done["body.norm"] = "folded into body.conv"
    outcome.errors["body.norm"] = 1.25e-7
    outcome.left["last"] = "it has hooks"
    outcome.difference = 3e-7
    assert repr(outcome).splitlines() == [
        "fold: 1 changed, 1 left, outputs moved by 3.0e-07",
        "  body.norm  folded into body.conv, error 1.2e-07",
        "  last       left: it has hooks",
    ]


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ([1.0, -4.0], [1.0, -4.0], 0.0),
        ([1.0, -4.0], [2.0, -4.0], 0.25),
        ([NAN, 1.0, INF], [NAN, 1.0, INF], 0.0),
        ([NAN, 2.0], [NAN, 1.0], 0.5),
        ([1.0, 1.0], [NAN, 1.0], INF),
        ([1.0, 1.0], [INF, 1.0], INF),
        ([0.0], [0.5], 0.5),
        ([], [], 0.0),
        ([1.0], [1.0, 1.0], INF),
    ],
)
def test_differences_are_relative_to_the_largest_value(
    before: list[float], after: list[float], expected: float
) -> None:
    assert difference(torch.tensor(before), torch.tensor(after)) == expected


def test_of_structures_the_worst_part_counts() -> None:
    one, two = torch.ones(2), torch.tensor([1.0, 2.0])
    assert difference({"a": (one, [two, 3])}, {"a": (one, [two + 1, 3])}) == 0.5
    assert difference((one, one), (one,)) == INF


def test_tolerance_is_half_of_the_digits() -> None:
    assert tolerance_of(torch.ones(1, dtype=torch.float64)) == 2.0**-26
    assert tolerance_of({"y": torch.ones(1), "index": torch.ones(1, dtype=torch.int64)}) == 2.0**-11.5
