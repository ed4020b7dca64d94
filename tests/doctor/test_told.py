"""What `normkit doctor` says beside its findings: what it repaired, and what it could not see."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from normkit.cli import run

NET = """
import torch
from torch import nn

def fresh():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(4, 8, bias=False), nn.BatchNorm1d(8), nn.ReLU(),
        nn.Linear(8, 8, bias=False), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2),
    )

def trained():
    model = fresh()
    for _ in range(60):
        model(torch.randn(64, 4))
    return model

def sick():
    model = trained()
    model[1].running_mean += 5
    model[1].momentum = model[4].momentum = 0.99
    return model

def many():
    return nn.Sequential(*(nn.BatchNorm1d(2, momentum=0.99) for _ in range(11)), nn.Linear(2, 2))

def plain(): return nn.Linear(4, 2)

def inputs():
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(64, 4, generator=generator) for _ in range(8)]

def loader():
    generator = torch.Generator().manual_seed(2)
    return [(x, torch.randint(2, (64,), generator=generator)) for x in inputs()]
"""
NO_DATA = "without data: whether statistics fit, and what batches show, was not looked at: give --data"
NO_LOSS = "without a loss: gradients were not looked at: give batches of (inputs, target), or --loss"
INITIAL = (
    "running statistics are the initial ones: if the model was trained, give its weights: --weights FILE"
)


@pytest.fixture
def net(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(sys, "path", [*sys.path])
    file = tmp_path / "told.py"
    file.write_text(NET)
    return file


def told(capsys: pytest.CaptureFixture[str], *arguments: object) -> list[str]:
    run(["doctor", *map(str, arguments)])
    out, err = capsys.readouterr()
    assert not err
    return out.splitlines()


def test_a_repair_is_named_by_what_it_is_and_where(net: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = told(capsys, f"{net}:sick", "--data", f"{net}:loader", "--fix")
    first = lines.index("fixed: momentum=0.01 in place of 0.99")
    assert lines[first + 1] == "  NK301 A momentum as Keras counts it: 1, 4"
    then = lines.index("fixed: statistics of 2 layers taken anew from 8 batches")
    assert lines[then + 1] == "  NK202 Running statistics are not those of the data: 1"
    in_code = [line for line in lines if line.startswith("to be set in the code")]
    assert in_code == [
        "to be set in the code, as weights do not hold it: momentum=0.01 in place of 0.99 (1, 4)"
    ]


def test_what_is_left_is_named_likewise(net: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(broken().state_dict(), net.with_name("broken.pt"))
    lines = told(capsys, f"{net}:fresh", "--weights", net.with_name("broken.pt"), "--fix")
    left = lines.index("left: statistics are taken from data: give --data")
    assert lines[left + 1].startswith("  NK203 Running statistics that are not finite")
    assert lines[left + 1].endswith(": 4")


def broken() -> nn.Module:
    layers = [nn.Linear(4, 8, bias=False), nn.BatchNorm1d(8), nn.ReLU(),
              nn.Linear(8, 8, bias=False), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2)]  # fmt: skip
    model = nn.Sequential(*layers)
    model(torch.randn(64, 4))
    model[4].running_var[0] = -1
    return model


def test_of_many_layers_the_first_are_named(net: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = told(capsys, f"{net}:many", "--fix")
    assert "  NK301 A momentum as Keras counts it: 0, 1, 2, 3, 4, 5, 6, 7 and 3 more" in lines


def test_json_has_the_layers_of_a_repair(net: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = told(capsys, f"{net}:sick", "--data", f"{net}:loader", "--fix", "--format", "json")
    repairs = json.loads("\n".join(lines))["fix"]["repairs"]
    assert [repair["modules"] for repair in repairs[:2]] == [["1"], ["4"]]
    assert {"NK202", "NK301"} <= set(repairs[2]["codes"])


@pytest.mark.parametrize(
    ("target", "options", "hints"),
    [
        ("trained", [], [NO_DATA]),
        ("trained", ["--data", "NET:inputs"], [NO_LOSS]),
        ("trained", ["--data", "NET:loader"], []),
        ("fresh", [], [NO_DATA, INITIAL]),
        ("fresh", ["--data", "NET:loader"], [INITIAL]),
        ("fresh", ["--data", "NET:loader", "--fix"], [INITIAL]),
        ("fresh", ["--data", "NET:loader", "--weights", "FRESH"], []),
        ("plain", ["--data", "NET:loader"], []),
    ],
)
def test_what_was_not_looked_at(
    target: str, options: list[str], hints: list[str], net: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fresh = net.with_name("fresh.pt")
    state = broken().apply(lambda m: m.reset_running_stats() if isinstance(m, nn.BatchNorm1d) else None)
    torch.save(state.state_dict(), fresh)
    named = [option.replace("NET", str(net)).replace("FRESH", str(fresh)) for option in options]
    lines = told(capsys, f"{net}:{target}", *named)
    found = next(i for i, line in enumerate(lines) if line.startswith(("found: ", "nothing found")))
    assert lines[found + 1 :] == hints


def test_a_checkpoint_alone_says_what_it_is_not(
    net: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "last.pt"
    model = broken()
    model[4].running_var[0] = 1
    torch.save(model.state_dict(), file)
    lines = told(capsys, file)
    assert lines == [
        "nothing found",
        "a checkpoint alone: its running statistics are what was looked at, and neither the model nor whether they "
        f"fit its data: name the model, with --weights {file} and --data",
    ]
    page = "\n".join(told(capsys, file, "--format", "html"))
    assert "A checkpoint alone: its running statistics are what was looked at" in page
