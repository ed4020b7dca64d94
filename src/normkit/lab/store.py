"""The store: what runs measured, in SQLite, and where an unfinished run stands, in safetensors.

A kill at any moment loses at most the epoch under way, by the order in which `Store.record` does things:

1. the state after the epoch is put in place under its own name, whole (written aside, renamed);
2. one transaction records the epoch, its measurements and the digest of that state;
3. the state after the epoch before is deleted.

Whatever a kill leaves behind, a file written halfway or one that no epoch refers to, is swept at the next
opening. A power cut loses the last second, or the run under way: what of its state has not reached the disk, the
digest tells.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import warnings
from pathlib import Path

import safetensors.torch
import torch

from normkit.lab.database import Disk, connect, one_line
from normkit.lab.records import Epoch, Measurement, Run, Settings

VERSION = 1  # of the schema

_SCHEMA = """
CREATE TABLE runs (
    key TEXT PRIMARY KEY NOT NULL,
    settings TEXT NOT NULL,  -- JSON
    parameters INTEGER NOT NULL
);
CREATE TABLE epochs (
    run TEXT NOT NULL REFERENCES runs (key) ON DELETE CASCADE,
    number INTEGER NOT NULL,
    steps INTEGER NOT NULL,
    seconds REAL NOT NULL,
    diverged INTEGER NOT NULL,
    state TEXT NOT NULL,  -- sha256 of model, optimizer and generators after the epoch
    PRIMARY KEY (run, number)
);
CREATE TABLE measurements (
    run TEXT NOT NULL,
    epoch INTEGER NOT NULL,
    step INTEGER NOT NULL,
    train_loss REAL NOT NULL,
    train_accuracy REAL NOT NULL,
    val_loss REAL NOT NULL,
    val_accuracy REAL NOT NULL,
    PRIMARY KEY (run, step),
    FOREIGN KEY (run, epoch) REFERENCES epochs (run, number) ON DELETE CASCADE
);
"""


class Store:
    """The runs of one output folder; one process at a time holds it, and a kill lets go of it.

    Raises:
        InputError: a folder that cannot be written, a file that is no store or a newer one, a store in use.
    """

    def __init__(self, out: Path) -> None:
        self._path = out / "runs.sqlite"
        self._states = out / "states"
        self._db = connect(self._path, _SCHEMA, VERSION, "a store of runs")
        self._disk = Disk(self._db)
        try:
            with one_line(self._path):
                self._sweep()
        except BaseException:
            self._db.close()
            raise

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self._db.close()

    def run(self, settings: Settings) -> Run | None:
        """The run with these settings, as far as it has come."""
        runs = self._select("WHERE key = ?", settings.key)
        return runs[0] if runs else None

    def runs(self) -> list[Run]:
        """Every run, in the order in which they began."""
        return self._select("ORDER BY rowid")

    def record(
        self, settings: Settings, parameters: int, epoch: Epoch, state: dict[str, torch.Tensor]
    ) -> None:
        """Record an epoch. The state is kept for the next one; after the last, its digest alone remains."""
        data = safetensors.torch.save(state)
        ends = epoch.diverged or epoch.number == settings.epochs
        with one_line(self._path.parent):
            due = self._disk.due()
            if not ends:
                self._states.mkdir(exist_ok=True)
                _write_whole(self._state_path(settings.key, epoch.number), data, wait=due)
            with self._db:
                self._insert(settings, parameters, epoch, hashlib.sha256(data).hexdigest())
            self._state_path(settings.key, epoch.number - 1).unlink(missing_ok=True)

    def state(self, settings: Settings) -> dict[str, torch.Tensor] | None:
        """The state that an unfinished run continues from, or None where it begins.

        A state that was lost or damaged costs the run's epochs, not its result: they are dropped, with a
        warning, and training them again gives the same.
        """
        last = "SELECT number, state FROM epochs WHERE run = ? ORDER BY number DESC LIMIT 1"
        with one_line(self._path.parent):
            row = self._db.execute(last, [settings.key]).fetchone()
            if row is None:
                return None
            number, digest = row
            path = self._state_path(settings.key, number)
            data = path.read_bytes() if path.exists() else b""
            if hashlib.sha256(data).hexdigest() == digest:
                return safetensors.torch.load(data)
            with self._db:
                self._db.execute("DELETE FROM runs WHERE key = ?", [settings.key])
        warnings.warn(f"{path} is lost or damaged: its run begins again", stacklevel=2)
        return None

    def _sweep(self) -> None:
        last = self._db.execute("SELECT run, max(number) FROM epochs GROUP BY run")
        referenced = {self._state_path(key, number) for key, number in last}
        for path in self._states.glob("[0-9a-f]" * 16 + "-*.safetensors*"):
            if path not in referenced:
                path.unlink()

    def _state_path(self, key: str, epoch: int) -> Path:
        return self._states / f"{key}-{epoch}.safetensors"

    def _insert(self, settings: Settings, parameters: int, epoch: Epoch, state: str) -> None:
        key, text = settings.key, json.dumps(vars(settings))
        self._db.execute("INSERT OR IGNORE INTO runs VALUES (?, ?, ?)", [key, text, parameters])
        self._db.execute(
            "INSERT INTO epochs VALUES (?, ?, ?, ?, ?, ?)",
            [key, epoch.number, epoch.steps, epoch.seconds, epoch.diverged, state],
        )
        self._db.executemany(
            "INSERT INTO measurements VALUES (?, ?, ?, ?, ?, ?, ?)",
            [(key, epoch.number, *dataclasses.astuple(measured)) for measured in epoch.measurements],
        )

    def _select(self, where: str, *values: str) -> list[Run]:
        with one_line(self._path):
            rows = self._db.execute(f"SELECT key, settings, parameters FROM runs {where}", values).fetchall()
            return [self._assemble(*row) for row in rows]

    def _assemble(self, key: str, text: str, parameters: int) -> Run:
        settings = Settings(**json.loads(text))
        measured: dict[int, list[Measurement]] = {}
        columns = "epoch, step, train_loss, train_accuracy, val_loss, val_accuracy"
        for number, *values in self._db.execute(
            f"SELECT {columns} FROM measurements WHERE run = ? ORDER BY step", [key]
        ):
            measured.setdefault(number, []).append(Measurement(*values))
        rows = self._db.execute(
            "SELECT number, steps, seconds, diverged FROM epochs WHERE run = ? ORDER BY number", [key]
        )
        epochs = tuple(
            Epoch(number, steps, seconds, tuple(measured.get(number, ())), bool(diverged))
            for number, steps, seconds, diverged in rows
        )
        if epochs[-1].diverged:
            return Run(settings, parameters, epochs, "diverged")
        return Run(
            settings, parameters, epochs, "finished" if len(epochs) == settings.epochs else "unfinished"
        )


def _write_whole(path: Path, data: bytes, *, wait: bool) -> None:
    """Put a file in place so that it is there completely or not at all; having waited, through a power cut as well."""
    aside = path.with_name(path.name + ".tmp")
    try:
        with aside.open("wb") as file:
            file.write(data)
            if wait:
                file.flush()
                os.fsync(file.fileno())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
    if not wait:
        return
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the new name itself
    finally:
        os.close(folder)
