"""Kills: a run killed again and again ends in the same bits as one left in peace.

The tests start this file as a program of its own, which has torch imported and no thread running, so that it
can fork a process per attempt at little cost. It kills them with SIGKILL, which no process can prepare for.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import numpy as np

from normkit.lab import database as database_module
from normkit.lab import store as store_module
from normkit.lab.data import Dataset, load
from normkit.lab.records import Settings
from normkit.lab.scaling import scale
from normkit.lab.store import Store
from normkit.lab.train import train

KILLS = 50


def test_fifty_kills_at_random_moments(tmp_path: Path) -> None:
    report = run_as_program("at_random", tmp_path)
    assert report["interrupted"] >= KILLS
    assert report["runs"] >= 3


def test_a_kill_at_every_line_of_the_store() -> None:
    # In memory where there is such a folder: a kill, unlike a power cut, leaves the system's buffers alone,
    # and hundreds of runs would spend most of their time on waiting for the disk.
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as folder:
        report = run_as_program("at_every_line", Path(folder))
    assert report["kills"] > 100  # an opening and three epochs execute more lines than that
    assert report["within an epoch's record"] > 20


def run_as_program(name: str, folder: Path) -> dict[str, int]:
    done = subprocess.run(
        [sys.executable, "-W", "error", __file__, name, str(folder)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    print(done.stdout)
    return json.loads(done.stdout)


# From here on, the program.

EVERY = 0.0  # a state for every epoch, so that each attempt gets on, and the digests are all there to compare

SETTINGS = Settings(
    data="digits",
    data_fingerprint="",
    model="mlp",
    norm="batch",
    placement="pre",
    input_scaling="minmax",
    batch_size=128,
    lr=1e-2,
    optimizer="adam",
    dropout=0.2,
    weight_decay=0.0,
    epochs=40,
    seed=0,
    device="cpu",
    threads=1,
    versions="",
)


def at_random(folder: Path) -> dict[str, int]:
    """Kill runs of several kinds at random moments, until enough kills have interrupted one."""
    chance = random.Random(0)
    digits = scale("minmax", load("digits"))
    base = dataclasses.replace(SETTINGS, data_fingerprint=digits.fingerprint)
    kinds = [
        base,
        dataclasses.replace(base, model="cnn", norm="instance", optimizer="sgd", batch_size=512, epochs=16),
        dataclasses.replace(base, model="sigmoid", norm="layer", placement="post", epochs=20),
    ]
    interrupted = 0
    for runs, kind in enumerate(itertools.cycle(kinds)):
        if interrupted >= KILLS and runs >= len(kinds):
            return {"interrupted": interrupted, "runs": runs}
        settings = dataclasses.replace(kind, seed=runs)
        started = time.monotonic()
        assert finished(start(folder / "whole", settings, digits))
        whole = time.monotonic() - started
        while True:
            attempt = start(folder / "killed", settings, digits)
            time.sleep(chance.uniform(0, whole / 3))
            os.kill(attempt, signal.SIGKILL)
            if finished(attempt):
                break
            interrupted += check_integrity(folder / "killed", settings) < settings.epochs
        assert results(folder / "killed", settings) == results(folder / "whole", settings)
    raise AssertionError("a cycle has no end")


def at_every_line(folder: Path) -> dict[str, int]:
    """Kill a small run at the first line that it executes in the store, then at the second, and so on."""
    data = small()
    settings = dataclasses.replace(SETTINGS, data_fingerprint="small", batch_size=16, epochs=3)
    assert finished(start(folder / "whole", settings, data))
    expected = results(folder / "whole", settings)
    within = 0
    for line in itertools.count(1):
        out = folder / "killed"
        shutil.rmtree(out, ignore_errors=True)
        if finished(start(out, settings, data, lambda line=line: kill_at(line))):
            return {"kills": line - 1, "within an epoch's record": within}
        before = check_integrity(out, settings)
        within += 0 < before < settings.epochs
        assert finished(start(out, settings, data))
        assert results(out, settings) == expected, f"killed at line {line} executed"
        assert not list((out / "states").iterdir())
    raise AssertionError("a count has no end")


def small() -> Dataset:
    y = np.arange(32) % 2
    x = np.random.default_rng(0).normal(size=(32, 2)).astype(np.float32)
    return Dataset("small", x, y, x, y, 2, "small", "minmax")


def warm_up(folder: Path) -> None:
    """Import here what torch puts off to the first step, which every attempt would do again otherwise."""
    settings = dataclasses.replace(SETTINGS, data_fingerprint="small", batch_size=16, epochs=1)
    with Store(folder / "warm-up") as store:
        train(settings, small(), store)


def start(out: Path, settings: Settings, data: Dataset, prepare: Callable[[], object] = bool) -> int:
    """Train in a process of its own."""
    process = os.fork()
    if process:
        return process
    try:
        prepare()
        with Store(out, EVERY) as store:
            train(settings, data, store)
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)


def finished(process: int) -> bool:
    """Whether it ended by itself, and not by a kill."""
    _, status = os.waitpid(process, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return False
    assert os.WEXITSTATUS(status) == 0
    return True


def kill_at(line: int) -> None:
    """Have this process kill itself at the n-th line that it executes in the store's files."""
    left, files = line, {store_module.__file__, database_module.__file__}

    def trace(frame: FrameType, event: str, _: object) -> Callable[..., object] | None:
        nonlocal left
        if frame.f_code.co_filename not in files:
            return None
        left -= event == "line"
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return trace

    sys.settrace(trace)


def check_integrity(out: Path, settings: Settings) -> int:
    """Check a copy of what a kill left, so that the next attempt has the recovery before it; count epochs."""
    copy = out.with_name("copy")
    shutil.rmtree(copy, ignore_errors=True)
    copy.mkdir()
    for path in out.glob("runs.sqlite*"):
        shutil.copy(path, copy)
    database = sqlite3.connect(copy / "runs.sqlite")
    try:
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert database.execute("PRAGMA foreign_key_check").fetchall() == []
        if not database.execute("SELECT * FROM sqlite_master").fetchall():
            return 0  # killed before there was a schema
        ((epochs,),) = database.execute("SELECT count(*) FROM epochs WHERE run = ?", [settings.key])
        return epochs
    finally:
        database.close()


def results(out: Path, settings: Settings) -> list[tuple[object, ...]]:
    """Everything in the store about a run but its seconds, with the digests of its states."""
    database = sqlite3.connect(out / "runs.sqlite")
    try:
        return [
            *database.execute("SELECT * FROM runs WHERE key = ?", [settings.key]),
            *database.execute(
                "SELECT number, steps, diverged, state FROM epochs WHERE run = ? ORDER BY number",
                [settings.key],
            ),
            *database.execute("SELECT * FROM measurements WHERE run = ? ORDER BY step", [settings.key]),
        ]
    finally:
        database.close()


if __name__ == "__main__":
    warm_up(Path(sys.argv[2]))
    program = {"at_random": at_random, "at_every_line": at_every_line}[sys.argv[1]]
    print(json.dumps(program(Path(sys.argv[2]))))
