"""The store of trials: what studies measured, in SQLite, a transaction for each trial.

It is a file of its own beside the store of runs. A run grows epoch by epoch and has a state to go on from; a trial is
measured whole or not at all, and nothing in one file refers to the other.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from normkit.lab.database import Disk, connect, one_line
from normkit.lab.studies.study import Result
from normkit.lab.sweep.task import Task

FILE = "trials.sqlite"
VERSION = 1  # of the schema

_SCHEMA = """
CREATE TABLE trials (
    key TEXT PRIMARY KEY NOT NULL,
    study TEXT NOT NULL,
    levels TEXT NOT NULL,  -- JSON
    seed INTEGER NOT NULL,
    subject TEXT NOT NULL,  -- JSON
    result TEXT NOT NULL,  -- JSON
    seconds REAL NOT NULL
);
"""


class Trials:
    """The trials of one output folder; one process at a time holds it, and a kill lets go of it.

    Raises:
        InputError: a folder that cannot be written, a file that is no such store or a newer one, a store in use.
    """

    def __init__(self, out: Path) -> None:
        self._path = out / FILE
        self._db = connect(self._path, _SCHEMA, VERSION, "a store of trials")
        self._disk = Disk(self._db)

    def __enter__(self) -> Trials:
        return self

    def __exit__(self, *_: object) -> None:
        self._db.close()

    def __len__(self) -> int:
        with one_line(self._path):
            return self._db.execute("SELECT count(*) FROM trials").fetchone()[0]

    def record(self, task: Task, result: str, seconds: float) -> None:
        """Keep what a trial measured, as JSON."""
        trial = json.dumps(dict(task.trial.levels)), task.trial.seed, json.dumps(vars(task.subject))
        with one_line(self._path):
            self._disk.due()
            with self._db:
                self._db.execute(
                    "INSERT INTO trials VALUES (?, ?, ?, ?, ?, ?, ?)",
                    [task.key, task.study.name, *trial, result, seconds],
                )

    def results(self, tasks: Iterable[Task]) -> dict[str, tuple[Result, float]]:
        """By key, the result of each task that was measured, and how many seconds it took."""
        keys = {task.key for task in tasks}
        with one_line(self._path):
            rows = self._db.execute("SELECT key, result, seconds FROM trials")
            return {key: (json.loads(result), seconds) for key, result, seconds in rows if key in keys}
