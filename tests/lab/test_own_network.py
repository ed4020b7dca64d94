from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import normkit as nk
from normkit.errors import InputError
from normkit.lab.studies.own import network

SOURCE = """
import torch
from torch import nn

def build():
    return nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10)
    )

def bare():
    return nn.Linear(2, 2)

def rows():
    return nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))

instance = build()
"""


@pytest.fixture
def model(tmp_path: Path) -> str:
    (tmp_path / "own_net.py").write_text(SOURCE)
    return f"{tmp_path / 'own_net.py'}:build"


@pytest.mark.parametrize(
    ("norm", "kind"),
    [
        ("none", nn.Identity),
        ("batch", nk.BatchNorm2d),
        ("group", nn.GroupNorm),
        ("ghost", nk.GhostBatchNorm2d),
    ],
)
def test_norms_become_what_a_trial_asks_for(model: str, norm: str, kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    made = network(model, norm)
    torch.manual_seed(0)
    assert isinstance(made[1], kind)
    assert torch.equal(made[0].weight, network(model, "none")[0].weight)  # one seed, one beginning
    assert made(torch.randn(32, 1, 8, 8)).shape == (32, 10)


@pytest.mark.parametrize(
    ("name", "norm", "line"),
    [
        ("bare", "batch", "must have norms whose kind can be varied, but it has none"),
        ("rows", "batch", "layer '1' cannot be batch norm"),
        ("instance", "batch", "must be a function that returns a new network, got the network itself"),
        ("nothing", "batch", "unknown name 'nothing'"),
    ],
)
def test_what_does_not_fit_gets_a_line(model: str, name: str, norm: str, line: str) -> None:
    with pytest.raises(InputError, match=line) as refused:
        network(model.replace("build", name), norm)
    assert "\n" not in str(refused.value)
