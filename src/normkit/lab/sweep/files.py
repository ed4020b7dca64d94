"""What studies measured, as files for other tools: figures, tables, and rows and runs for `normkit.lab.export`."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from normkit import page
from normkit.lab import drawing
from normkit.lab.export import Row, Scalar
from normkit.lab.studies.study import Level, Result, Trial
from normkit.lab.sweep.sweep import Report

FORMATS = ("png", "svg", "csv")


def write_formats(reports: Sequence[Report], folder: Path, formats: Sequence[str]) -> list[Path]:
    """Write each study's figure as png and svg, its trials as csv, a row each and curves left out."""
    folder.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    for report in reports:
        for kind in formats:
            path = folder / f"{report.study.name}.{kind}"
            content = _content(report, kind)
            if content is not None:
                page.write(path, content)
                written.append(path)
    return written


def _content(report: Report, kind: str) -> str | bytes | None:
    if kind == "csv":
        return _wide(report)
    if report.draw is None:
        return None
    if kind == "png":
        return drawing.png_file(report.draw)
    return drawing.svg_file(report.draw, report.study.name)


def _wide(report: Report) -> str:
    measured = report.results.measured
    levels = list(dict.fromkeys(name for trial, _ in measured for name in trial.levels))
    values = list(
        dict.fromkeys(
            name
            for _, result in measured
            for name, value in result.items()
            if not isinstance(value, (list, dict))
        )
    )
    target = io.StringIO()
    writer = csv.writer(target, lineterminator="\n")
    writer.writerow([*levels, "seed", *values])
    for trial, result in measured:
        of_trial = [trial.levels.get(name) for name in levels]
        writer.writerow([*of_trial, trial.seed, *(result.get(name) for name in values)])
    return target.getvalue()


def rows(reports: Sequence[Report]) -> Iterator[Row]:
    """The long table: every number of every trial, curves by their steps, what is nested by names with dots."""
    for report in reports:
        for trial, result in report.results.measured:
            levels = json.dumps(dict(trial.levels))
            for quantity, step, value in numbers(result):
                number = float(value) if isinstance(value, (int, float)) else None
                string = value if isinstance(value, str) else None
                yield (
                    report.study.name,
                    report.study.claim,
                    levels,
                    trial.seed,
                    quantity,
                    step,
                    number,
                    string,
                )


def numbers(result: Result | dict[str, Any], prefix: str = "") -> Iterator[tuple[str, int | None, Any]]:
    """Each value of a result with its name, and its place where it is part of a list.

    >>> list(numbers({"loss": 1.5, "curve": [2.0, 1.0], "by": {"layer": [[3.0]]}}))
    [('loss', None, 1.5), ('curve', 0, 2.0), ('curve', 1, 1.0), ('by.layer.0', 0, 3.0)]
    """
    for name, value in result.items():
        if isinstance(value, dict):
            yield from numbers(value, f"{prefix}{name}.")
        elif isinstance(value, list):
            flat = not any(isinstance(item, (list, dict)) for item in value)
            if flat:
                yield from ((prefix + name, step, item) for step, item in enumerate(value))
            else:
                yield from numbers({str(i): item for i, item in enumerate(value)}, f"{prefix}{name}.")
        else:
            yield prefix + name, None, value


def runs(reports: Sequence[Report]) -> Iterator[tuple[str, list[Scalar]]]:
    """Each trial by a name, with its curves over their steps and other numbers at step 0."""
    for report in reports:
        for trial, result in report.results.measured:
            found = [(quantity, step or 0, value) for quantity, step, value in numbers(result)]
            scalars = [
                (quantity, step, float(v)) for quantity, step, v in found if isinstance(v, (int, float))
            ]
            yield f"{report.study.name}/{_run(trial)}", scalars


def _run(trial: Trial) -> str:
    def word(level: Level) -> str:
        return str(level).replace("/", "_")

    return "-".join(
        [*(f"{name}={word(level)}" for name, level in trial.levels.items()), f"seed={trial.seed}"]
    )
