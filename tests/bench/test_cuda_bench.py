"""The benchmark of GPUs, as far as it goes without one; with one it runs."""

from __future__ import annotations

import subprocess
import sys
from itertools import count

import pytest
import torch

from normkit.bench import cuda, cuda_table
from normkit.bench.cases import Case
from normkit.bench.machine import Machine
from normkit.bench.result import Measured, Result
from normkit.bench.timing import Times
from normkit.errors import InputError


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "normkit", "bench", *arguments], capture_output=True, text=True, check=False
    )


def test_one_line_without_a_device():
    if torch.cuda.is_available():
        assert cuda.run(["ln"], repeats=2, quick=True).measured
        return
    told = command("--device", "cuda")
    assert told.returncode == 2
    assert "a CUDA device is needed" in told.stderr
    assert "Traceback" not in told.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--device", "gpu"), "unknown device 'gpu'"),
        (("--device", "cuda", "--threads", "2"), "--threads belong to --device cpu"),
        (("--device", "cuda", "--rows", "bn-f32"), "unknown row 'bn-f32'"),
    ],
)
def test_what_does_not_fit_is_named(arguments, said):
    told = command(*arguments)
    assert told.returncode == 2
    assert said in " ".join(told.stderr.split())


def test_a_spread_takes_two_rounds():
    with pytest.raises(InputError, match="got repeats=1"):
        cuda.run(repeats=1)


def test_inputs_exceed_the_cache_twice():
    for bytes_of_one in (1 << 10, 1 << 20, 30 << 20, 100 << 20, 1 << 30):
        sets = cuda.sets_needed(bytes_of_one, 50 << 20)
        assert 2 <= sets <= 32
        assert sets == 32 or sets * bytes_of_one >= 2 * (50 << 20)


def test_every_row_has_inputs_and_torchs_layer_takes_them():
    """The least bytes of a row, and that its layers can be made: all that a run needs besides the device."""
    for row in cuda.ROWS:
        assert any(shape.quick for shape in row.shapes)
        case = Case(row, row.shapes[0])
        ours, theirs = case.ours(), case.theirs()
        assert {p.shape for p in ours.parameters()} == {p.shape for p in theirs.parameters()}
        forward, backward = case.least_bytes()
        assert forward == (2 + row.residual) * case.tensor_bytes
        assert backward == (3 + row.residual) * case.tensor_bytes


def test_a_step_gives_gradients_of_input_residual_and_parameters():
    """The step that is timed on the GPU is a step on any device."""
    layer, between = torch.nn.LayerNorm(4), count()
    given = cuda.Inputs(torch.randn(3, 4, requires_grad=True), torch.randn(3, 4), None)
    cuda.of_module(layer, list(layer.parameters()))(given, lambda: next(between))
    assert next(between) == 1
    assert given.x.grad is None, "nothing is left behind"


def test_table_says_what_was_measured(capsys):
    """Two rounds of made-up times: ours twice as fast as torch, at 1.5 floors."""
    bytes_ = 100
    times = {
        "normkit": Times(total=[3.75, 3.75], forward=[1.5, 1.5], backward=[2.25, 2.25]),
        "torch eager": Times(total=[7.5, 7.5]),
        "copy": Times(total=[1.0, 1.0]),
    }
    one = Measured("ln", "hidden", (8, 4), "compiled", bytes_, 2 * bytes_, 3 * bytes_, True, times)
    cuda_table.print_table(Result(Machine("0", "2", "a GPU", 1, 1 << 20), {"apex": "not installed"}, [one]))
    said = capsys.readouterr().out
    assert "2.00 (2.00-2.00)" in said
    assert said.count("1.50 (1.50-1.50)") == 2
    assert "without apex: not installed" in said
