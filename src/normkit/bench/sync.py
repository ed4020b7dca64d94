"""What it costs to share statistics: two processes over gloo, beside local batch norm and bare collectives.

All take turns within one run, in both processes at once. What a collective costs is mostly that a process waits
for the slower one; so the measure is a local step with two bare collectives, each after the pass it belongs to.
`run` measures, `print_table` shows, `to_json` keeps.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median, quantiles
from time import perf_counter
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

import normkit as nk
from normkit.bench.machine import Machine
from normkit.bench.table import columns, terminal
from normkit.errors import InputError

SHAPES = ((32, 64, 56, 56), (32, 256, 28, 28), (32, 512, 14, 14), (32, 2048, 7, 7), (16, 128, 28, 28))
LOCAL, SYNC, ALONE, BARE = "local", "synchronized", "one process", "local and collectives"
BOUND, BOUND_ALONE = 1.15, 1.25
SAMPLE = 4  # iterations
_WARM = 3  # rounds that agree on message lengths and fill caches


@dataclass(frozen=True)
class Sharing:
    """Seconds of a training step of one layer, by what was measured, a value per round."""

    size: tuple[int, ...]
    channels_last: bool
    times: dict[str, list[float]]

    def cost(self) -> list[float]:
        """Synchronized, over a local step with the two bare collectives in it."""
        return [a / b for a, b in zip(self.times[SYNC], self.times[BARE], strict=True)]

    def cost_alone(self) -> list[float]:
        """With a group of one process, over local."""
        return [a / b for a, b in zip(self.times[ALONE], self.times[LOCAL], strict=True)]


def run(shapes: Sequence[tuple[int, ...]] = SHAPES, rounds: int = 21) -> list[Sharing]:
    """Measure in two processes of one thread each.

    Raises:
        InputError: fewer than 2 rounds; torch has no gloo.
    """
    if rounds < 2:
        raise InputError(f"a spread takes 2 rounds or more, got rounds={rounds}")
    if not dist.is_available() or not dist.is_gloo_available():
        raise InputError("sharing statistics on the CPU takes gloo, and this torch has none")
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_process, (folder, list(shapes), rounds), nprocs=2)  # pyright: ignore
        return [Sharing(**entry) for entry in json.loads((Path(folder) / "result").read_text())]


def _process(rank: int, folder: str, shapes: list[tuple[int, ...]], rounds: int) -> None:
    torch.set_num_threads(1)
    if hasattr(os, "sched_setaffinity"):  # each on a core of its own, as launchers bind them
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[rank % len(cores)]})
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    groups = [dist.new_group([member]) for member in range(2)]
    result = [
        Sharing(shape, last, _measure(shape, last, groups[rank], rounds))
        for shape in shapes
        for last in (False, True)
    ]
    if rank == 0:
        (Path(folder) / "result").write_text(json.dumps([asdict(entry) for entry in result]))
    dist.barrier()
    dist.destroy_process_group()


def _measure(shape: tuple[int, ...], channels_last: bool, alone: Any, rounds: int) -> dict[str, list[float]]:
    memory = torch.channels_last if channels_last else torch.contiguous_format
    x, dy = (torch.randn(shape).contiguous(memory_format=memory) for _ in range(2))
    contenders = {
        LOCAL: _step(nk.BatchNorm2d(shape[1]), x, dy),
        SYNC: _step(nk.BatchNorm2d(shape[1], process_group="world"), x, dy),
        ALONE: _step(nk.BatchNorm2d(shape[1], process_group=alone), x, dy),
        BARE: _step(nk.BatchNorm2d(shape[1]), x, dy, *_collectives(2 * shape[1])),
    }
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for i in range(_WARM + rounds):
        for name, action in contenders.items():
            dist.barrier()  # what a process waits for the other is no cost of the layer
            start = perf_counter()
            for _ in range(SAMPLE):
                action()
            if i >= _WARM:
                times[name].append((perf_counter() - start) / SAMPLE)
    return times


def _step(
    layer: torch.nn.Module,
    x: torch.Tensor,
    dy: torch.Tensor,
    after_forward: Callable[[], object] = lambda: None,
    after_backward: Callable[[], object] = lambda: None,
) -> Callable[[], None]:
    x = x.detach().requires_grad_()

    def step() -> None:
        y = layer(x)
        after_forward()
        y.backward(dy)
        after_backward()
        x.grad = None
        layer.zero_grad()

    return step


def _collectives(length: int) -> tuple[Callable[[], object], Callable[[], object]]:
    """Of messages as long as those that carry the statistics of `length / 2` channels."""
    sent, received = torch.zeros(length, dtype=torch.float64), torch.zeros(2 * length, dtype=torch.float64)
    return lambda: dist.all_gather_single(received, sent), lambda: dist.all_reduce(sent)


def print_table(results: Sequence[Sharing]) -> None:
    """Print a run for a person: medians over the rounds, quartiles in brackets.

    Raises:
        MissingExtraError: rich is not installed.
    """
    console = terminal()
    console.print(str(Machine.here(1)))
    table = columns("input", "layout", *(f"{name} ms" for name in (LOCAL, BARE, SYNC)), f"cost of {BOUND}",
                    f"one process of {BOUND_ALONE}")  # fmt: skip
    for result in results:
        times = [f"{1e3 * median(result.times[name]):.2f}" for name in (LOCAL, BARE, SYNC)]
        layout = "channels_last" if result.channels_last else "contiguous"
        ratios = _spread(result.cost()), _spread(result.cost_alone())
        table.add_row("x".join(map(str, result.size)), layout, *times, *ratios)
    console.print(table)
    console.print(
        "Two processes. cost: synchronized over local with bare collectives; one process: a group of one over local."
    )


def to_json(results: Sequence[Sharing]) -> str:
    """Every time of every round."""
    return json.dumps([asdict(result) for result in results], indent=1)


def _spread(ratios: list[float]) -> str:
    low, _, high = quantiles(ratios, n=4)
    return f"{median(ratios):.2f} [{low:.2f}, {high:.2f}]"
