"""A model beside what it is a copy of: statistics that were left behind are found, those that follow are not."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

import normkit as nk
from normkit.errors import InputError


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(4, 8),
        nn.BatchNorm1d(8),
        nn.ReLU(),
        nn.Linear(8, 8),
        nn.BatchNorm1d(8),
        nn.ReLU(),
        nn.Linear(8, 2),
    )


def averaged(buffers: bool) -> tuple[nn.Module, nn.Module]:
    """A network and the moving average of its weights, by hand in torch's wrapper; buffers follow, or are forgotten."""
    model = network()
    average = torch.optim.swa_utils.AveragedModel(model)
    generator = torch.Generator().manual_seed(1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for _ in range(40):
        optimizer.zero_grad()
        model(5 + torch.randn(64, 4, generator=generator)).square().mean().backward()
        optimizer.step()
        with torch.no_grad():
            for mine, theirs in zip(average.module.parameters(), model.parameters(), strict=True):
                mine.lerp_(theirs, 0.2)
            for mine, theirs in zip(average.module.buffers(), model.buffers(), strict=True):
                if buffers:
                    mine.copy_(theirs)
    return model, average


def found(model: nn.Module, reference: Any) -> list[Any]:
    return list(nk.diagnose(model, reference=reference, select=["NK205"]).findings)


@pytest.mark.parametrize("as_state", [False, True])
def test_an_average_without_buffers(as_state: bool) -> None:
    model, average = averaged(buffers=False)
    (finding,) = found(average, model.state_dict() if as_state else model)
    assert finding.severity == "warning"
    assert finding.module in ("module.1", "module.4")
    assert finding.evidence["layers"] >= 1
    assert finding.evidence["weights"] < 0.5
    # By hand, from the mean 0 and the variance 1 that the copy was left with.
    norm = model[int(finding.module[-1])]
    mean, var = norm.running_mean.double(), norm.running_var.double()
    expected = (mean.square() / var).mean().sqrt() + var.log().abs().mean()
    assert finding.evidence["statistics"] == pytest.approx(float(expected), rel=1e-6)


def test_an_average_with_buffers() -> None:
    model, average = averaged(buffers=True)
    assert not found(average, model)
    assert not found(model, average)  # wrapped or not, names agree
    assert not found(model, copy.deepcopy(model))


def test_a_copy_with_other_weights_is_a_note() -> None:
    model, _ = averaged(buffers=False)
    other = copy.deepcopy(model)
    for parameter in other.parameters():
        parameter.data.neg_()
    other[1].running_mean.neg_()
    (finding,) = found(other, model)
    assert finding.severity == "note"
    assert finding.module == "1"


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        (nn.Linear(4, 8), "have no running statistics under the same name"),
        (
            nn.Sequential(nn.Identity(), nn.BatchNorm1d(3)),
            r"its 1\.running_mean is of shape \[3\], not \[8\]",
        ),
    ],
)
def test_no_copy(reference: nn.Module, message: str) -> None:
    with pytest.raises(InputError, match=message):
        nk.diagnose(network(), reference=reference)


def test_the_model_itself() -> None:
    model = network()
    with pytest.raises(InputError, match="must be another model"):
        nk.diagnose(model, reference=model)
    with pytest.raises(TypeError, match="group"):
        nk.diagnose(model, process_group="rank 0")
