"""Models that torch prepared for quantization keep their layers: folding and observing are torch's business there."""

from __future__ import annotations

import pytest
import torch
from networks import lived
from torch import nn

import normkit as nk

pytestmark = [  # torch warns of its own use of them
    pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Please use quant_min and quant_max:UserWarning"),
]


def prepared() -> nn.Module:
    """A convolution that has its batch norm and its activation inside, and one with a batch norm beside it."""
    from torch.ao import quantization

    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)]
    model = quantization.fuse_modules_qat(lived(nn.Sequential(*layers)).train(), [["0", "1", "2"]])
    model.qconfig = quantization.get_default_qat_qconfig("x86")
    quantization.prepare_qat(model, inplace=True)
    model(torch.randn(4, 3, 9, 9))
    return model.eval()


@pytest.mark.parametrize("surgery", [nk.fold, nk.accelerate])
@pytest.mark.parametrize("example", [None, torch.ones(2, 3, 9, 9)], ids=["", "example"])
def test_they_stay(surgery: object, example: torch.Tensor | None) -> None:
    model = prepared()
    kinds = [type(module) for module in model.modules()]
    state = {key: value.clone() for key, value in model.state_dict().items()}
    outcome = surgery(model, example)
    assert outcome.done == {}
    assert {"0.bn", "4"} <= set(outcome.left)
    assert outcome.left["4"] == "it is prepared for quantization"
    assert [type(module) for module in model.modules()] == kinds
    after = model.state_dict()
    assert list(after) == list(state)
    assert all(torch.equal(after[key], value) for key, value in state.items())
