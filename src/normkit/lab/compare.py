"""Does a norm help on this data? Plan the runs of a grid, train what is missing of them, compare."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

import normkit
from normkit.errors import InputError, unknown
from normkit.lab.comparison import Comparison, summarize
from normkit.lab.crew import Crew
from normkit.lab.data import Dataset, load
from normkit.lab.grid import OUT, Grid
from normkit.lab.models import MODELS, PLACEMENTS, build, check_ghosts, check_norm, least_batch, usual
from normkit.lab.records import Epoch, Record, Run, Settings
from normkit.lab.remote import Workers
from normkit.lab.scaling import SCALINGS, scale
from normkit.lab.store import Store
from normkit.lab.train import ALONE, OPTIMIZERS, train

# Called before each run (with workers once before all), without an epoch, and after each of its epochs, with the epochs
# done of the plan.
OnProgress = Callable[[int, Settings, "Epoch | None"], None]

_NAMED = 3  # of the runs that failed


class UnfinishedError(RuntimeError):
    """Runs that could not be trained, a line for each; what the store has of the others is kept."""

    def __init__(self, lines: list[str], of: int) -> None:
        more = [f"{len(lines) - _NAMED} more"] if len(lines) > _NAMED else []
        last = f"{len(lines)} of {of} runs are not finished, so nothing is compared; the same command tries them again"
        self.lines = [*lines[:_NAMED], *more, last]
        super().__init__("; ".join(self.lines))


@dataclass(frozen=True)
class Plan:
    """A grid with its data: what to train, in which order, all of it checked."""

    grid: Grid
    dataset: Dataset  # scaled
    settings: tuple[Settings, ...]

    @property
    def epochs(self) -> int:
        """Epochs of all runs together."""
        return len(self.settings) * self.grid.epochs

    @property
    def chance(self) -> float:
        """Validation accuracy of the best constant answer: the share of the most frequent class."""
        return float(np.bincount(self.dataset.y_val).max()) / len(self.dataset.y_val)


def compare(grid: Grid | None = None, out: Path = OUT, on_progress: OnProgress | None = None) -> Comparison:
    """Train the runs of a grid that `out` lacks, and compare them all.

    Interrupted and called again, it goes on where it stopped, to the same result.

    Raises:
        InputError: a setting, data, device or folder that cannot be used; nothing is written then.
    """
    check_out(out)
    return carry_out(plan(grid or Grid()), out, on_progress)


def plan(grid: Grid, processes: int = 1) -> Plan:
    """Load the data of a grid and lay out its runs; whatever could refuse them later is checked here.

    Seeds are the outermost loop: what the machine does meanwhile falls on every norm alike, and an
    interrupted comparison has whole seeds.

    Args:
        grid: what to compare.
        processes: that train each run together.
    """
    _check_names(grid)
    _check_device(grid.device)
    dataset = scale(grid.input_scaling, load(grid.data))
    norms = _norms(grid, dataset)
    least = max(map(least_batch, norms))
    if not least <= grid.batch_size <= len(dataset.x_train):
        raise InputError(
            f"--batch-size must be {least} to {len(dataset.x_train)}, the training samples of {grid.data}, "
            f"got {grid.batch_size}"
        )
    if processes > 1:
        _check_crew(grid, norms, processes)
    for norm in norms:
        check_ghosts(norm, grid.batch_size, len(dataset.x_train))
    settings = tuple(
        _settings(grid, dataset, norm, lr, seed, processes)
        for seed in range(grid.seeds)
        for norm in norms
        for lr in dict.fromkeys(grid.lr)
    )
    result = Plan(grid, dataset, settings)
    if grid.target is not None and grid.target <= result.chance:
        raise InputError(f"--target must be above chance, {result.chance:.3f} here, got {grid.target:g}")
    return result


def carry_out(
    plan: Plan,
    out: Path,
    on_progress: OnProgress | None = None,
    crew: Crew = ALONE,
    workers: Workers | None = None,
) -> Comparison:
    """Train the runs of a plan that the store in `out` lacks, and compare them all.

    In a crew every process calls it, and the first one alone opens the store. With workers this process trains
    nothing, and records what they train.

    Raises:
        UnfinishedError: runs that workers could not train.
    """
    with Store(out) if crew.leads else nullcontext() as store:
        if workers is not None:
            assert store is not None
            runs = complete_by(workers, plan, store, on_progress)
        else:
            runs = complete(plan, store, on_progress, crew)
    samples = len(plan.dataset.y_val)
    return summarize(runs, samples=samples, chance=plan.chance, target=plan.grid.target)


def complete(
    plan: Plan, store: Store | None, on_progress: OnProgress | None = None, crew: Crew = ALONE
) -> list[Run]:
    """All runs of a plan, those trained that the store lacks; of a crew, the first process alone has a store."""
    report = on_progress or (lambda done, settings, epoch: None)
    runs: list[Run] = []
    for index, settings in enumerate(plan.settings):
        before = index * plan.grid.epochs
        known = store.run(settings) if store else None
        report(before + (len(known.epochs) if known else 0), settings, None)

        def on_epoch(settings: Settings, epoch: Epoch, before: int = before) -> None:
            report(before + epoch.number, settings, epoch)

        runs.append(train(settings, plan.dataset, store, on_epoch, crew))
    return runs


def complete_by(
    workers: Workers, plan: Plan, store: Store, on_progress: OnProgress | None = None
) -> list[Run]:
    """All runs of a plan, those trained by workers that the store lacks.

    Raises:
        UnfinishedError: runs that could not be trained; all others are in the store.
    """
    report = on_progress or (lambda done, settings, epoch: None)
    known = {settings: store.run(settings) for settings in plan.settings}
    passed = {settings: _passed(run.epochs[-1], settings) if run else 0 for settings, run in known.items()}
    done = sum(passed.values())

    def on_record(record: Record) -> None:
        nonlocal done
        settings = record.settings
        for epoch in record.epochs:
            before, passed[settings] = passed[settings], _passed(epoch, settings)
            done += passed[settings] - before
            report(done, settings, epoch)

    missing = [settings for settings, run in known.items() if run is None or run.status == "unfinished"]
    report(done, (missing or plan.settings)[0], None)
    failed = workers.train(missing, plan.dataset, store, on_record)
    if failed:
        raise UnfinishedError([f"{outcome.task}: {outcome.problem}" for outcome in failed], len(known))
    return [run for settings in plan.settings if (run := store.run(settings))]


def _passed(last: Epoch, settings: Settings) -> int:
    """Epochs of the plan that are over after this one: a run that diverges has no more."""
    return settings.epochs if last.diverged else last.number


def check_out(out: Path) -> None:
    """Refuse a folder that cannot be made or written, before hours are spent on what goes there."""
    nearest = next(path for path in (out, *out.parents) if path.exists())
    if not nearest.is_dir():
        raise InputError(f"--out {out} must be a folder, but {nearest} is a file")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise InputError(f"--out {out} cannot be written: no permission in {nearest}")


def _check_names(grid: Grid) -> None:
    """Before the data is loaded, which may be a download."""
    if ".py" in grid.model:
        raise InputError(
            f"--model of compare must be one of {', '.join(MODELS)}, got {grid.model}: your own network goes to "
            f"`normkit study regularisation fewer-steps --model {grid.model}`"
        )
    for kind, name, valid in (
        ("model", grid.model, MODELS),
        ("placement", grid.placement, PLACEMENTS),
        ("input scaling", grid.input_scaling, SCALINGS),
        ("optimizer", grid.optimizer, OPTIMIZERS),
    ):
        if name not in valid:
            raise unknown(kind, name, valid)
    for norm in grid.norms:
        check_norm(norm)


def _check_crew(grid: Grid, norms: tuple[str, ...], processes: int) -> None:
    if grid.batch_size < 2 * processes:
        raise InputError(
            f"--batch-size must be two or more for each of {processes} processes, got {grid.batch_size}"
        )
    for norm in norms:
        if norm == "adaptive":
            raise InputError(
                "adaptive norm takes statistics in evaluation, which each process does whole: use one"
            )


def _check_device(name: str) -> None:
    try:
        kind = torch.zeros(1, device=name).device.type
    except (RuntimeError, AssertionError) as refusal:
        reason = str(refusal).splitlines()[0]
        raise InputError(f"--device {name} is not available ({reason}): use cpu") from refusal
    if kind not in ("cpu", "cuda"):
        raise InputError(f"--device must be cpu or cuda, got {name}")


def _norms(grid: Grid, dataset: Dataset) -> tuple[str, ...]:
    """The norms asked for, without any the model's usual ones; the model must take each, and the data."""
    norms = tuple(dict.fromkeys(grid.norms or usual(grid.model)))
    for norm in norms:
        with torch.device("meta"):  # names and shapes are checked, no weight is made
            build(
                grid.model,
                norm=norm,
                placement=grid.placement,
                input_shape=dataset.x_train.shape[1:],
                classes=dataset.classes,
                dropout=grid.dropout,
            )
    return norms


def _settings(grid: Grid, dataset: Dataset, norm: str, lr: float, seed: int, processes: int) -> Settings:
    return Settings(
        data=grid.data,
        data_fingerprint=dataset.fingerprint,
        model=grid.model,
        norm=norm,
        placement=grid.placement,
        input_scaling=grid.input_scaling,
        batch_size=grid.batch_size,
        lr=lr,
        optimizer=grid.optimizer,
        dropout=grid.dropout,
        weight_decay=grid.weight_decay,
        epochs=grid.epochs,
        seed=seed,
        device=grid.device,
        threads=grid.threads,
        versions=f"normkit {normkit.__version__}, torch {torch.__version__}",
        processes=processes,
    )
