from __future__ import annotations

import multiprocessing
import os
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from made_studies import Failing, Killed, Made, Noisy

from normkit.errors import InputError
from normkit.lab.studies.study import Study, Subject
from normkit.lab.sweep.sweep import carry_out, plan
from normkit.lab.sweep.trials import Trials


def kept(out: Path) -> list[tuple[object, ...]]:
    """All that the store of a folder has, but for the seconds."""
    with closing(sqlite3.connect(out / "trials.sqlite")) as database:
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        return database.execute(
            "SELECT key, study, levels, seed, subject, result FROM trials ORDER BY key"
        ).fetchall()


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"


def test_two_folders_get_the_same_bits_whatever_the_workers(tmp_path: Path) -> None:
    studies: list[Study] = [Made(), Noisy()]
    for folder, workers in (("a", 1), ("b", 3)):
        carry_out(plan(studies, "quick"), tmp_path / folder, workers=workers)
    assert kept(tmp_path / "a") == kept(tmp_path / "b")
    assert len(kept(tmp_path / "a")) == 24


def test_what_is_there_is_not_measured_again(tmp_path: Path) -> None:
    carry_out(plan([Made()], "quick"), tmp_path, workers=1)
    seen: list[tuple[int, int]] = []
    (report,) = carry_out(
        plan([Made()], "full"),
        tmp_path,
        workers=1,
        on_progress=lambda done, total, _: seen.append((done, total)),
    )
    assert seen == [(done, 24) for done in range(12, 25)]
    assert report.finding is not None
    assert report.finding.verdict == "supported"
    assert report.finding.effects[0].estimate.mean == pytest.approx(-0.5)
    assert report.finding.effects[0].estimate.count == 12
    carry_out(
        plan([Made()], "full"), tmp_path, workers=1, on_progress=lambda done, total, _: seen.append((done, 1))
    )
    assert seen[-1] == (24, 1)
    assert len(seen) == 14


def test_a_killed_worker_costs_an_attempt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    marks = tmp_path / "marks"
    marks.mkdir()
    monkeypatch.setenv("NORMKIT_TEST_MARKS", str(marks))
    monkeypatch.setenv("NORMKIT_TEST_KILLS", "2")
    (report,) = carry_out(plan([Killed()], "quick"), tmp_path / "out", workers=2)
    assert len([*marks.iterdir()]) == 2
    assert report.problems == ()
    carry_out(plan([Made()], "quick"), tmp_path / "whole", workers=1)
    assert [row[5] for row in sorted(kept(tmp_path / "out"), key=lambda row: (row[2], row[3]))] == [
        row[5] for row in sorted(kept(tmp_path / "whole"), key=lambda row: (row[2], row[3]))
    ]


def test_one_killed_every_time_is_named_and_costs_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    marks = tmp_path / "marks"
    marks.mkdir()
    monkeypatch.setenv("NORMKIT_TEST_MARKS", str(marks))
    monkeypatch.setenv("NORMKIT_TEST_KILLS", "100")
    killed, made = carry_out(plan([Killed(), Made()], "quick"), tmp_path / "out", workers=1)
    assert len([*marks.iterdir()]) == 3
    assert killed.finding is None
    (problem,) = killed.problems
    assert str(problem.task) == "killed (norm none, seed 1)"
    assert problem.problem == "3 workers at it ended: killed by SIGKILL"
    assert made.finding is not None
    assert len(kept(tmp_path / "out")) == 23


def test_what_raises_is_told_in_a_line_and_costs_no_other(tmp_path: Path) -> None:
    (report,) = carry_out(plan([Failing()], "quick"), tmp_path, workers=2)
    assert report.finding is None
    lines = {outcome.problem for outcome in report.problems}
    assert "the data must have images, got rows of 64" in lines
    assert any(
        line.startswith("ValueError: Out of range float values are not JSON compliant") for line in lines
    )
    assert len(report.problems) == 4
    assert all("measure" in outcome.trace for outcome in report.problems)
    assert len(kept(tmp_path)) == 8


def test_workers_end_with_the_sweep(tmp_path: Path) -> None:
    """One that is left alone in the middle, by an exception of the caller's."""

    def leave(done: int, total: int, what: str) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        carry_out(plan([Made()], "quick"), tmp_path, workers=2, on_progress=leave)
    assert multiprocessing.active_children() == []
    assert len(kept(tmp_path)) == 2
    carry_out(plan([Made()], "quick"), tmp_path, workers=2)
    assert len(kept(tmp_path)) == 12


def test_another_revision_subject_or_file_is_measured_anew(tmp_path: Path) -> None:
    class Later(Made):
        revision = 2

    model = tmp_path / "net.py"
    model.write_text("def build(): ...\n")

    class WithModel(Made):
        takes_model = True

    keys = {
        plan([study], "quick", subject).all[0].key
        for study, subject in (
            (Made(), Subject()),
            (Later(), Subject()),
            (WithModel(), Subject(model=f"{model}:build")),
        )
    }
    model.write_text("def build(): return None\n")
    keys.add(plan([WithModel()], "quick", Subject(model=f"{model}:build")).all[0].key)
    assert len(keys) == 4


def test_a_subject_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="made has its own networks: run it without --model"):
        plan([Made()], "quick", Subject(model="net.py:build"))


def test_a_store_in_use_is_refused(tmp_path: Path) -> None:
    with Trials(tmp_path), pytest.raises(InputError, match="in use by another process"):
        carry_out(plan([Made()], "quick"), tmp_path)
