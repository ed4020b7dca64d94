from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.tensorboard import SummaryWriter

import normkit as nk
from normkit.errors import InputError
from normkit.lightning import RecordNorms


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nk.BatchNorm2d(8, activation="relu"),
        nn.Flatten(),
        nn.Linear(128, 5),
        nn.LayerNorm(5),
    )


def train(model: nn.Module, steps: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for _ in range(steps):
        loss = model(torch.randn(16, 3, 6, 6, generator=generator) + 2).square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return [value.detach().clone() for value in model.state_dict().values()]


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def test_readings_are_those_of_the_definition() -> None:
    seen: dict[int, Mapping[str, float]] = {}
    model = network()
    before = model[1].running_mean.double().clone(), model[1].running_var.double().clone()
    model[1].weight.data[0], model[1].bias.data[0] = 0.25, -100.0  # a channel that is off
    x = torch.randn(16, 3, 6, 6) + 2
    with nk.record(model, seen.__setitem__):
        model(x)
    ((step, readings),) = seen.items()
    assert step == 0
    inner = model[0](x).detach().double().transpose(0, 1).flatten(1)
    mean, deviation = inner.mean(1), inner.std(1, correction=0)
    running = (before[1] + 1e-5).sqrt()
    expected = {
        "1/mean": mean.median(),
        "1/deviation": deviation.median(),
        "1/shift": ((mean - before[0]).abs() / running).median(),
        "1/stretch": (deviation / running).median(),
        "1/constant": 1 / 8,
        "1/weight": 0.25,
        "4/constant": 0.0,
        "4/weight": 1.0,
    }
    for name, value in expected.items():
        # Float32 statistics of 256 values of order one: a few units in the last place, and one of the running ones.
        assert readings[name] == pytest.approx(float(value), rel=32 * 2**-24), name
    assert {name.split("/")[0] for name in readings} == {"1", "4"}
    assert "4/shift" not in readings


def test_it_changes_nothing_and_records_every_so_many_passes() -> None:
    steps: list[int] = []
    model = network()
    with nk.record(model, lambda step, readings: steps.append(step), every=3):
        recorded = train(model, 8)
        model.eval()(torch.zeros(2, 3, 6, 6))
    assert steps == [0, 3, 6]
    assert all(torch.equal(a, b) for a, b in zip(recorded, train(network(), 8), strict=True))
    assert hooks(model) == 0


def test_a_pass_that_raises_leaves_no_hooks() -> None:
    model = network()
    with nk.record(model, lambda step, readings: None), pytest.raises(RuntimeError):
        model(torch.randn(2, 4, 6, 6))
    assert hooks(model) == 0


def test_csv_and_event_files_have_the_same_numbers(tmp_path: Path) -> None:
    model = network()
    path = tmp_path / "norms.csv"
    with (
        SummaryWriter(str(tmp_path)) as events,
        nk.record(model, path, every=2),
        nk.record(model, events, every=2),
    ):
        train(model, 4)
    with path.open() as file:
        rows = {
            (f"{r['layer']}/{r['reading']}", int(r["step"])): float(r["value"]) for r in csv.DictReader(file)
        }
    found = EventAccumulator(str(tmp_path)).Reload()
    for (name, step), value in rows.items():
        (scalar,) = [event.value for event in found.Scalars(name) if event.step == step]
        assert scalar == pytest.approx(value, rel=2**-23)  # event files hold float32
    assert {step for _, step in rows} == {0, 2}


def test_print_shows_four_digits(capsys: pytest.CaptureFixture[str]) -> None:
    """And a function gets all of them."""
    seen: dict[int, Mapping[str, float]] = {}
    model = network()
    with nk.record(model, print), nk.record(model, seen.__setitem__):
        train(model, 1)
    shown = ", ".join(f"{name!r}: {value:.4g}" for name, value in seen[0].items())
    assert capsys.readouterr().out == f"0 {{{shown}}}\n"
    assert any(value != float(f"{value:.4g}") for value in seen[0].values())


def test_a_csv_file_is_written_anew(tmp_path: Path) -> None:
    path = tmp_path / "norms.csv"
    for steps in (3, 1):
        model = network()
        with nk.record(model, path, every=1):
            train(model, steps)
    with path.open() as file:
        assert {row["step"] for row in csv.DictReader(file)} == {"0"}


@pytest.mark.parametrize(
    ("model", "to", "every", "line"),
    [
        (nn.Linear(2, 2), print, 1, "model must have norms to record, but it has none"),
        (nn.BatchNorm1d(2), print, 0, "every must be 1 or more, got 0"),
        (nn.BatchNorm1d(2), 3, 1, "to must be a .csv file, a SummaryWriter or a function, got int"),
        (nn.BatchNorm1d(2), [].append, 1, r"to must be a function of step and readings, got one of \(object"),
        (nn.BatchNorm1d(2), "norms.txt", 1, r"norms\.txt: readings are written as \.csv alone"),
        (nn.BatchNorm1d(2), "/nowhere/norms.csv", 1, r"/nowhere/norms\.csv: No such file"),
    ],
)
def test_bad_input_gets_a_line(model: nn.Module, to: object, every: int, line: str) -> None:
    with pytest.raises(InputError, match=line):
        nk.record(model, to, every=every)
    assert hooks(model) == 0


class Classifier(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))

    def training_step(self, batch: list[torch.Tensor], index: int) -> torch.Tensor:
        return self.net(batch[0]).square().sum()  # not through forward

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.01)


@pytest.mark.filterwarnings("ignore:.*num_workers:UserWarning")
@pytest.mark.filterwarnings("ignore:.*isinstance.*LeafSpec:FutureWarning")
def test_lightnings_trainer_logs_readings(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Classifier()
    batches = DataLoader(TensorDataset(torch.randn(64, 4) + 3), batch_size=8)
    trainer = Trainer(
        max_epochs=1, accelerator="cpu", logger=CSVLogger(tmp_path), callbacks=[RecordNorms(every=3)],
        enable_progress_bar=False, enable_model_summary=False, log_every_n_steps=1, enable_checkpointing=False,
    )  # fmt: skip
    trainer.fit(model, batches)
    (path,) = tmp_path.rglob("metrics.csv")
    with path.open() as file:
        rows = [row for row in csv.DictReader(file) if row.get("norms/net.1/shift")]
    assert len(rows) == 3  # batches 0, 3 and 6 of 8
    shifts = [float(row["norms/net.1/shift"]) for row in rows]
    assert shifts[0] > shifts[-1] > 0  # running means come nearer to inputs that begin far from them
    assert hooks(model) == 0
