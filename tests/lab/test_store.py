"""The store: what goes in comes out to the bit, and whatever is wrong with its files is one line."""

from __future__ import annotations

import dataclasses
import hashlib
import resource
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import safetensors.torch
import torch

from normkit.errors import InputError
from normkit.lab.records import Epoch, Measurement, Settings
from normkit.lab.store import VERSION, Store

SETTINGS = Settings(
    data="digits",
    data_fingerprint="0123",
    model="mlp",
    norm="batch",
    placement="pre",
    input_scaling="minmax",
    batch_size=64,
    lr=1e-3,
    optimizer="adam",
    dropout=0.1,
    weight_decay=0.0,
    epochs=3,
    seed=0,
    device="cpu",
    threads=1,
    versions="normkit 0, torch 0",
)
STATE = {
    "model.weight": torch.tensor([[0.1, -2.5]]),
    "model.bias": torch.tensor([1e-45, float("nan")]).bfloat16(),
    "optimizer.0.step": torch.tensor(3.0),
    "generator.cpu": torch.arange(256, dtype=torch.uint8),
    "model.counter": torch.tensor(7),
}


def epoch(number: int, *, diverged: bool = False) -> Epoch:
    measured = [Measurement(10 * number + i, 0.1 + 0.2, 1 / 3, 5e-324, 1.0) for i in range(2)]
    return Epoch(number, steps=10, seconds=0.1 * number, measurements=tuple(measured), diverged=diverged)


def files(out: Path) -> set[str]:
    return {path.name for path in (out / "states").glob("*")}


def refusal(out: Path) -> str:
    with pytest.raises(InputError) as error, Store(out):
        pass
    assert "\n" not in str(error.value)
    return str(error.value)


def test_what_goes_in_comes_out(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        assert store.run(SETTINGS) is None
        assert store.runs() == []
        store.record(SETTINGS, 42, [epoch(1)], STATE)
        store.record(SETTINGS, 42, [epoch(2)], STATE)
    with Store(tmp_path) as store:
        run = store.run(SETTINGS)
        assert run is not None
        assert run.settings == SETTINGS
        assert run.parameters == 42
        assert run.epochs == (epoch(1), epoch(2))
        assert run.status == "unfinished"
        state = store.state(SETTINGS)
    assert state is not None
    assert state.keys() == STATE.keys()
    for name, tensor in STATE.items():
        assert state[name].dtype == tensor.dtype
        assert state[name].shape == tensor.shape
        assert state[name].reshape(-1).view(torch.uint8).equal(tensor.reshape(-1).view(torch.uint8))


def test_epochs_that_are_recorded_together(tmp_path: Path) -> None:
    """One transaction, one state, and the state before is no more needed."""
    settings = dataclasses.replace(SETTINGS, epochs=6)
    with Store(tmp_path, every=3600) as store:
        assert not store.due()
        store.record(settings, 42, [epoch(1), epoch(2)], {})
        store.record(settings, 42, [epoch(3), epoch(4), epoch(5)], STATE)
        assert files(tmp_path) == {f"{settings.key}-5.safetensors"}
    with Store(tmp_path, every=0) as store:
        assert store.due()
        run, state = store.run(settings), store.state(settings)
        assert run is not None
        assert run.epochs == tuple(map(epoch, range(1, 6)))
        assert state is not None
        assert state.keys() == STATE.keys()
        store.record(settings, 42, [epoch(6)], STATE)
    assert files(tmp_path) == set()


def test_runs_are_told_apart_by_any_setting_and_kept_in_order(tmp_path: Path) -> None:
    others = [
        dataclasses.replace(SETTINGS, **{field.name: change(getattr(SETTINGS, field.name))})
        for field in dataclasses.fields(Settings)
    ]
    with Store(tmp_path) as store:
        for number, settings in enumerate([SETTINGS, *others]):
            assert store.run(settings) is None
            store.record(settings, number, [epoch(1)], STATE)
        assert [run.settings for run in store.runs()] == [SETTINGS, *others]
        assert [run.parameters for run in store.runs()] == list(range(len(others) + 1))


def change(value: str | int | float) -> str | int | float:
    return f"{value}+" if isinstance(value, str) else value + 1


@pytest.mark.parametrize(("diverged", "status"), [(False, "finished"), (True, "diverged")])
def test_an_ended_run_keeps_a_digest_and_no_file(tmp_path: Path, diverged: bool, status: str) -> None:
    with Store(tmp_path) as store:
        store.record(SETTINGS, 42, [epoch(1)], STATE)
        store.record(SETTINGS, 42, [epoch(2)], STATE)
        assert files(tmp_path) == {f"{SETTINGS.key}-2.safetensors"}
        settings = SETTINGS
        store.record(settings, 42, [epoch(3, diverged=diverged)], STATE)
        run = store.run(settings)
    assert run is not None
    assert run.status == status
    assert files(tmp_path) == set()
    with reading(tmp_path) as database:
        digests = {digest for (digest,) in database.execute("SELECT state FROM epochs")}
    assert digests == {hashlib.sha256(safetensors.torch.save(STATE)).hexdigest()}


def test_divergence_ends_a_run_before_its_last_epoch(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        store.record(SETTINGS, 42, [epoch(1, diverged=True)], STATE)
        run = store.run(SETTINGS)
    assert run is not None
    assert run.status == "diverged"


@contextmanager
def reading(out: Path) -> Iterator[sqlite3.Connection]:
    database = sqlite3.connect(out / "runs.sqlite")
    try:
        with database:
            yield database
    finally:
        database.close()


def test_an_epoch_is_recorded_whole_or_not_at_all(tmp_path: Path) -> None:
    first = epoch(1).measurements[0]
    twice = Epoch(2, 10, 0.1, (*epoch(2).measurements, first), False)  # a step that has been measured
    with Store(tmp_path) as store:
        store.record(SETTINGS, 42, [epoch(1)], STATE)
        with pytest.raises(sqlite3.IntegrityError):
            store.record(SETTINGS, 42, [twice], STATE)
        run = store.run(SETTINGS)
        assert run is not None
        assert run.epochs == (epoch(1),)
        assert store.state(SETTINGS) is not None


def test_opening_sweeps_what_a_kill_left_and_nothing_else(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        store.record(SETTINGS, 42, [epoch(1)], STATE)
    kept = {f"{SETTINGS.key}-1.safetensors", "mine.safetensors", "notes.txt"}
    left = {f"{SETTINGS.key}-2.safetensors", f"{SETTINGS.key}-2.safetensors.tmp", f"{'0' * 16}-7.safetensors"}
    for name in (kept | left) - files(tmp_path):
        (tmp_path / "states" / name).write_bytes(b"half")
    with Store(tmp_path) as store:
        assert store.state(SETTINGS) is not None
    assert files(tmp_path) == kept


@pytest.mark.parametrize("damage", ["lost", "truncated", "altered"])
def test_a_state_that_cannot_be_used_costs_its_run_alone(tmp_path: Path, damage: str) -> None:
    other = dataclasses.replace(SETTINGS, seed=1)
    with Store(tmp_path) as store:
        store.record(SETTINGS, 42, [epoch(1)], STATE)
        store.record(other, 42, [epoch(1)], STATE)
        path = tmp_path / "states" / f"{SETTINGS.key}-1.safetensors"
        data = path.read_bytes()
        if damage == "lost":
            path.unlink()
        else:
            path.write_bytes(data[:-1] if damage == "truncated" else data[:-1] + bytes([data[-1] ^ 1]))
        with pytest.warns(UserWarning, match=rf"{path.name} is lost or damaged: its run begins again"):
            assert store.state(SETTINGS) is None
        assert store.run(SETTINGS) is None
        assert store.state(other) is not None
        store.record(SETTINGS, 42, [epoch(1)], STATE)
        assert store.state(SETTINGS) is not None


def test_a_full_disk_is_one_line_and_loses_no_epoch(tmp_path: Path) -> None:
    """A limit on the size of files stands for the disk: the system refuses the write in the same place."""
    large = {"model.weight": torch.zeros(1 << 20)}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Store(tmp_path) as store:
        store.record(SETTINGS, 42, [epoch(1)], STATE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
        try:
            with pytest.raises(InputError, match=f"{tmp_path}: File too large"):
                store.record(SETTINGS, 42, [epoch(2)], large)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert files(tmp_path) == {f"{SETTINGS.key}-1.safetensors"}
        store.record(SETTINGS, 42, [epoch(2)], large)
        run = store.run(SETTINGS)
        assert run is not None
        assert len(run.epochs) == 2


def test_a_newer_store_is_left_as_it_is(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        store.record(SETTINGS, 42, [epoch(1)], STATE)
    (tmp_path / "states" / f"{'0' * 16}-7.safetensors").write_bytes(b"what a newer version may mean by this")
    with reading(tmp_path) as database:
        database.execute(f"PRAGMA user_version = {VERSION + 1}")
    before = contents(tmp_path)
    message = refusal(tmp_path)
    assert f"made by a newer normkit (store version {VERSION + 1}, this one knows {VERSION})" in message
    assert str(tmp_path / "runs.sqlite") in message
    assert contents(tmp_path) == before


# As the first version made its files, which had no mark of epochs whose runs shared the machine.
FIRST_VERSION = """
CREATE TABLE runs (key TEXT PRIMARY KEY NOT NULL, settings TEXT NOT NULL, parameters INTEGER NOT NULL);
CREATE TABLE epochs (
    run TEXT NOT NULL REFERENCES runs (key) ON DELETE CASCADE,
    number INTEGER NOT NULL, steps INTEGER NOT NULL, seconds REAL NOT NULL, diverged INTEGER NOT NULL,
    state TEXT NOT NULL,
    PRIMARY KEY (run, number)
);
CREATE TABLE measurements (
    run TEXT NOT NULL, epoch INTEGER NOT NULL, step INTEGER NOT NULL,
    train_loss REAL NOT NULL, train_accuracy REAL NOT NULL, val_loss REAL NOT NULL, val_accuracy REAL NOT NULL,
    PRIMARY KEY (run, step), FOREIGN KEY (run, epoch) REFERENCES epochs (run, number) ON DELETE CASCADE
);
PRAGMA user_version = 1;
"""


def test_a_store_of_the_first_version_goes_on(tmp_path: Path) -> None:
    with Store(tmp_path / "now") as store:
        store.record(SETTINGS, 42, [epoch(1)], STATE)
    shutil.copytree(tmp_path / "now" / "states", tmp_path / "old" / "states")
    with reading(tmp_path / "old") as database, reading(tmp_path / "now") as now:
        database.executescript(FIRST_VERSION)
        for name, columns in (
            ("runs", "*"),
            ("epochs", "run, number, steps, seconds, diverged, state"),
            ("measurements", "*"),
        ):
            rows = now.execute(f"SELECT {columns} FROM {name}").fetchall()
            database.executemany(f"INSERT INTO {name} VALUES ({', '.join('?' * len(rows[0]))})", rows)
        database.commit()
    with Store(tmp_path / "old") as store:
        run = store.run(SETTINGS)
        assert run is not None
        assert run.epochs == (epoch(1),)
        assert store.state(SETTINGS) is not None
        store.record(SETTINGS, 42, [dataclasses.replace(epoch(2), shared=True)], STATE)
    with Store(tmp_path / "old") as store:
        run = store.run(SETTINGS)
        assert run is not None
        assert [epoch.shared for epoch in run.epochs] == [False, True]


def test_a_database_of_something_else_is_left_as_it_is(tmp_path: Path) -> None:
    with reading(tmp_path) as database:
        database.execute("CREATE TABLE recipes (name TEXT)")
    before = contents(tmp_path)
    assert "an SQLite database, but not a store of runs" in refusal(tmp_path)
    assert contents(tmp_path) == before


def test_a_file_that_is_no_database_is_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "runs.sqlite").write_bytes(b"all the results of last year\n" * 100)
    before = contents(tmp_path)
    assert (
        refusal(tmp_path)
        == f"{tmp_path / 'runs.sqlite'}: file is not a database: choose another folder, or move the file away"
    )
    assert contents(tmp_path) == before


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_truncated_store_is_one_line(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        store.record(SETTINGS, 42, [epoch(1)], STATE)
    path = tmp_path / "runs.sqlite"
    path.write_bytes(path.read_bytes()[:5000])
    assert (
        refusal(tmp_path)
        == f"{path}: database disk image is malformed: choose another folder, or move the file away"
    )


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert refusal(tmp_path / "file") == f"{tmp_path / 'file'}: File exists"
    assert refusal(tmp_path / "file" / "out") == f"{tmp_path / 'file' / 'out'}: Not a directory"


def test_a_folder_in_the_place_of_the_database(tmp_path: Path) -> None:
    (tmp_path / "runs.sqlite").mkdir()
    assert (
        refusal(tmp_path)
        == f"{tmp_path / 'runs.sqlite'}: unable to open database file: choose another folder, or move the file away"
    )


HOLDER = """
import sys
from pathlib import Path
from normkit.lab.store import Store

with Store(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_one_process_at_a_time_and_a_kill_lets_go(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        store.record(SETTINGS, 42, [epoch(1)], STATE)
        assert "in use by another process" in refusal(tmp_path)
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        assert "in use by another process" in refusal(tmp_path)
        holder.kill()
    with Store(tmp_path) as store:
        assert store.run(SETTINGS) is not None
