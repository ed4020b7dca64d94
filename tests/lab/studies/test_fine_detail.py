"""C19: overlap against counts by hand, what the network sees, the verdict on made results, a real run."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from made_results import conclude, measured_twice
from torch.nn import functional as F

from normkit.lab.studies.fine_detail import STUDY, images, overlap, segmenter
from normkit.lab.tasks.shapes import LINE


def test_overlap_by_hand() -> None:
    labels = torch.tensor([[[LINE, LINE, 0, 0]]])
    called = torch.tensor([[[0, LINE, LINE, LINE]]])
    outputs = F.one_hot(called, 3).movedim(-1, 1).float()
    assert overlap(outputs, labels) == 1 / 4
    assert overlap(F.one_hot(labels, 3).movedim(-1, 1).float(), labels) == 1
    assert overlap(F.one_hot(labels * 0, 3).movedim(-1, 1).float(), labels * 0) == 0


@pytest.mark.parametrize("norm", ["none", "batch", "group", "instance"])
def test_every_pixel_gets_a_score_by_what_lies_around_it(norm: str) -> None:
    """Without a norm, by four pixels to each side: 1 + 2 + 1; beyond, a norm alone carries anything."""
    torch.manual_seed(0)
    net = segmenter(norm).eval()
    x = torch.randn(1, 1, 24, 24)
    moved = x.clone()
    moved[0, 0, 12, 12] += 1
    change = (net(moved) - net(x)).abs().sum(1)[0]
    assert net(x).shape == (1, 3, 24, 24)
    assert change[12, 12] > 0
    far = torch.ones(24, 24, dtype=torch.bool)
    far[8:17, 8:17] = False
    if norm in ("none", "batch"):
        assert not change[far].any()


def test_images_are_two_sets() -> None:
    samples = images()
    assert len(samples.x) == 256
    assert not (samples.x[: len(samples.x_val)] == samples.x_val).flatten(1).all(1).any()


def overlaps(small: float, large: float) -> Any:
    """Batch norm's overlap minus that without a norm, in points, at both batch sizes."""

    def value(shared: float, norm: str, batch: int, lr: float) -> dict[str, float]:
        change = (small if batch == 2 else large) if norm == "batch" else 0
        return {"overlap": 50 * shared + change - (10 if lr == 0.003 else 0)}

    return value


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        ((-5.0, 5.0), "supported"),
        ((5.0, 5.0), "contradicted"),
        ((0.0, 5.0), "undecided"),
        ((0.0, 0.0), "undecided"),
    ],
)
def test_verdict(changes: tuple[float, float], verdict: str) -> None:
    finding = conclude(STUDY, overlaps(*changes))
    assert finding.verdict == verdict
    assert [e.estimate.mean for e in finding.effects[:2]] == pytest.approx(list(changes), abs=0.4)


def test_measures_the_same_twice() -> None:
    assert 10 < measured_twice(STUDY, norm="batch", batch=2, lr=0.01)["overlap"] < 100
