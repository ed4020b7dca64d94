"""What store and progress cost: short runs of a comparison and the quick run of a study, beside the same without them.

Both take turns within one process. The shorter the epochs and the trials, the more of them they take, so these are the
shortest that the lab has: a small network on `digits`, and trials of some ten milliseconds. `run` measures,
`print_table` shows, `to_json` keeps.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median, quantiles
from time import perf_counter, process_time

import torch

from normkit.bench.machine import Machine
from normkit.bench.table import columns, terminal
from normkit.errors import InputError
from normkit.lab import compare
from normkit.lab.grid import Grid
from normkit.lab.store import Store
from normkit.lab.studies import find
from normkit.lab.sweep import sweep
from normkit.lab.sweep.task import Outcome, Task, measure
from normkit.lab.sweep.trials import Trials
from normkit.lab.train import ALONE, Session, conditions

GRID = Grid(norms=("none", "batch"), seeds=1)
STUDY = "parameter-scale"
BOUND = 1.03

# Opens a bar, which is moved by what is done of all, and what is under way.
Bar = Callable[[], AbstractContextManager[Callable[[int, int, str], None]]]


@dataclass(frozen=True)
class Keeping:
    """Seconds of the same work, with store and progress and without; a value per round."""

    what: str
    bare: list[float]
    kept: list[float]
    bare_processor: list[
        float
    ]  # of all threads: what else the machine does is not in it, nor is waiting for the disk
    kept_processor: list[float]

    def cost(self) -> list[float]:
        """With over without, by the clock."""
        return [b / a for a, b in zip(self.bare, self.kept, strict=True)]

    def processor_cost(self) -> list[float]:
        """With over without, in processor time."""
        return [b / a for a, b in zip(self.bare_processor, self.kept_processor, strict=True)]


def run(
    folder: Path, bar: Bar, rounds: int = 11, grid: Grid = GRID, trials: int | None = None
) -> list[Keeping]:
    """Measure runs of a grid and the trials of a study.

    Args:
        folder: for the stores; what it costs to wait for the disk depends on where it is.
        bar: opens a bar.
        rounds: turns of each.
        grid: the runs.
        trials: how many of them; None: all of the quick run.

    Raises:
        InputError: fewer than 2 rounds.
    """
    if rounds < 2:
        raise InputError(f"a spread takes 2 rounds or more, got rounds={rounds}")
    runs, some = compare.plan(grid), _first(trials)
    return [
        _measure(
            f"{grid.model} on {grid.data}, {runs.epochs} epochs",
            lambda: _train(runs),
            lambda out: _train_and_keep(runs, out, bar),
            folder,
            rounds,
        ),
        _measure(
            f"{len(some.all)} trials of {STUDY}",
            lambda: [*_here(some.all)],
            lambda out: _try_and_keep(some, out, bar),
            folder,
            rounds,
        ),
    ]


def _measure(
    what: str, bare: Callable[[], object], kept: Callable[[Path], object], folder: Path, rounds: int
) -> Keeping:
    found = Keeping(what, [], [], [], [])
    for i in range(1 + rounds):  # the first one fills caches
        with tempfile.TemporaryDirectory(dir=folder) as out:
            turns = [
                (bare, found.bare, found.bare_processor),
                (lambda out=out: kept(Path(out)), found.kept, found.kept_processor),
            ]
            for action, seconds, processor in turns if i % 2 else reversed(turns):
                started, before = perf_counter(), process_time()
                action()
                if i:
                    seconds.append(perf_counter() - started)
                    processor.append(process_time() - before)
    return found


def _train(plan: compare.Plan) -> None:
    """Its runs as `train` does them, and nothing else."""
    device = torch.device(plan.grid.device)
    for settings in plan.settings:
        with conditions(settings.threads, device):
            session = Session(settings, plan.dataset, device, ALONE)
            for number in range(settings.epochs):
                session.epoch(number + 1)


def _train_and_keep(plan: compare.Plan, out: Path, bar: Bar) -> None:
    with bar() as move, Store(out) as store:
        compare.complete(
            plan, store, lambda done, settings, epoch: move(done, plan.epochs, f"{settings.norm} {epoch}")
        )


def _try_and_keep(plan: sweep.Plan, out: Path, bar: Bar) -> None:
    with bar() as move, Trials(out) as trials:
        sweep.complete(plan, trials, runner=_here, on_progress=move)


def _here(tasks: Iterable[Task]) -> Generator[Outcome]:
    """In this process: workers would start anew each time."""
    yield from map(measure, tasks)


def _first(trials: int | None) -> sweep.Plan:
    plan = sweep.plan([find(STUDY)], "quick")
    return replace(plan, tasks=tuple((study, tasks[:trials]) for study, tasks in plan.tasks))


def print_table(results: Sequence[Keeping]) -> None:
    """Print a run for a person: medians over the rounds, quartiles in brackets.

    Raises:
        MissingExtraError: rich is not installed.
    """
    console = terminal()
    console.print(str(Machine.here(1)))
    table = columns("work", "bare s", "kept s", f"cost of {BOUND:g}", "in processor time")
    for one in results:
        times = (f"{median(values):.2f}" for values in (one.bare, one.kept))
        table.add_row(one.what, *times, _spread(one.cost()), _spread(one.processor_cost()))
    console.print(table)
    console.print(
        "kept: with store and progress. Where the machine does other things too, processor time says more."
    )


def to_json(results: Sequence[Keeping]) -> str:
    """Every time of every round."""
    return json.dumps([asdict(result) for result in results], indent=1)


def _spread(ratios: list[float]) -> str:
    low, _, high = quantiles(ratios, n=4)
    return f"{median(ratios):.3f} [{low:.3f}, {high:.3f}]"
