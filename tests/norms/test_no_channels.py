"""Layers of no channels at all, as pruning may leave them: nothing in, nothing out."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from kinds import KINDS
from torch import nn

import normkit as nk

LAYERS: dict[str, Callable[[int], nn.Module]] = {
    **KINDS,
    "adaptive": nk.AdaptiveBatchNorm1d,
    "adaptive to each": lambda channels: nk.AdaptiveBatchNorm1d(channels, per_sample=True),
    "filter response": nk.FilterResponseNorm,
    "group": lambda channels: nk.GroupNorm(1, channels),
    "layer": nk.LayerNorm,
    "rms": nk.RMSNorm,
}


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("kind", LAYERS)
def test_no_channels(kind: str, training: bool) -> None:
    shape = (4, 5, 0) if kind in ("layer", "rms") else (4, 0, 5)
    x = torch.randn(shape, requires_grad=True)
    y = LAYERS[kind](0).train(training)(x)
    y.sum().backward()
    assert y.shape == x.grad.shape == shape
