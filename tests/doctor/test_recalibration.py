"""`normkit recalibrate` in real processes: weights and a table, or one line and nothing."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

SOURCE = """
import torch
from torch import nn

class Net(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))

def loader():
    generator = torch.Generator().manual_seed(0)
    return [(torch.randn(8, 3, generator=generator), i) for i in range(6)]

def pairs():
    return [{"values": x, "label": i} for x, i in loader()]

def on_values(net, batch):
    return net(batch["values"])

def many():
    generator = torch.Generator().manual_seed(0)
    while True:  # no end of them
        yield torch.randn(64, 3, generator=generator)

def broken():
    yield torch.zeros(4, 5)

def strange():
    net = Net()
    net.add_module("bn\\x1b[31m[red]", nn.BatchNorm1d(2))
    return net
"""


def complete(*arguments: str, folder: Path) -> tuple[int, str, str]:
    command = [sys.executable, "-m", "normkit", "recalibrate", *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=120)
    return done.returncode, done.stdout, done.stderr


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A file with a model and batches, and weights of the model."""
    (tmp_path / "net.py").write_text(SOURCE)
    torch.manual_seed(0)
    linear, last = torch.nn.Linear(3, 4), torch.nn.Linear(4, 2)
    net = torch.nn.Sequential(linear, torch.nn.BatchNorm1d(4), last)
    torch.save({"epoch": 3, "state_dict": net.state_dict()}, tmp_path / "last.pt")
    return tmp_path


@pytest.mark.parametrize("out", ["new.safetensors", "new.pt"])
def test_weights_and_a_table(folder: Path, out: str) -> None:
    before = (folder / "last.pt").read_bytes()
    options = ["--data", "net.py:loader", "--weights", "last.pt", "-o", out, "--tolerance", "0.5"]
    code, shown, said = complete("net.py:Net", *options, folder=folder)
    assert (code, said) == (0, "")
    assert re.search(r"layer +channels +mean moved by +deviation +gap before +error", shown)
    assert re.search(r"^ *1 +4 +\d", shown, flags=re.MULTILINE)
    assert "6 batches; enough batches: " in shown
    assert shown.endswith(f"Weights: {out}\n")
    state = load_file(folder / out) if "safe" in out else torch.load(folder / out, weights_only=True)
    old = torch.load(folder / "last.pt", weights_only=True)["state_dict"]
    generator = torch.Generator().manual_seed(0)
    x = torch.cat([torch.randn(8, 3, generator=generator) for _ in range(6)])
    y = torch.nn.functional.linear(x, old["0.weight"], old["0.bias"]).double()
    # Some roundings of float32 in the matrix product.
    torch.testing.assert_close(state["1.running_mean"].double(), y.mean(0), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(state["1.running_var"].double(), y.var(0), rtol=1e-6, atol=1e-6)
    assert state["1.num_batches_tracked"] == 6
    assert torch.equal(state["0.weight"], old["0.weight"])
    assert (folder / "last.pt").read_bytes() == before


def test_until_there_are_enough(folder: Path) -> None:
    """Of batches without an end; it is the number that Python's function stops at."""
    options = ["--data", "net.py:many", "--until", "enough", "--tolerance", "0.1", "-o", "new.pt"]
    code, shown, said = complete("net.py:Net", "--weights", "last.pt", *options, folder=folder)
    assert (code, said) == (0, "")
    found = re.search(
        r"(\d+) batches; enough batches: .* to 0.1 from batch (\d+) on", " ".join(shown.split())
    )
    assert found is not None, shown
    seen, enough = map(int, found.groups())
    assert seen == max(enough + 2, 5)
    assert torch.load(folder / "new.pt", weights_only=True)["1.num_batches_tracked"] == seen


def test_a_function_runs_the_model(folder: Path) -> None:
    options = ["--weights", "last.pt", "-o", "new.pt", "--forward", "net.py:on_values"]
    code, _, said = complete("net.py:Net", "--data", "net.py:pairs", *options, folder=folder)
    assert (code, said) == (0, "")
    options = ["--weights", "last.pt", "-o", "same.pt"]
    assert complete("net.py:Net", "--data", "net.py:loader", *options, folder=folder)[0] == 0
    new, same = (torch.load(folder / name, weights_only=True) for name in ("new.pt", "same.pt"))
    assert all(torch.equal(new[key], same[key]) for key in same)


def test_names_cannot_write_to_the_terminal(folder: Path) -> None:
    code, shown, _ = complete("net.py:strange", "--data", "net.py:loader", "-o", "a.pt", folder=folder)
    assert code == 0
    assert "\x1b" not in shown
    assert r"bn\x1b[31m[red]" in shown


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (
            "net.py:Net --data net.py:broken",
            "net.py:Net failed on net.py:broken: RuntimeError: mat1 and mat2 .*",
        ),
        ("net.py:strang --data net.py:loader", "net.py: unknown name 'strang': .*did you mean 'strange'.*"),
        ("last.pt --data net.py:loader", "last.pt has weights and no model: .* as --weights"),
        ("net.py:Net --data net.py:loader -o last.pt", "last.pt is read, and is not written over: .*"),
        ("net.py:Net --data net.py:loader -o new.onnx", "a checkpoint ends in .*, got new.onnx"),
        (
            "net.py:Net --data net.py:loader -o absent/new.pt",
            "absent/new.pt must be a file in a folder that exists",
        ),
        ("net.py:Net --data net.py:loader --batches 0", "--batches must be 1 or more, got 0"),
        (
            "net.py:Net --data net.py:pairs",
            "forward needs input, and the batch has values, label: .*in commands --forward.*",
        ),
        ("net.py:Net --data net.py:loader --until enuf", "unknown until 'enuf': .*"),
        ("net.py:Net --data net.py:loader --forward net.py:absent", "net.py: unknown name 'absent': .*"),
        ("net.py:Net --data net.py:loader --estimator exakt", "unknown estimator 'exakt': .*"),
        (
            "torch.nn:Identity --data net.py:loader",
            "last.pt does not fit torch.nn:Identity: .*Unexpected key.*",
        ),
        ("net.py:Net", "Missing option '--data'.*"),
    ],
)
def test_one_line_and_nothing(arguments: str, line: str, folder: Path) -> None:
    words = [*arguments.split(), "--weights", "last.pt", *([] if "-o" in arguments else ["-o", "new.pt"])]
    before = sorted(path.name for path in folder.iterdir())
    code, shown, said = complete(*words, folder=folder)
    assert (code, shown) == (2, "")
    assert re.fullmatch(f"normkit: {line}\n", said), said
    assert sorted(path.name for path in folder.iterdir() if path.name != "__pycache__") == before


def test_verbose_shows_where(folder: Path) -> None:
    words = ["net.py:Net", "--data", "net.py:broken", "-o", "new.pt", "--verbose"]
    code, _, said = complete(*words, folder=folder)
    assert code == 2
    assert "Traceback" in said
    assert "linear.py" in said
    assert said.splitlines()[-1].startswith("normkit: net.py:Net failed on net.py:broken")
