"""`normkit study` in real processes: what it writes, and what it does when it is stopped or has no room."""

from __future__ import annotations

import os
import resource
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import made_studies
import pytest

from normkit.cli import run
from normkit.lab import studies
from normkit.lab.sweep.files import FORMATS


def start(*arguments: str, **more: object) -> subprocess.Popen[str]:
    """The command, in a process group of its own, as a terminal starts it."""
    command = [sys.executable, made_studies.__file__, "study", *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, start_new_session=True, **pipes, **more)


def complete(*arguments: str, **more: object) -> tuple[int | None, str, str]:
    process = start(*arguments, **more)
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def kept(out: Path) -> list[tuple[str, str]]:
    with closing(sqlite3.connect(out / "trials.sqlite")) as database:
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        return database.execute("SELECT study, result FROM trials").fetchall()


def wait_until(true: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.05)


def grown(path: Path, size: int) -> bool:
    return path.exists() and path.stat().st_size > size


def members(group: int) -> list[str]:
    """The processes of a group that are not over."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:  # it ended while we looked
            continue
        if int(fields[2]) == group and fields[0] != "Z":
            found.append(stat.parent.name)
    return found


def test_list_names_the_studies() -> None:
    code, out, err = complete("list")
    assert (code, err) == (0, "")
    assert "Sums are lower with <batch> norm." in out


def test_it_shows_claims_and_writes_page_and_files(tmp_path: Path) -> None:
    arguments = ["made", "--quick", "--out", str(tmp_path), "--workers", "1"]
    files = ["--format", ",".join(FORMATS), "--export", "csv", "--tensorboard", str(tmp_path / "events")]
    code, out, err = complete(*arguments, *files)
    assert (code, err) == (0, "")
    assert "supported" in out
    assert "batch - none, sum: −0.500" in out
    page = (tmp_path / "report.html").read_text()
    assert "Sums are lower with &lt;batch&gt; norm." in page
    assert f"normkit study made --quick --out {tmp_path}" in page
    assert {path.name for path in (tmp_path / "files").iterdir()} == {f"made.{kind}" for kind in FORMATS}
    assert len((tmp_path / "files" / "made.csv").read_text().splitlines()) == 13
    assert (
        len((tmp_path / "trials.csv").read_text().splitlines()) == 1 + 12 * 12
    )  # a sum, ten of a curve, one missing
    assert len([*(tmp_path / "events").rglob("events.out.tfevents.*")]) == 12
    assert complete(*arguments) == (0, out[: out.index("Files:")], "")
    assert (tmp_path / "report.html").read_text() == page


def test_trials_that_fail_are_told_and_exit_with_1(tmp_path: Path) -> None:
    code, out, err = complete("failing", "--quick", "--out", str(tmp_path), "--workers", "1")
    assert code == 1
    assert "unmeasured" in out
    lines = err.splitlines()
    assert lines[0] == "normkit: failing (norm none, seed 1): the data must have images, got rows of 64"
    assert lines[-1] == "normkit: failing: 1 more trials failed"
    assert len(lines) == 4
    assert "the data must have images" in (tmp_path / "report.html").read_text()


def test_interrupted_it_stops_and_keeps_what_is_finished(tmp_path: Path) -> None:
    process = start("slow", "--quick", "--out", str(tmp_path), "--workers", "2")
    trials = tmp_path / "trials.sqlite-wal"
    size = 0

    def settled() -> bool:  # the six quick trials are in, and two that sleep are under way
        nonlocal size
        before, size = size, trials.stat().st_size if trials.exists() else 0
        time.sleep(1.5)
        return size == before and size > 6 * 4096

    wait_until(settled)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal's Ctrl-C, to every process of it
    out, err = process.communicate(timeout=60)  # a trial that is under way takes five minutes
    assert (process.returncode, out) == (130, "")
    assert err == "normkit: interrupted; finished trials are kept, the same command goes on\n"
    assert len(kept(tmp_path)) == 6
    wait_until(lambda: members(process.pid) == [], seconds=5)
    assert not (tmp_path / "report.html").exists()


def test_killed_it_leaves_no_workers_and_a_whole_store(tmp_path: Path) -> None:
    process = start("slow", "--quick", "--out", str(tmp_path), "--workers", "2")
    wait_until(lambda: grown(tmp_path / "trials.sqlite-wal", 5 * 4096))
    process.kill()
    process.communicate(timeout=60)  # its workers have its pipes too
    wait_until(lambda: members(process.pid) == [], seconds=10)
    assert kept(tmp_path)


def test_a_full_disk_is_a_line_and_nothing_is_lost(tmp_path: Path) -> None:
    """By the kernel's own limit on the size of files, which fails a write as a full disk does."""
    limit = 700_000

    def small() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    arguments = ["big", "--quick", "--out", str(tmp_path), "--workers", "1"]
    code, out, err = complete(*arguments, preexec_fn=small)
    assert (code, out) == (2, "")
    assert err.startswith(f"normkit: {tmp_path / 'trials.sqlite'}: ")
    assert err.endswith("make room, and run the same command again; what was finished is kept\n")
    assert err.count("\n") == 1
    before = kept(tmp_path)
    assert 3 <= len(before) < 12
    code, out, err = complete(*arguments)
    assert (code, err) == (0, "")
    assert kept(tmp_path)[: len(before)] == before
    assert len(kept(tmp_path)) == 12


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["made", "--workers", "0"], "--workers must be 1 or more, got 0"),
        (["made", "--format", "pdf"], "unknown format 'pdf': choose from png, svg, csv"),
        (["made", "--export", "xls"], "unknown export 'xls': choose from csv, parquet"),
        (["made", "--model", "net.py:build"], "made has its own networks: run it without --model"),
        (["made", "--data", "dgits"], "unknown data set 'dgits': choose from"),
        (["made", "--ray", "here"], "--ray must be HOST:PORT of the cluster's head, got 'here'"),
    ],
)
def test_bad_input_gets_a_line(
    arguments: list[str],
    line: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(studies, "NAMES", ("made",))
    monkeypatch.setattr(studies, "find", lambda name: made_studies.Made())
    assert run(["study", *arguments, "--quick", "--out", str(tmp_path)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"normkit: {line}")
    assert err.count("\n") == 1
    assert [*tmp_path.iterdir()] == []


def test_a_store_in_use_gets_a_line(tmp_path: Path) -> None:
    first = start("slow", "--quick", "--out", str(tmp_path), "--workers", "1")
    try:
        wait_until(lambda: grown(tmp_path / "trials.sqlite-wal", 4096))
        code, out, err = complete("made", "--quick", "--out", str(tmp_path))
    finally:
        os.killpg(first.pid, signal.SIGKILL)
        first.communicate()
    assert (code, out) == (2, "")
    assert err.endswith("trials.sqlite: in use by another process: wait for it, or choose another folder\n")


def test_ray_that_does_not_answer_gets_a_line(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and nobody listens
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        code, out, err = complete("made", "--quick", "--ray", address, "--out", str(tmp_path))
    assert (code, out) == (2, "")
    assert err.startswith(f"normkit: --ray {address}: no answer (")
    assert err.count("\n") == 1
