"""`normkit doctor --fail-on`: from which severity on findings make the exit code 1."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from normkit.cli import run

NETS = """
import torch
from torch import nn

def trained(momentum=0.1, bias=False):
    torch.manual_seed(0)
    layers = nn.Linear(4, 8, bias=bias), nn.BatchNorm1d(8, momentum=momentum), nn.ReLU(), nn.Linear(8, 2)
    model = nn.Sequential(*layers)
    for _ in range(30):
        model(torch.randn(64, 4))
    return model

def none(): return trained()
def note(): return trained(bias=True)
def warning(): return trained(momentum=0.99)
def error():
    model = trained()
    model[1].running_var[0] = -1
    return model
"""
SEVERITIES = ("none", "note", "warning", "error")


@pytest.fixture
def nets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(sys, "path", [*sys.path])
    file = tmp_path / "nets_of_each_severity.py"
    file.write_text(NETS)
    return file


@pytest.mark.parametrize("found", SEVERITIES)
@pytest.mark.parametrize("least", [*SEVERITIES[1:], None])
def test_the_least_severity(found: str, least: str | None, nets: Path) -> None:
    option = [] if least is None else ["--fail-on", least]
    expected = found != "none" and SEVERITIES.index(found) >= SEVERITIES.index(least or "note")
    assert run(["doctor", f"{nets}:{found}", *option]) == expected


def test_findings_are_shown_all_the_same(nets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor", f"{nets}:warning", "--fail-on", "error"]) == 0
    assert "found: 1 warning" in capsys.readouterr().out


def test_what_is_left_after_a_repair_counts(nets: Path) -> None:
    assert run(["doctor", f"{nets}:warning", "--fix"]) == 0
    assert (
        run(["doctor", f"{nets}:error", "--fix"]) == 1
    )  # statistics are taken from data, and there are none


def test_another_word(nets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor", f"{nets}:none", "--fail-on", "warn"]) == 2
    assert capsys.readouterr().err == (
        "normkit: unknown severity 'warn': choose from error, warning, note; did you mean 'warning'?\n"
    )
