"""Ratios, geometric means, floors and verdicts, against computation by hand."""

from __future__ import annotations

import pytest

from normkit.bench.machine import Machine, last_level_cache
from normkit.bench.result import Measured, Result, Spread
from normkit.bench.summary import summarize
from normkit.bench.timing import Times


def measured(ours: Times, eager: Times, network: str = "A", beyond_cache: bool = False) -> Measured:
    """A batch norm of 1000 bytes whose copy takes 2 s: forward floor 2 s, backward floor 3 s."""
    return Measured(
        row="bn-f32",
        network=network,
        size=(2, 3),
        backend="by hand",
        tensor_bytes=1000,
        forward_bytes=2000,
        backward_bytes=3000,
        beyond_cache=beyond_cache,
        times={"normkit": ours, "torch eager": eager, "copy": Times([2.0, 2.0, 4.0])},
    )


def result(*found: Measured) -> Result:
    return Result(Machine("0", "0", "by hand", 1, 2**20), {}, list(found))


def test_ratios_are_formed_within_a_round() -> None:
    one = measured(Times([1.0, 2.0, 10.0]), Times([2.0, 6.0, 40.0]))
    assert one.speedup() == Spread(3.0, 2.5, 3.5)  # of 2, 3 and 4; the times' medians give 6 / 2 as well
    uneven = measured(Times([1.0, 2.0, 10.0]), Times([5.0, 6.0, 10.0]))
    assert uneven.speedup().median == 3.0  # of 5, 3 and 1
    assert one.speedup("JAX") is None


def test_floor_is_least_bytes_at_the_rate_of_the_copy() -> None:
    one = measured(Times([10.0, 15.0, 30.0], [4.0, 6.0, 8.0], [6.0, 9.0, 12.0]), Times([1.0, 1.0, 1.0]))
    assert one.over_floor().median == 3.0  # 10 / 5, 15 / 5, 30 / 10
    assert one.over_floor("forward").median == 2.0  # 4 / 2, 6 / 2, 8 / 4
    assert one.over_floor("backward").median == 2.0  # 6 / 3, 9 / 3, 12 / 6


def test_a_pass_alone_is_the_forward_pass() -> None:
    one = measured(Times([4.0, 6.0, 8.0]), Times([1.0, 1.0, 1.0]))
    evaluation = Measured(**{**vars(one), "row": "bn-eval", "backward_bytes": 0})
    assert evaluation.over_floor("forward") == evaluation.over_floor() == Spread(2.0, 2.0, 2.5)
    assert evaluation.over_floor("backward") is None


def test_geometric_mean_and_worst_shape() -> None:
    fast = measured(Times([1.0] * 3), Times([8.0] * 3))
    slow = measured(Times([1.0] * 3), Times([2.0] * 3), network="B")
    (row,) = summarize(result(fast, slow))
    assert row.speedups == {"torch eager": pytest.approx(4.0)}  # √(8 · 2)
    assert (row.worst.ratio, row.worst.where) == (2.0, "B 2x3")
    assert row.forward is None
    assert row.misses == []


def test_a_miss_says_by_how_much() -> None:
    one = measured(Times([10.0] * 3), Times([5.0] * 3))
    (row,) = summarize(result(one))
    assert row.misses == [
        "mean 0.50x of 2.5x (80% short)",
        "worst, A 2x3, 0.50x of 1.1x (55% short)",
    ]


def test_bounds_on_the_floor_hold_beyond_the_cache_alone() -> None:
    times = Times([10.0] * 3, [3.9] * 3, [6.0] * 3), Times([100.0] * 3)
    assert summarize(result(measured(*times)))[0].misses == []
    (row,) = summarize(result(measured(*times, beyond_cache=True)))
    assert row.forward.ratio == pytest.approx(1.95)  # 3.9 / 2
    assert row.misses == [
        "forward, A 2x3, 1.95 floors of 1.3 (50% over)",
        "backward, A 2x3, 2.00 floors of 1.5 (33% over)",
    ]


def test_last_level_cache_is_the_highest_level(tmp_path) -> None:
    for index, level, size in ((0, 1, "48K"), (1, 1, "32K"), (2, 2, "1024K"), (3, 3, "32768K")):
        folder = tmp_path / f"index{index}"
        folder.mkdir()
        (folder / "level").write_text(f"{level}\n")
        (folder / "size").write_text(f"{size}\n")
    assert last_level_cache(tmp_path) == 32 * 2**20
