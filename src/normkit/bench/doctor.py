"""What a diagnosis costs: the probe of ResNet-18 over some batches, beside training passes over the same batches.

`run` measures, `print_table` shows, `to_json` keeps.
"""

from __future__ import annotations

import json
import resource
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from statistics import median, quantiles
from time import perf_counter

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from normkit.bench.machine import Machine
from normkit.bench.steps import build
from normkit.bench.table import columns, terminal
from normkit.doctor.probe import probe
from normkit.errors import InputError

BATCHES, SIZE = 8, (8, 3, 96, 96)
BOUND = 3.0


@dataclass(frozen=True)
class Cost:
    """Seconds, a value per round; `memory` is by how much the peak of the process rose, in bytes, from probes of
    so many batches to one of four times as many.
    """

    batches: int
    size: tuple[int, ...]
    trained: bool  # whether running statistics were the data's; else each norm is switched too
    plain: list[float]
    probed: list[float]
    memory: int

    def ratios(self) -> list[float]:
        """Probe over plain forward and backward passes."""
        return [b / a for a, b in zip(self.plain, self.probed, strict=True)]


def run(rounds: int = 5, batches: int = BATCHES, size: tuple[int, ...] = SIZE) -> list[Cost]:
    """Measure a model whose statistics are the data's, and one whose are not.

    Raises:
        InputError: fewer than 2 rounds.
    """
    if rounds < 2:
        raise InputError(f"a spread takes 2 rounds or more, got rounds={rounds}")
    return [_measure(trained, rounds, batches, size) for trained in (True, False)]


def _measure(trained: bool, rounds: int, batches: int, size: tuple[int, ...]) -> Cost:
    generator = torch.Generator().manual_seed(0)
    data = [
        (torch.randn(size, generator=generator), torch.randint(1000, (size[0],), generator=generator))
        for _ in range(batches)
    ]
    model = build("ResNet-18", nn.BatchNorm2d)
    for _ in range(4 if trained else 0):
        for x, _ in data:
            model(x)
    for _ in range(3):  # until the allocator has what it keeps, fragments included
        probe(model, data, F.cross_entropy, None)
    before = _peak()
    probe(model, data * 4, F.cross_entropy, None)
    memory = _peak() - before
    plain: list[float] = []
    probed: list[float] = []
    for _ in range(rounds):
        plain.append(_seconds(lambda: _passes(model, data)))
        probed.append(_seconds(lambda: probe(model, data, F.cross_entropy, None)))
    return Cost(batches, size, trained, plain, probed, memory)


def _passes(model: nn.Module, data: Sequence[tuple[Tensor, Tensor]]) -> None:
    for x, y in data:
        model.zero_grad()
        F.cross_entropy(model(x), y).backward()


def _seconds(action: Callable[[], object]) -> float:
    start = perf_counter()
    action()
    return perf_counter() - start


def _peak() -> int:
    """Most memory that the process held, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def print_table(costs: Sequence[Cost]) -> None:
    """Print a run for a person: medians over the rounds, quartiles in brackets.

    Raises:
        MissingExtraError: rich is not installed.
    """
    console = terminal()
    console.print(str(Machine.here(torch.get_num_threads())))
    table = columns(
        "ResNet-18", "batches", "plain s", "probe s", f"cost of {BOUND:g}", "memory, 4 times the batches"
    )
    for cost in costs:
        low, _, high = quantiles(cost.ratios(), n=4)
        table.add_row(
            "statistics of the data" if cost.trained else "stale statistics",
            f"{cost.batches} of {'x'.join(map(str, cost.size))}",
            f"{median(cost.plain):.2f}",
            f"{median(cost.probed):.2f}",
            f"{median(cost.ratios()):.2f} [{low:.2f}, {high:.2f}]",
            f"+{cost.memory / 2**20:.1f} MiB",
        )
    console.print(table)
    console.print(
        "plain: forward and backward passes over the same batches. With stale statistics, norms are switched too."
    )


def to_json(costs: Sequence[Cost]) -> str:
    """Every time of every round."""
    return json.dumps([asdict(cost) for cost in costs], indent=1)
