"""The measurements of a comparison as rows of a table and as runs of event files, for `normkit.lab.export`."""

from __future__ import annotations

import json
from collections.abc import Iterator

from normkit.lab.comparison import Comparison
from normkit.lab.export import Row, Scalar
from normkit.lab.records import Run

_QUANTITIES = ("train_loss", "train_accuracy", "val_loss", "val_accuracy")


def rows(comparison: Comparison) -> Iterator[Row]:
    """Each measurement of each run, by the optimizer step."""
    for run in _of(comparison):
        levels = json.dumps({"norm": run.settings.norm, "lr": run.settings.lr})
        for quantity, step, value in _scalars(run):
            yield "compare", "", levels, run.settings.seed, quantity, step, value, None


def runs(comparison: Comparison) -> Iterator[tuple[str, list[Scalar]]]:
    """Each run by a name, with its measurements."""
    for run in _of(comparison):
        settings = run.settings
        yield f"norm={settings.norm}-lr={settings.lr:g}-seed={settings.seed}", _scalars(run)


def _of(comparison: Comparison) -> Iterator[Run]:
    for row in comparison.rows:
        yield from row.runs


def _scalars(run: Run) -> list[Scalar]:
    measured = [m for epoch in run.epochs for m in epoch.measurements]
    return [(quantity, m.step, float(getattr(m, quantity))) for m in measured for quantity in _QUANTITIES]
