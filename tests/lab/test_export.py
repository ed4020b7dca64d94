from __future__ import annotations

import csv
from pathlib import Path

import pytest
from hand_made import SAMPLES
from hand_made import runs as made_runs
from pyarrow import parquet
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from normkit.cli import run
from normkit.lab.comparison import summarize
from normkit.lab.export import COLUMNS, write_events, write_table
from normkit.lab.measurements import rows, runs

CURVES = [[0.4, 0.7, 0.90], [0.3, 0.8, 0.93]]
COMPARISON = summarize([*made_runs("none", CURVES), *made_runs("batch", CURVES)], samples=SAMPLES, chance=0.1)


def test_both_kinds_of_table_have_every_measurement(tmp_path: Path) -> None:
    table = list(rows(COMPARISON))
    assert len(table) == 2 * 2 * 4 * 4  # norms, seeds, measurements, quantities
    for suffix in ("csv", "parquet"):
        write_table(table, tmp_path / f"runs.{suffix}")
    assert [tuple(row.values()) for row in parquet.read_table(tmp_path / "runs.parquet").to_pylist()] == table
    with (tmp_path / "runs.csv").open(newline="") as file:
        header, *lines = csv.reader(file)
    assert tuple(header) == COLUMNS
    assert lines == [["" if value is None else str(value) for value in row] for row in table]
    assert table[3] == ("compare", "", '{"norm": "none", "lr": 0.1}', 0, "val_accuracy", 0, 0.1, None)


def test_event_files_have_a_run_each(tmp_path: Path) -> None:
    write_events(runs(COMPARISON), tmp_path)
    folder = tmp_path / "norm=batch-lr=0.1-seed=1"
    found = EventAccumulator(str(folder)).Reload().Scalars("val_accuracy")
    # Event files hold float32.
    assert [(e.step, e.value) for e in found] == [
        (step, pytest.approx(value, rel=2**-24))
        for step, value in zip((0, 10, 20, 30), (0.1, *CURVES[1]), strict=True)
    ]
    assert len([*tmp_path.iterdir()]) == 4


def test_an_empty_table_has_its_columns(tmp_path: Path) -> None:
    write_table([], tmp_path / "none.parquet")
    assert tuple(parquet.read_table(tmp_path / "none.parquet").column_names) == COLUMNS


def test_compare_writes_them_beside_its_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [
        "compare",
        "--model",
        "mlp",
        "--norms",
        "none",
        "--epochs",
        "1",
        "--seeds",
        "1",
        "--out",
        str(tmp_path),
    ]
    assert run([*arguments, "--export", "csv", "--tensorboard", str(tmp_path / "events")]) == 0
    assert capsys.readouterr().out.endswith(f"Files: {tmp_path / 'runs.csv'}\nFiles: {tmp_path / 'events'}\n")
    assert len((tmp_path / "runs.csv").read_text().splitlines()) == 1 + 5 * 4
    assert run([*arguments, "--export", "xls"]) == 2
    assert capsys.readouterr().err == "normkit: unknown export 'xls': choose from csv, parquet\n"
