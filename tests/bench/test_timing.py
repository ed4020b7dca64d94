"""Contenders take turns, equally often, and nothing of the process is left changed."""

from __future__ import annotations

import gc
import itertools

import torch

from normkit.bench.timing import LEAST_SAMPLE, Contender, interleave, torch_threads


def test_contenders_take_turns_in_a_changing_order() -> None:
    calls: list[str] = []
    found = [Contender(name, lambda name=name: calls.append(name)) for name in "abc"]
    times = interleave(found, repeats=8)
    assert {name: len(one.total) for name, one in times.items()} == {"a": 8, "b": 8, "c": 8}
    # Each is calibrated first; then come the rounds, of which two can join where one ends as the next begins.
    turns = [name for name, _ in itertools.groupby(calls)]
    assert turns[:3] == ["a", "b", "c"]
    followers = set(itertools.pairwise(turns[3:]))
    assert followers == set(itertools.permutations("abc", 2))


def test_a_sample_is_many_iterations_of_something_short() -> None:
    count = itertools.count()
    times = interleave([Contender("short", lambda: next(count))], repeats=2)
    (total,) = (one.total for one in times.values())
    assert next(count) * max(total) >= LEAST_SAMPLE


def test_phases_are_timed_apart_and_within_the_total() -> None:
    steps: list[str] = []
    contender = Contender(
        "step",
        forward=lambda: steps.append("forward") or "y",
        backward=lambda y: steps.append(f"backward of {y}"),
        release=lambda: steps.append("release"),
    )
    times = interleave([contender], repeats=3)["step"]
    assert steps == ["forward", "backward of y", "release"] * (len(steps) // 3)
    assert len(times.total) == len(times.forward) == len(times.backward) == 3
    for total, forward, backward in zip(times.total, times.forward, times.backward, strict=True):
        assert min(forward, backward) > 0
        assert forward + backward <= total * (1 + 1e-9)  # the sum is rounded


def test_the_garbage_collector_is_off_meanwhile_and_on_after() -> None:
    states = set()
    interleave([Contender("look", lambda: states.add(gc.isenabled()))], repeats=2)
    assert states == {False}
    assert gc.isenabled()


def test_threads_are_put_back() -> None:
    before = torch.get_num_threads()
    with torch_threads(before + 1) as count:
        assert count == torch.get_num_threads() == before + 1
    with torch_threads(None) as count:
        assert count == before
    assert torch.get_num_threads() == before
