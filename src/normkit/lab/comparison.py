"""From finished runs to what they show: a row per norm, each norm against the baseline, and one sentence."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

from normkit.lab.intervals import (
    CONFIDENCE,
    Estimate,
    StepsToTarget,
    mean_interval,
    paired_difference,
    paired_ratio,
)
from normkit.lab.records import Measurement, Run, Settings

Verdict = Literal["supported", "contradicted", "undecided"]
Bound = Literal["", "at most ", "at least "]

# The default target lies this far from chance to the best norm's median final accuracy.
TARGET_SHARE = 0.95


@dataclass(frozen=True)
class Row:
    """One norm at one learning rate: what its runs measured, as estimates over the seeds.

    A diverged run never reaches the target and has no final values: the estimates are over the others, and
    `diverged` says how many are left out.
    """

    norm: str
    lr: float
    runs: tuple[Run, ...]  # by seed
    diverged: int
    steps: StepsToTarget
    accuracy: Estimate | None  # final, on the validation split, in [0, 1]
    loss: Estimate | None  # final, on the validation split
    gap: Estimate | None  # final accuracy, training minus validation, in percentage points
    loss_gap: Estimate | None  # final loss, validation minus training
    milliseconds: Estimate | None  # per optimizer step, of the median epoch; see `Comparison.timed`
    best: bool = False  # the learning rate of this norm with the lowest final validation loss


@dataclass(frozen=True)
class Contrast:
    """One norm against the baseline, each at its best learning rate, paired by seed.

    The intervals of all contrasts hold together with 95% confidence (Bonferroni).
    """

    norm: str
    steps_ratio: Estimate | None  # None where both have runs that never reached the target
    bound: Bound  # what the ratio is where one of the two has such runs
    gap_difference: Estimate | None  # percentage points
    fewer_steps: Verdict  # claim C1
    smaller_gap: Verdict  # claim C7


@dataclass(frozen=True)
class Comparison:
    """What a grid of runs shows."""

    settings: Settings  # shared by all runs; its norm, lr and seed are those of the first
    chance: float  # validation accuracy of the best constant answer
    target: float  # validation accuracy that steps are counted to
    learned: bool  # whether any norm did better than chance
    rows: tuple[Row, ...]
    contrasts: tuple[Contrast, ...]
    baseline: str

    @property
    def trained(self) -> bool:
        """Whether any run came to its end: false where all diverged."""
        return any(row.diverged < len(row.runs) for row in self.rows)

    @property
    def timed(self) -> bool:
        """Whether each run had the machine to itself, so that times per step tell something."""
        return not any(epoch.shared for row in self.rows for run in row.runs for epoch in run.epochs)

    @property
    def best_rows(self) -> tuple[Row, ...]:
        """One row per norm, at its best learning rate."""
        return tuple(row for row in self.rows if row.best)

    @property
    def seeds(self) -> int:
        """How many seeds each row has."""
        return len(self.rows[0].runs)


def summarize(runs: Iterable[Run], *, samples: int, chance: float, target: float | None = None) -> Comparison:
    """Compare finished runs that differ in norm, learning rate and seed alone.

    Without `target`, steps are counted to chance + 0.95 (best - chance), `best` being the highest median
    final validation accuracy of any row; the same target holds for all. The baseline is `none` where it was
    run, else the first norm. `samples` are those of the validation split: what an accuracy is counted in.
    """
    groups: dict[tuple[str, float], list[Run]] = {}
    for run in runs:
        if run.status == "unfinished":
            raise ValueError(f"only finished runs can be compared, got {run.settings}")
        groups.setdefault((run.settings.norm, run.settings.lr), []).append(run)
    grouped = [sorted(group, key=lambda run: run.settings.seed) for group in groups.values()]
    best = max(_median_accuracy(group, chance) for group in grouped)
    if target is None:
        target = chance + TARGET_SHARE * max(best - chance, 0.0)
    limit = max(sum(epoch.steps for epoch in run.epochs) for group in grouped for run in group)
    rows = _mark_best([_row(group, target, chance, limit, samples) for group in grouped])
    chosen = [row for row in rows if row.best]
    baseline = next((row for row in chosen if row.norm == "none"), chosen[0])
    others = [row for row in chosen if row is not baseline]
    return Comparison(
        settings=grouped[0][0].settings,
        chance=chance,
        target=target,
        learned=best > chance,
        rows=tuple(rows),
        contrasts=tuple(_contrast(row, baseline, samples, len(others)) for row in others),
        baseline=baseline.norm,
    )


def final(run: Run) -> Measurement:
    """The last measurement of a run."""
    return run.epochs[-1].measurements[-1]


def _median_accuracy(group: Sequence[Run], chance: float) -> float:
    return statistics.median(chance if run.status == "diverged" else final(run).val_accuracy for run in group)


def _steps_to(run: Run, target: float, chance: float) -> int | None:
    measured = (m for epoch in run.epochs for m in epoch.measurements if m.step > 0)
    return next((m.step for m in measured if m.val_accuracy >= target and m.val_accuracy > chance), None)


def _every(group: Sequence[Run]) -> int:
    """The most steps from one measurement to the next: what a count of steps is uncertain by."""
    looks = [[0, *(m.step for epoch in run.epochs for m in epoch.measurements)] for run in group]
    return max((b - a for steps in looks for a, b in pairwise(steps)), default=0)


def _row(group: Sequence[Run], target: float, chance: float, limit: int, samples: int) -> Row:
    lasts = [final(run) for run in group if run.status != "diverged"]
    times = [
        1e3 * statistics.median(epoch.seconds / epoch.steps for epoch in run.epochs)
        for run in group
        if run.status != "diverged"
    ]

    def estimate(values: list[float], resolution: float = 0.0) -> Estimate | None:
        return mean_interval(values, resolution=resolution) if values else None

    return Row(
        norm=group[0].settings.norm,
        lr=group[0].settings.lr,
        runs=tuple(group),
        diverged=len(group) - len(lasts),
        steps=StepsToTarget(tuple(_steps_to(run, target, chance) for run in group), limit, _every(group)),
        accuracy=estimate([m.val_accuracy for m in lasts], 1 / samples),
        loss=estimate([m.val_loss for m in lasts]),
        gap=estimate([gap(m) for m in lasts], _gap_resolution(samples)),
        loss_gap=estimate([m.val_loss - m.train_loss for m in lasts]),
        milliseconds=estimate(times),
    )


def gap(m: Measurement) -> float:
    """Training accuracy minus validation accuracy, in percentage points."""
    return 100 * (m.train_accuracy - m.val_accuracy)


def _gap_resolution(samples: int) -> float:
    """Both accuracies of a gap are counted in as many samples, and their uncertainties add as squares."""
    return math.sqrt(2) * 100 / samples


def _mark_best(rows: Sequence[Row]) -> list[Row]:
    def badness(row: Row) -> tuple[int, float]:  # a diverged run is worse than any loss
        return row.diverged, row.loss.mean if row.loss else float("inf")

    best: dict[str, Row] = {}
    for row in rows:
        if row.norm not in best or badness(row) < badness(best[row.norm]):
            best[row.norm] = row
    return [replace(row, best=row is best[row.norm]) for row in rows]


def _contrast(row: Row, baseline: Row, samples: int, contrasts: int) -> Contrast:
    confidence = 1 - (1 - CONFIDENCE) / contrasts
    ratio, bound = _steps_ratio(row.steps, baseline.steps, confidence)
    difference = _gap_difference(row, baseline, samples, confidence)
    return Contrast(
        norm=row.norm,
        steps_ratio=ratio,
        bound=bound,
        gap_difference=difference,
        fewer_steps=_verdict(ratio, no_difference=1.0, bound=bound),
        smaller_gap=_verdict(difference, no_difference=0.0),
    )


def _steps_ratio(
    norm: StepsToTarget, baseline: StepsToTarget, confidence: float
) -> tuple[Estimate | None, Bound]:
    """The ratio, or what the limit in the place of the missing values makes of it: a bound on one side."""
    if not norm.complete and not baseline.complete:
        return None, ""
    every = max(norm.every, baseline.every)
    ratio = paired_ratio(norm.lower_bounds, baseline.lower_bounds, confidence, every=every)
    if not baseline.complete:
        return ratio, "at most "
    return ratio, "at least " if not norm.complete else ""


def _gap_difference(row: Row, baseline: Row, samples: int, confidence: float) -> Estimate | None:
    pairs = [
        (gap(final(a)), gap(final(b)))
        for a, b in zip(row.runs, baseline.runs, strict=True)
        if "diverged" not in (a.status, b.status)
    ]
    if not pairs:
        return None
    ours, theirs = ([pair[side] for pair in pairs] for side in (0, 1))
    return paired_difference(ours, theirs, confidence, resolution=_gap_resolution(samples))


def _verdict(estimate: Estimate | None, no_difference: float, bound: str = "") -> Verdict:
    if estimate is None:
        return "undecided"
    if estimate.below(no_difference) and bound != "at least ":
        return "supported"
    if estimate.above(no_difference) and bound != "at most ":
        return "contradicted"
    return "undecided"
