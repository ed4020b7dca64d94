"""Time several contenders in one interleaved run, so that what else the machine does hits all alike."""

from __future__ import annotations

import gc
import math
import random
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import perf_counter_ns
from typing import Any

import torch

LEAST_SAMPLE = 2e-3  # seconds: a sample repeats its contender until it takes at least this long


def _nothing() -> None:
    pass


@dataclass(frozen=True)
class Contender:
    """Something to time: a forward pass, and where it has one the backward pass of its output.

    `release` ends an iteration: it drops the gradients.
    """

    name: str
    forward: Callable[[], Any]
    backward: Callable[[Any], object] | None = None
    release: Callable[[], None] = _nothing


@dataclass(frozen=True)
class Times:
    """Seconds per iteration, a value per round.

    `total` is all of it; `forward` and `backward` its parts, empty where only the whole can be timed. The
    freeing of output and gradients is in the total, and in neither part.
    """

    total: list[float] = field(default_factory=list[float])
    forward: list[float] = field(default_factory=list[float])
    backward: list[float] = field(default_factory=list[float])


def interleave(contenders: Sequence[Contender], repeats: int) -> dict[str, Times]:
    """Time each contender once per round, for so many rounds, in an order drawn anew in each.

    Before the first round each is warmed up, and its iterations per sample are chosen. The garbage collector
    is off while the clock runs.
    """
    times = {contender.name: Times() for contender in contenders}
    order = random.Random(0)
    with _no_garbage_collection():
        iterations = [_calibrate(contender) for contender in contenders]
        turns = list(zip(contenders, iterations, strict=True))
        for _ in range(repeats):
            order.shuffle(turns)  # or each would always find the caches as the same one left them
            for contender, count in turns:
                _sample(contender, count, times[contender.name])
    return times


def _calibrate(contender: Contender) -> int:
    """Iterations that take a sample's least time; the first ones compile, fault pages and fill caches."""
    iterations = 1
    _sample(contender, iterations, Times())
    while True:
        times = Times()
        _sample(contender, iterations, times)
        (each,) = times.total
        if each * iterations >= LEAST_SAMPLE:
            return iterations
        iterations = max(2 * iterations, math.ceil(LEAST_SAMPLE / each))


def _sample(contender: Contender, iterations: int, times: Times) -> None:
    forward, backward, release = contender.forward, contender.backward, contender.release
    if backward is None:
        start = perf_counter_ns()
        for _ in range(iterations):
            forward()
        times.total.append((perf_counter_ns() - start) / iterations / 1e9)
        return
    in_forward = in_backward = 0
    start = perf_counter_ns()
    for _ in range(iterations):
        before = perf_counter_ns()
        y = forward()
        between = perf_counter_ns()
        backward(y)
        after = perf_counter_ns()
        in_forward += between - before
        in_backward += after - between
        del y
        release()
    times.total.append((perf_counter_ns() - start) / iterations / 1e9)
    times.forward.append(in_forward / iterations / 1e9)
    times.backward.append(in_backward / iterations / 1e9)


@contextmanager
def _no_garbage_collection() -> Generator[None]:
    gc.collect()
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@contextmanager
def torch_threads(count: int | None) -> Generator[int]:
    """Run with so many threads of torch, and put back what was; None leaves them."""
    before = torch.get_num_threads()
    torch.set_num_threads(before if count is None else count)
    try:
        yield torch.get_num_threads()
    finally:
        torch.set_num_threads(before)
