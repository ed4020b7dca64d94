"""`normkit compare` with workers: the same bits as without, whatever becomes of them; one process records."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from test_study_command import wait_until

from normkit.lab import table
from normkit.lab.compare import Plan, UnfinishedError, carry_out, complete, complete_by, plan
from normkit.lab.grid import Grid
from normkit.lab.records import Epoch, Settings
from normkit.lab.remote import Workers
from normkit.lab.store import Store
from normkit.lab.workers import pool

KILLS = 6
GRID = Grid(model="mlp", norms=("none", "batch", "layer"), epochs=4, seeds=2, dropout=0.2, batch_size=16)
COMMAND = ["compare", "--model", "mlp", "--norms", "none,batch", "--seeds", "1"]


def start(*arguments: str) -> subprocess.Popen[str]:
    """The command, in a process group of its own, as a terminal starts it."""
    command = [sys.executable, "-m", "normkit", *arguments]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def recorded(
    out: Path, *, states: str = "epochs.number = json_extract(settings, '$.epochs')"
) -> list[object]:
    """All that the store of a folder has of its runs but the seconds, with the digests of some states."""
    with closing(sqlite3.connect(out / "runs.sqlite")) as database:
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert database.execute("PRAGMA foreign_key_check").fetchall() == []
        return [
            *database.execute("SELECT key, settings, parameters FROM runs ORDER BY key"),
            *database.execute("SELECT run, number, steps, diverged FROM epochs ORDER BY run, number"),
            *database.execute("SELECT * FROM measurements ORDER BY run, step"),
            *database.execute(
                f"SELECT run, number, state FROM epochs JOIN runs ON run = key WHERE {states} ORDER BY run, number"
            ),
        ]


def of_a_file(folder: Path) -> Plan:
    """A plan whose data is not there any more: workers have it from the owner."""
    path = folder / "points.npz"
    x = np.random.default_rng(0).normal(size=(160, 6))
    np.savez(path, x=x, y=x[:, 0] > x[:, 1])
    result = plan(Grid(**{**vars(GRID), "data": str(path)}))
    path.unlink()
    return result


def test_the_same_bits_whoever_trains(tmp_path: Path) -> None:
    the_plan = of_a_file(tmp_path)
    alone = carry_out(the_plan, tmp_path / "alone")
    expected = recorded(tmp_path / "alone")
    assert len([row for row in expected if len(row) == 3 and row[1] == GRID.epochs]) == 6  # digests
    for count in (1, 2, 3):
        told: list[tuple[int, int]] = []
        comparison = carry_out(
            the_plan,
            tmp_path / str(count),
            lambda done, _, epoch, told=told: told.append((done, epoch.number if epoch else 0)),
            workers=Workers.here(count),
        )
        assert recorded(tmp_path / str(count)) == expected
        assert [done for done, _ in told] == list(range(the_plan.epochs + 1))
        assert [row.accuracy for row in comparison.rows] == [row.accuracy for row in alone.rows]
        assert ("ms/step" in table.header(comparison)) == (count == 1)
        assert ("shared the machine" in table.legend(comparison)) == (count > 1)


def test_what_workers_trained_is_not_trained_again(tmp_path: Path) -> None:
    """And is known later too to have shared the machine."""
    narrow = plan(Grid(**{**vars(GRID), "norms": ("none",), "seeds": 1}))
    carry_out(narrow, tmp_path, workers=Workers.here(2))
    told: list[Settings] = []
    wide = plan(Grid(**{**vars(GRID), "norms": ("none", "batch"), "seeds": 1}))
    comparison = carry_out(wide, tmp_path, lambda _, settings, epoch: told.append(settings))
    assert not comparison.timed
    assert [settings.norm for settings in told] == ["none", *["batch"] * 5]
    del told[:]
    again = carry_out(
        wide, tmp_path, lambda _, settings, epoch: told.append(settings), workers=Workers.here(2)
    )
    assert again == comparison
    assert len(told) == 1


def children(process: int) -> list[int]:
    """The workers of a process, its children that multiprocessing has spawned: first those that have worked most."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it ended while we looked
            state, parent, *fields = stat.read_text().rpartition(")")[2].split()
            ours = int(parent) == process and state != "Z"
            if ours and b"spawn_main" in (stat.parent / "cmdline").read_bytes():
                ticks = int(fields[9]) + int(fields[10])  # of the processor
                found.append((ticks, int(stat.parent.name)))
    return [worker for _, worker in sorted(found, reverse=True)]


class Killer(threading.Thread):
    """Kills a worker at a random moment, again and again, each time that one of them gets on."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.kills, self.over = 0, False
        self.told: dict[Settings, list[int]] = {}
        self._gets_on = threading.Event()

    def on_progress(self, done: int, settings: Settings, epoch: Epoch | None) -> None:
        if epoch is not None:
            self.told.setdefault(settings, []).append(epoch.number)
            self._gets_on.set()

    def run(self) -> None:
        chance = random.Random(0)
        while self.kills < KILLS and not self.over:
            if self._gets_on.wait(timeout=0.1):
                time.sleep(chance.uniform(0, 0.1))
                for worker in children(os.getpid())[:1]:  # not one that has only begun to start
                    os.kill(worker, signal.SIGKILL)
                    self.kills += 1
                self._gets_on.clear()


def test_kills_at_random_moments(tmp_path: Path) -> None:
    """A record after every epoch, so that kills hit it too, and the digests are all there to compare."""
    the_plan = plan(Grid(model="mlp", norms=("none", "batch"), epochs=40, seeds=2, dropout=0.2))
    with Store(tmp_path / "whole", every=0) as store:
        complete(the_plan, store)
    workers = Workers(partial(pool.run, workers=2), beside=True, every=0)
    killer = Killer()
    killer.start()
    with Store(tmp_path / "killed") as store:
        while len(killer.told) < 4 or {len(told) for told in killer.told.values()} != {40}:
            with suppress(UnfinishedError):  # runs that had three of them are given up until the next time
                complete_by(workers, the_plan, store, killer.on_progress)
    killer.over = True
    killer.join()
    assert killer.kills == KILLS
    everything = {"states": "TRUE"}
    assert recorded(tmp_path / "killed", **everything) == recorded(tmp_path / "whole", **everything)
    # Each went on from the epoch after the last one that was recorded.
    assert list(killer.told.values()) == [list(range(1, 41))] * 4
    assert not list((tmp_path / "killed" / "states").iterdir())


def workers_of(process: subprocess.Popen[str]) -> Iterator[int]:
    """Its workers as they come."""
    seen: set[int] = set()
    while process.poll() is None:
        for worker in set(children(process.pid)) - seen:
            seen.add(worker)
            yield worker
        time.sleep(0.01)


def test_a_run_whose_workers_are_killed_three_times_is_named(tmp_path: Path) -> None:
    arguments = [*COMMAND, "--epochs", "2", "--workers", "1", "--out", str(tmp_path)]
    process = start(*arguments)
    for count, worker in enumerate(workers_of(process), 1):
        if count <= 3:
            os.kill(worker, signal.SIGKILL)
    out, err = process.communicate(timeout=120)
    assert (process.returncode, out) == (1, "")
    assert err.splitlines() == [
        "normkit: the run of none, lr 0.003, seed 0: 3 workers at it ended: killed by SIGKILL",
        "normkit: 1 of 2 runs are not finished, so nothing is compared; the same command tries them again",
    ]
    assert not (tmp_path / "report.html").exists()
    with Store(tmp_path) as store:
        assert [(run.settings.norm, run.status) for run in store.runs()] == [("batch", "finished")]
    process = start(*arguments)
    out, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (0, "")
    assert "Report: " in out


def test_interrupted_it_stops_and_goes_on(tmp_path: Path) -> None:
    arguments = [*COMMAND, "--epochs", "60", "--workers", "2", "--out", str(tmp_path)]
    process = start(*arguments)
    wait_until(lambda: any(tmp_path.glob("states/*.safetensors")))
    workers = children(process.pid)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal's Ctrl-C, to every process of it
    wait_until(lambda: process.poll() is not None, seconds=5)
    out, err = process.communicate()
    assert (process.returncode, out) == (130, "")
    assert err == "normkit: interrupted; all but the last second is kept, the same command goes on\n"
    assert len(workers) == 2
    wait_until(lambda: not any(Path(f"/proc/{worker}").exists() for worker in workers), seconds=5)
    assert recorded(tmp_path)
    process = start(*arguments)
    out, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (0, "")
    assert "ms/step" not in out
    with Store(tmp_path) as store:
        assert {run.status for run in store.runs()} == {"finished"}


def test_an_error_in_a_worker_is_a_line(tmp_path: Path) -> None:
    """Of data that is not the runs' own, which the plan made by hand here says it is."""
    digits, points = plan(GRID), of_a_file(tmp_path)
    wrong = Plan(digits.grid, points.dataset, digits.settings[:1])
    with pytest.raises(
        UnfinishedError, match=r"the run of none, lr 0\.003, seed 0: the run is for digits .*"
    ) as error:
        carry_out(wrong, tmp_path / "out", workers=Workers.here(1))
    assert len(error.value.lines) == 2
