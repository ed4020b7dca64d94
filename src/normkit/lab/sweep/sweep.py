"""A sweep: the trials of studies, those measured that the store lacks, and what each study found."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch

import normkit
from normkit.lab.data import load
from normkit.lab.intervals import NoValuesError
from normkit.lab.studies.study import Finding, Result, Results, Scale, Study, Subject
from normkit.lab.sweep.task import Outcome, Task
from normkit.lab.sweep.trials import Trials
from normkit.lab.workers import pool
from normkit.lab.workers.interrupts import held

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Called with the trials done of all, and with what is under way.
OnProgress = Callable[[int, int, str], None]
# From tasks to their outcomes, in any order.
Runner = Callable[[Iterable[Task]], Generator[Outcome]]
VERSIONS = f"normkit {normkit.__version__}, torch {torch.__version__}"  # which decide the last bits


@dataclass(frozen=True)
class Plan:
    """Studies with their trials on a subject, all of it checked."""

    subject: Subject
    scale: Scale
    tasks: tuple[tuple[Study, tuple[Task, ...]], ...]

    @property
    def all(self) -> tuple[Task, ...]:
        """The tasks of all studies."""
        return tuple(task for _, tasks in self.tasks for task in tasks)


@dataclass(frozen=True)
class Report:
    """What came of one study: its finding, or the problems that stand against one."""

    study: Study
    results: Results
    finding: Finding | None
    problems: tuple[Outcome, ...]
    seconds: float  # of all its trials, one after the other

    @property
    def draw(self) -> Callable[[], Figure] | None:
        """What draws the study's figure; None where there is no effect to show."""
        if self.finding is None or not self.finding.effects:
            return None
        return lambda: self.study.figure(self.results)


def plan(studies: Sequence[Study], scale: Scale, subject: Subject | None = None) -> Plan:
    """Lay out the trials of studies; whatever could refuse them later is checked here.

    Raises:
        InputError: a subject that does not fit a study's design; the line says which property is missing.
    """
    subject = subject or Subject()
    for study in studies:
        study.check(subject)
    prints, located = fingerprint(subject), subject.located()
    tasks = [
        (
            study,
            tuple(
                Task(trial.key(study, subject, prints, VERSIONS), study, trial, located)
                for trial in study.trials(scale)
            ),
        )
        for study in studies
    ]
    return Plan(subject, scale, tuple(tasks))


def fingerprint(subject: Subject) -> str:
    """Of the data, and of the file that has the model: other content is another subject."""
    digests = [load(subject.data).fingerprint]
    where, _, _ = (subject.model or "").rpartition(":")
    if where.endswith(".py") and Path(where).is_file():
        digests.append(hashlib.sha256(Path(where).read_bytes()).hexdigest())
    return " ".join(digests)


def carry_out(
    plan: Plan,
    out: Path,
    *,
    workers: int | None = None,
    runner: Runner | None = None,
    on_progress: OnProgress | None = None,
) -> list[Report]:
    """Measure the trials of a plan that the store in `out` lacks, and judge each study.

    Interrupted and called again, it goes on where it stopped, to the same result.

    Args:
        plan: what to measure.
        out: the folder of the store.
        workers: processes on this machine; None: as many as it has cores. Trials that measure time run alone.
        runner: what measures the others in place of these processes.
        on_progress: told of every trial.
    """
    with Trials(out) as trials:
        problems = complete(plan, trials, workers=workers, runner=runner, on_progress=on_progress)
        measured = trials.results(plan.all)
    return judged(plan, measured, problems)


def complete(
    plan: Plan,
    trials: Trials,
    *,
    workers: int | None = None,
    runner: Runner | None = None,
    on_progress: OnProgress | None = None,
) -> list[Outcome]:
    """Measure what a store lacks of a plan, as `carry_out` does, and return what could not be measured."""
    progress = on_progress or (lambda done, total, what: None)
    measured = trials.results(plan.all)
    missing = [task for task in plan.all if task.key not in measured]
    together = [task for task in missing if not task.study.alone]
    alone = [task for task in missing if task.study.alone]
    problems: list[Outcome] = []
    done, total = len(plan.all) - len(missing), len(plan.all)
    progress(done, total, "")
    many = runner or partial(pool.run, workers=workers or len(os.sched_getaffinity(0)))
    for outcomes in (many(together), pool.run(alone, workers=1)):
        with closing(outcomes):
            for outcome in outcomes:
                done += 1
                if outcome.result is None:
                    problems.append(outcome)
                else:
                    with held():  # what is finished is kept
                        trials.record(outcome.task, outcome.result, outcome.seconds)
                progress(done, total, str(outcome.task))
    return problems


def judged(
    plan: Plan, measured: Mapping[str, tuple[Result, float]], problems: Sequence[Outcome] = ()
) -> list[Report]:
    """What the studies of a plan find in what was measured, by the keys of tasks."""
    return [_judged(study, tasks, measured, problems) for study, tasks in plan.tasks]


def _judged(
    study: Study,
    tasks: Sequence[Task],
    measured: Mapping[str, tuple[Result, float]],
    problems: Sequence[Outcome],
) -> Report:
    results = Results((task.trial, measured[task.key][0]) for task in tasks if task.key in measured)
    mine = tuple(outcome for outcome in problems if outcome.task.study.name == study.name)
    seconds = sum(measured[task.key][1] for task in tasks if task.key in measured)
    return Report(study, results, None if mine else _found(study, results), mine, seconds)


def _found(study: Study, results: Results) -> Finding:
    try:
        return study.judge(results)
    except NoValuesError:  # no rule says more of an arm that no seed got through
        return Finding("undecided", (), "Nothing to compare: every run, or every pair, of an arm diverged.")
