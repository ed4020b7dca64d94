"""What `--fix` repairs, what it leaves, and that a repair that fails leaves the model as it was."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import normkit as nk
from normkit.doctor.repair import fix
from normkit.errors import InputError

DATA = 40  # batches of the training set


def batches() -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(64 * DATA, 6, generator=generator)
    return list(zip(x.split(64), (x[:, 0] * x[:, 1] > 0).long().split(64), strict=True))


@pytest.fixture(scope="module")
def trained() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 24, bias=False), nn.BatchNorm1d(24), nn.ReLU(), nn.Linear(24, 24, bias=False),
                          nn.BatchNorm1d(24), nn.ReLU(), nn.Linear(24, 2))  # fmt: skip
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(3):
        for x, y in batches():
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
    return model


def evaluated(model: nn.Module) -> float:
    model.eval()
    with torch.no_grad():
        losses = [F.cross_entropy(model(x), y).item() for x, y in batches()]
    model.train()
    return sum(losses) / len(losses)


def test_stale_statistics_come_within_a_hundredth_of_full_recalibration(trained: nn.Module) -> None:
    stale = copy.deepcopy(trained)
    stale[1].running_mean += 2
    stale[4].running_var *= 9
    best = copy.deepcopy(stale)
    nk.recalibrate(best, batches())
    before = evaluated(stale)
    treatment = fix(stale, batches(), F.cross_entropy)
    assert evaluated(stale) <= 1.01 * evaluated(best) < before
    assert {finding.code for finding in treatment.before.findings} >= {"NK202", "NK601"}
    assert not treatment.after.findings
    assert treatment.loss_before is not None
    assert treatment.loss_after is not None
    assert treatment.loss_after < treatment.loss_before


def test_switches_are_set(trained: nn.Module) -> None:
    model = copy.deepcopy(trained)
    model[1].momentum = 0.99
    model[4].track_running_stats = False
    treatment = fix(model)
    assert model[1].momentum == pytest.approx(0.01)
    assert model[4].track_running_stats
    assert [repair.codes for repair in treatment.repairs] == [("NK303",), ("NK301",)]
    assert not treatment.after.findings


def test_frozen_layers_stay_frozen(trained: nn.Module) -> None:
    model = copy.deepcopy(trained)
    model[1].requires_grad_(False)
    model[4].eval()
    treatment = fix(model)
    assert {repair.codes for repair in treatment.repairs} == {("NK304",), ("NK305",)}
    before = copy.deepcopy(model.state_dict())
    model.train()
    model(batches()[0][0])
    assert all(value.equal(before[key]) for key, value in model.state_dict().items())
    assert model[4].weight.requires_grad  # what was frozen was its statistics


def test_statistics_are_taken_before_they_are_frozen(trained: nn.Module) -> None:
    """Layers in evaluation mode in a model that trains, as by hand, and stale: frozen at what the data say."""
    model = copy.deepcopy(trained)
    for norm in (model[1], model[4]):
        norm.running_mean += 2
        norm.eval()
    treatment = fix(model, batches(), F.cross_entropy)
    assert [code for repair in treatment.repairs for code in repair.codes][-2:] == ["NK305", "NK305"]
    assert not {finding.code for finding in treatment.after.findings} & {"NK202", "NK305"}
    assert not model.train()[1].training


def test_half_buffers_become_float32_with_the_same_values(trained: nn.Module) -> None:
    model = copy.deepcopy(trained).half()
    expected = model[1].running_var.float()
    fix(model)
    assert model[1].running_var.equal(expected)
    assert model[1].running_var.dtype == torch.float32
    assert model(batches()[0][0].half()).dtype == torch.float16


def test_without_data_statistics_are_left(trained: nn.Module) -> None:
    model = copy.deepcopy(trained)
    model[1].running_var[0] = float("nan")
    treatment = fix(model)
    assert not treatment.repairs
    assert set(treatment.left) == {"NK203"}
    assert "--data" in treatment.left["NK203"]


def test_a_repair_that_fails_leaves_the_model_as_it_was(trained: nn.Module) -> None:
    class Failing:
        """Batches that end in an error, once they are gone through as a whole."""

        def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
            yield from batches()
            raise OSError("the disk is gone")

    model = copy.deepcopy(trained)
    model[1].momentum = 0.99
    model[4].eval()
    kind, state = type(model[4]), copy.deepcopy(model.state_dict())
    with pytest.raises(OSError, match="the disk is gone"):
        fix(model, Failing())
    assert model[1].momentum == 0.99
    assert type(model[4]) is kind
    assert not model[4].training
    assert all(value.equal(state[key]) for key, value in model.state_dict().items())


def test_a_generator_is_refused(trained: nn.Module) -> None:
    with pytest.raises(InputError, match="several times"):
        fix(trained, (batch for batch in batches()))
