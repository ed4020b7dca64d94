"""Published networks, whole: accelerated and folded they are as near to exact arithmetic as they were."""

from __future__ import annotations

import copy

import pytest
import torch
from networks import lived
from torch import nn

import normkit as nk
from normkit.bench.networks import NETWORKS


@pytest.mark.parametrize(
    ("name", "fused", "unfolded"),
    # Not fused: norms with nothing after them, in MobileNetV2 at the end of blocks without a sum, in ResNet before a
    # shortcut's sum. In DenseNet an activation is between most norms and convolutions.
    [("MobileNetV2", 45, 0), ("DenseNet-121", 121, 62), ("ResNet-18", 17, 0)],
)
def test_errors_stay_what_they_were(name: str, fused: int, unfolded: int) -> None:
    torch.manual_seed(0)
    model = lived(NETWORKS[name](nn.BatchNorm2d, 10)).eval()
    exact, x = copy.deepcopy(model).double(), torch.randn(1, 3, 32, 32)
    y = exact(x.double())

    def error() -> float:
        return float(((model(x) - y).abs().max() / y.abs().max()).detach())

    before = error()
    outcome = nk.accelerate(model, x)
    assert sum(" with " in what for what in outcome.done.values()) == fused
    assert outcome.left == {}  # ResNet's activations are in the lists around its blocks
    # Rounding is another one in each of some hundred layers; an error of logic would be a thousand times as large.
    assert error() <= 4 * before
    assert len(nk.fold(model, x).left) == unfolded
    assert error() <= 4 * before
