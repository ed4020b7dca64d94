"""Models and batches by name: what is found, and one line for everything that is not."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from normkit.doctor.target import load_batches, load_model
from normkit.errors import InputError, one_line

NET = """
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset
from sizes_of_net import FEATURES

class Net(nn.Sequential):
    def __init__(self, classes=2):
        super().__init__(nn.Linear(FEATURES, classes))

net = Net()
nets = Net
rows = TensorDataset(torch.zeros(6, FEATURES))

def build():
    return Net(3)

def sized(features, depth=1, *, width):
    return Net()

def broken():
    raise KeyError("first\\nsecond")

def leaves():
    raise SystemExit(1)

def batches():
    return DataLoader(rows, batch_size=2)

def stream():
    yield torch.zeros(2, FEATURES)

def nothing():
    pass
"""


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file with a neighbour that it imports; what is imported is forgotten afterwards."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "modules", dict(sys.modules))
    (tmp_path / "sizes_of_net.py").write_text("FEATURES = 4\n")
    (tmp_path / "net.py").write_text(NET)
    return tmp_path / "net.py"


def test_a_module_a_class_a_function(file: Path) -> None:
    net = load_model(f"{file}:net")
    assert load_model(f"{file}:net") is net  # the file ran once
    assert type(load_model(f"{file}:Net")).__name__ == "Net"
    assert load_model(f"{file}:build")[0].out_features == 3
    assert isinstance(load_model("torch.nn:Identity"), nn.Identity)


def test_files_of_the_same_name_are_apart(file: Path, tmp_path: Path) -> None:
    other = tmp_path / "other" / "net.py"
    other.parent.mkdir()
    other.write_text(NET.replace("FEATURES, classes", "7, classes"))
    assert load_model(f"{file}:net")[0].in_features == 4
    assert load_model(f"{other}:net")[0].in_features == 7
    assert load_model(f"{other}:net") is load_model(f"{other}:net")


def test_a_package_in_the_current_folder(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(file.parent)
    assert load_model("net:build")[0].out_features == 3


def test_batches(file: Path) -> None:
    assert [len(x) for (x,) in load_batches(f"{file}:batches")] == [2, 2, 2]
    assert [len(x) for x in load_batches(f"{file}:stream")] == [2]


def test_weights_are_loaded(file: Path) -> None:
    state = {"module.0.weight": torch.ones(3, 4), "module.0.bias": torch.zeros(3)}
    torch.save({"epoch": 3, "state_dict": state}, file.with_name("last.pt"))
    assert load_model(f"{file}:build", file.with_name("last.pt"))[0].weight.eq(1).all()
    with pytest.raises(
        InputError, match=r"^.*last\.pt does not fit .*net\.py:net: RuntimeError: .*size mismatch"
    ):
        load_model(f"{file}:net", file.with_name("last.pt"))


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("net", "a target is FILE.py:NAME or PACKAGE.MODULE:NAME, got 'net'"),
        ("FILE:", "a target is FILE.py:NAME or PACKAGE.MODULE:NAME, got 'FILE:'"),
        ("absent.py:net", "absent.py:net: there is no file absent.py"),
        ("absent_package.net:net", "ModuleNotFoundError: No module named 'absent_package'"),
        ("FILE:buidl", "FILE: unknown name 'buidl': choose from .*build.*; did you mean 'build'[?]"),
        ("FILE:sized", "FILE:sized must take no arguments, but needs features, width: give them defaults"),
        ("FILE:broken", r"FILE:broken\(\) raised: KeyError: 'first.*second'"),
        ("FILE:leaves", r"FILE:leaves\(\) raised: SystemExit: 1"),
        ("FILE:nothing", "FILE:nothing must be a module or a function that returns one, got nothing"),
        ("FILE:rows", "FILE:rows must be a module or a function that returns one, got TensorDataset"),
        ("weights.safetensors", "weights.safetensors has weights and no model: name the model, FILE.py:NAME"),
    ],
)
def test_no_model(file: Path, target: str, message: str) -> None:
    with pytest.raises(InputError, match=message.replace("FILE:", f"{re.escape(str(file))}:")) as caught:
        load_model(target.replace("FILE:", f"{file}:"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("rows", "must give batches, but a TensorDataset gives samples: wrap it in a DataLoader"),
        ("net", "must be batches or a function that returns them, got Net"),
        ("nothing", "got nothing"),
    ],
)
def test_no_batches(file: Path, name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_batches(f"{file}:{name}")


@pytest.mark.parametrize("source", ["raise ValueError('no GPU')", "def f(:", "import absent_package"])
def test_a_file_that_cannot_be_imported(file: Path, source: str) -> None:
    file.write_text(source)
    for _ in range(2):  # a half-imported module is not kept
        with pytest.raises(InputError, match=r"net\.py:net cannot be imported: \w+Error: ") as caught:
            load_model(f"{file}:net")
        assert isinstance(caught.value.__cause__, Exception)


def test_long_texts_are_cut() -> None:
    assert len(one_line(ValueError("x" * 1000))) == 300
