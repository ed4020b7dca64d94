"""Every number that was measured, for other tools: one long table as CSV or Parquet, and TensorBoard's event files."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from pathlib import Path

from normkit import page
from normkit.errors import optional, unknown

EXPORTS = ("csv", "parquet")

# One row of the long table: a number or a string that was measured; `step` counts along a curve.
Row = tuple[str, str, str, int, str, int | None, float | None, str | None]
COLUMNS = ("study", "claim", "levels", "seed", "quantity", "step", "value", "text")

Scalar = tuple[str, int, float]  # a quantity, a step, a value


def check(export: str | None, tensorboard: Path | None) -> None:
    """Refuse what cannot be written, before anything runs.

    Raises:
        InputError: an unknown kind of table.
        MissingExtraError: what is needed for it is not installed.
    """
    if export is not None and export not in EXPORTS:
        raise unknown("export", export, EXPORTS)
    if export == "parquet":
        optional("pyarrow", "parquet")
    if tensorboard is not None:
        optional("tensorboard", "tensorboard")


def write_table(rows: Iterable[Row], path: Path) -> None:
    """Write the long table, as the path's suffix says: .csv or .parquet."""
    table = list(rows)
    if path.suffix == ".csv":
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows(table)
        page.write(path, text.getvalue())
        return
    arrow, parquet = optional("pyarrow", "parquet"), optional("pyarrow.parquet", "parquet")
    string, integer = arrow.string(), arrow.int64()
    kinds = [string, string, string, integer, string, integer, arrow.float64(), string]
    columns = list(zip(*table, strict=True)) or [()] * len(COLUMNS)
    arrays = [arrow.array(column, kind) for column, kind in zip(columns, kinds, strict=True)]
    target = io.BytesIO()
    parquet.write_table(arrow.table(arrays, names=list(COLUMNS)), target)
    page.write(path, target.getvalue())


def write_events(runs: Iterable[tuple[str, Iterable[Scalar]]], folder: Path) -> None:
    """Write event files, a folder for each run, by its name."""
    writers = optional("torch.utils.tensorboard", "tensorboard")
    for name, scalars in runs:
        with writers.SummaryWriter(str(folder / name)) as writer:
            for quantity, step, value in scalars:
                writer.add_scalar(quantity, value, step)
