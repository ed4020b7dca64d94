"""One trial as a worker gets it, and what the worker gives back."""

from __future__ import annotations

import json
import random
import time
import traceback
from dataclasses import dataclass

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from normkit.errors import InputError, one_line
from normkit.lab.studies.study import Study, Subject, Trial


@dataclass(frozen=True)
class Task:
    """A trial of a study on a subject, under the name that it has in the store."""

    key: str
    study: Study
    trial: Trial
    subject: Subject

    def __str__(self) -> str:
        levels = ", ".join(f"{name} {level}" for name, level in self.trial.levels.items())
        return f"{self.study.name} ({levels}, seed {self.trial.seed})"


@dataclass(frozen=True)
class Outcome:
    """What came of a task: its result as JSON, or the one line that says why there is none."""

    task: Task
    result: str | None
    seconds: float
    problem: str = ""
    trace: str = ""  # of our own error, or of the user's code


def measure(task: Task) -> Outcome:
    """Take the measurement with one thread and with every generator at 0, as the same task always does."""
    torch.set_num_threads(1)
    started = time.perf_counter()
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002 - a user's model may draw from it
    random.seed(0)
    try:
        with threadpool_limits(1):  # of NumPy's and scikit-learn's libraries
            result = json.dumps(task.study.measure(task.trial, task.subject), allow_nan=False)
    except Exception as error:
        problem = str(error) if isinstance(error, InputError) else one_line(error)
        return Outcome(task, None, time.perf_counter() - started, problem, traceback.format_exc())
    return Outcome(task, result, time.perf_counter() - started)
