"""A tiny configuration, run for real: who is there, what is recorded, what is printed. No time is judged."""

from __future__ import annotations

import importlib.util
import json
import math

import pytest
import torch

import normkit as nk
from normkit.bench import speed
from normkit.bench.result import Result, from_json, to_json
from normkit.bench.table import print_table
from normkit.errors import InputError

ROWS = ("bn-add-relu", "bn-eval", "rms-bf16", "steps")


@pytest.fixture(scope="module")
def result() -> Result:
    progress = []
    found = speed.run(
        rows=ROWS,
        networks=("tiny",),
        threads=1,
        repeats=2,
        quick=True,
        on_progress=lambda *what: progress.append(what),
    )
    assert [(done, total) for done, total, _ in progress] == [(i, 6) for i in range(6)]
    return found


def test_every_contender_runs_or_says_why_not(result: Result) -> None:
    for one in result.measured:
        if one.row == "steps":
            assert set(one.times) == {"normkit", "torch eager"}
            continue
        peers = {"torch eager", "torch.compile", "JAX"} - set(result.absent)
        assert set(one.times) == {"normkit", "copy", *peers}
    assert "torch.compile" not in result.absent, result.absent
    assert importlib.util.find_spec("jax") or result.absent["JAX"] == "not installed"


def test_every_round_is_recorded(result: Result) -> None:
    assert [one.row for one in result.measured] == ["bn-add-relu", "bn-eval", "rms-bf16", *["steps"] * 3]
    for one in result.measured:
        for name, times in one.times.items():
            apart = one.row in {"bn-add-relu", "rms-bf16"} and name not in {"copy", "JAX"}
            assert len(times.total) == 2
            assert len(times.forward) == len(times.backward) == (2 if apart else 0)
            assert all(time > 0 for time in (*times.total, *times.forward, *times.backward))


def test_ratios_are_finite_and_positive(result: Result) -> None:
    for one in result.measured:
        spreads = [one.speedup(peer) for peer in one.times if peer not in {"normkit", "copy"}]
        if one.row != "steps":
            spreads += [one.over_floor(), one.over_floor("forward")]
        for spread in spreads:
            assert 0 < spread.low <= spread.median <= spread.high < math.inf


def test_it_says_which_kernels_ran_and_on_what(result: Result) -> None:
    assert {one.backend for one in result.measured} <= {
        nk.kernels.explain(torch.empty(8, 16, 4, 4, dtype=dtype)) for dtype in (torch.float32, torch.bfloat16)
    }
    assert result.machine.threads == 1
    assert not any(one.beyond_cache for one in result.measured)


def test_json_round_trip(result: Result) -> None:
    text = to_json(result)
    assert from_json(text) == result
    plain = json.loads(text)
    assert set(plain) == {"machine", "absent", "measured"}
    assert set(plain["measured"][0]) == {
        "row", "network", "size", "backend", "tensor_bytes", "forward_bytes", "backward_bytes",
        "beyond_cache", "times",
    }  # fmt: skip


def test_the_table_has_every_measurement_and_last_the_rows(result: Result, capsys) -> None:
    print_table(result)
    text = capsys.readouterr().out
    for words in ("tiny 8x16x4x4", "ResNet-18 8x3x96x96", "torch eager", "torch.compile", "geometric mean"):
        assert words in text
    for title in ("BN+add+ReLU f32", "BN evaluation f32", "RMS bf16"):
        assert text.rindex(title) > text.index("geometric mean")
    assert "kernels: " in text
    assert all(f"without {peer}: {reason}" in text for peer, reason in result.absent.items())


def test_nothing_of_the_process_is_changed(result: Result) -> None:
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    speed.run(rows=("ln-f32",), networks=("tiny",), threads=1, repeats=2)
    assert torch.equal(state, torch.get_rng_state())
    assert torch.get_num_threads() == threads
    assert torch.is_grad_enabled()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"rows": ("bn-f23",)}, "did you mean 'bn-f32'"),
        ({"networks": ("ResNet-5",)}, "did you mean 'ResNet-50'"),
        ({"rows": ("ln-f32",), "networks": ("VGG-16",)}, "no shape of VGG-16 belongs to ln-f32"),
        ({"repeats": 1}, "a spread takes 2 rounds or more, got repeats=1"),
        ({"threads": 0}, "threads must be 1 or more, got 0"),
    ],
)
def test_bad_input_gets_one_line(options, words: str) -> None:
    with pytest.raises(InputError) as failure:
        speed.run(**options)
    assert words in str(failure.value)
    assert "\n" not in str(failure.value)
