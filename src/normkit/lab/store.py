"""The store: what runs measured, in SQLite, and where an unfinished run stands, in safetensors.

Epochs of a tenth of a second are recorded together, about once a second, for a state takes its time to write. A kill
at any moment loses at most the epoch under way and a second of epochs before it, by the order in which `Store.record`
does things:

1. the state after the last of the epochs is put in place under its own name, whole (written aside, renamed);
2. one transaction records the epochs, their measurements and the digest of that state;
3. the state that was recorded before is deleted.

Whatever a kill leaves behind, a file written halfway or one that no epoch refers to, is swept at the next
opening. A power cut loses the last second too, or the run under way: what of its state has not reached the disk, the
digest tells.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from time import monotonic

import safetensors.torch
import torch

from normkit.lab.database import Disk, connect, one_line
from normkit.lab.records import Epoch, Measurement, Record, Run, Settings

VERSION = 2  # of the schema
EVERY = 1.0  # seconds of training between two states

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
    state TEXT NOT NULL,  -- sha256 of model, optimizer and generators after it; '' where a later one came along
    shared INTEGER NOT NULL DEFAULT 0,
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
_UPGRADES = {1: "ALTER TABLE epochs ADD COLUMN shared INTEGER NOT NULL DEFAULT 0;"}


class Store:
    """The runs of one output folder; one process at a time holds it, and a kill lets go of it.

    Args:
        out: the folder.
        every: seconds after which a run's state is due to be recorded.

    Raises:
        InputError: a folder that cannot be written, a file that is no store or a newer one, a store in use.
    """

    def __init__(self, out: Path, every: float = EVERY) -> None:
        self._path = out / "runs.sqlite"
        self._states = out / "states"
        self._db = connect(self._path, _SCHEMA, VERSION, "a store of runs", _UPGRADES)
        self._disk = Disk(self._db)
        self._every, self._recorded = every, monotonic()
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

    def due(self) -> bool:
        """Whether enough time has gone by since something was recorded, or the store was opened."""
        return monotonic() - self._recorded >= self._every

    def record(
        self,
        settings: Settings,
        parameters: int,
        epochs: Sequence[Epoch],
        state: dict[str, torch.Tensor],
    ) -> None:
        """Record epochs that follow each other, and the state after the last."""
        self.keep(Record(settings, parameters, tuple(epochs), safetensors.torch.save(state)))

    def keep(self, record: Record) -> None:
        """Record them as they come from a run. The state of an ended run is not kept, its digest alone."""
        settings, data = record.settings, record.state
        first, last = record.epochs[0], record.epochs[-1]
        ends = last.diverged or last.number == settings.epochs
        with one_line(self._path.parent):
            due = self._disk.due()
            if not ends:
                self._states.mkdir(exist_ok=True)
                _write_whole(self._state_path(settings.key, last.number), data, wait=due)
            with self._db:
                self._insert(record, hashlib.sha256(data).hexdigest())
            self._state_path(settings.key, first.number - 1).unlink(missing_ok=True)
        self._recorded = monotonic()

    def state(self, settings: Settings) -> dict[str, torch.Tensor] | None:
        """The state that an unfinished run continues from, or None where it begins; see `packed_state`."""
        data = self.packed_state(settings)
        return None if data is None else safetensors.torch.load(data)

    def packed_state(self, settings: Settings) -> bytes | None:
        """The same as safetensors.

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
                return data
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

    def _insert(self, record: Record, state: str) -> None:
        settings, epochs = record.settings, record.epochs
        key, text = settings.key, json.dumps(vars(settings))
        self._db.execute("INSERT OR IGNORE INTO runs VALUES (?, ?, ?)", [key, text, record.parameters])
        self._db.executemany(
            "INSERT INTO epochs (run, number, steps, seconds, diverged, state, shared) VALUES (?, ?, ?, ?, ?, ?, ?)",
            [
                (key, e.number, e.steps, e.seconds, e.diverged, state if e is epochs[-1] else "", e.shared)
                for e in epochs
            ],
        )
        self._db.executemany(
            "INSERT INTO measurements VALUES (?, ?, ?, ?, ?, ?, ?)",
            [
                (key, epoch.number, *dataclasses.astuple(measured))
                for epoch in epochs
                for measured in epoch.measurements
            ],
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
            "SELECT number, steps, seconds, diverged, shared FROM epochs WHERE run = ? ORDER BY number", [key]
        )
        epochs = tuple(
            Epoch(number, steps, seconds, tuple(measured.get(number, ())), bool(diverged), bool(shared))
            for number, steps, seconds, diverged, shared in rows
        )
        return Run.of(settings, parameters, epochs)


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
