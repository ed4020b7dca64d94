"""One trial as workers take it, and what comes of it."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from typing import NoReturn, TypeAlias

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from normkit.lab.studies.study import Study, Subject, Trial
from normkit.lab.workers.task import Outcome as OutcomeOf
from normkit.lab.workers.task import Tell, perform


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

    def order(self) -> Task:
        """The same: a trial is measured whole, or again from its beginning."""
        return self

    def heard(self, message: object) -> NoReturn:
        """Nothing is told on the way."""
        raise AssertionError(f"a trial told {message!r}")

    def carry_out(self, shared: None, tell: Tell) -> str:
        """The result as JSON, measured with one thread and with every generator at 0: the same task has the same."""
        torch.set_num_threads(1)
        torch.manual_seed(0)
        np.random.seed(0)  # noqa: NPY002 - a user's model may draw from it
        random.seed(0)
        with threadpool_limits(1):  # of NumPy's and scikit-learn's libraries
            return json.dumps(self.study.measure(self.trial, self.subject), allow_nan=False)


Outcome: TypeAlias = OutcomeOf[Task]


def measure(task: Task) -> Outcome:
    """Take the measurement in this process."""
    return Outcome(task, *perform(task, None, task.heard))
