"""A run of the accuracy benchmark as tables: for the terminal, and in Markdown for the documentation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from normkit.bench.accuracy import NORMS, Accuracy, Errors
from normkit.bench.table import columns, terminal

_Y = "Output: largest absolute error"
_STATISTICS = "Batch norm's mean, variance: largest relative error"
_NOTES = """\
Against the two-pass formula in float64 on the rounded input. The error of the mean is relative to the root \
of the mean square. A dash: not given by the layer, or not within the range of float32, which stores it."""


@dataclass(frozen=True)
class _Grid:
    title: str
    header: list[str]
    rows: list[list[str]]


def print_table(accuracy: Accuracy) -> None:
    """Print a run for a person.

    Raises:
        MissingExtraError: rich is not installed.
    """
    console = terminal()
    console.print(str(accuracy.machine))
    console.print(f"kernels: {accuracy.backend}")
    for peer, reason in accuracy.absent.items():
        console.print(f"without {peer}: {reason}")
    for grid in _grids(accuracy):
        table = columns(*grid.header)
        for row in grid.rows:
            table.add_row(*row)
        console.print(f"\n{grid.title}", table)
    console.print(_NOTES)


def to_markdown(accuracy: Accuracy) -> str:
    """The same tables in Markdown."""
    lines = [f"{accuracy.machine}. Kernels: {accuracy.backend}. {_NOTES}"]
    for grid in _grids(accuracy):
        lines += ["", f"**{grid.title}**", ""]
        lines += [f"| {' | '.join(row)} |" for row in (grid.header, ["---"] * len(grid.header), *grid.rows)]
    return "\n".join(lines) + "\n"


def _grids(accuracy: Accuracy) -> list[_Grid]:
    contenders = list(dict.fromkeys(one.contender for one in accuracy.errors))
    inputs = [
        list(same)
        for _, same in groupby(accuracy.errors, lambda one: (one.norm, one.dtype, one.values, one.size))
    ]
    header = ["norm, input", *contenders]
    batch = [same for same in inputs if same[0].norm == "batch"]
    return [
        _Grid(_Y, header, [[_name(same[0]), *_cells(same, contenders, ["y"])] for same in inputs]),
        _Grid(
            _STATISTICS,
            header,
            [[_name(same[0]), *_cells(same, contenders, ["mean", "var"])] for same in batch],
        ),
    ]


def _name(one: Errors) -> str:
    return f"{NORMS[one.norm]} {one.dtype} {one.values}, {'x'.join(map(str, one.size))}"


def _cells(same: Sequence[Errors], contenders: Sequence[str], what: Sequence[str]) -> list[str]:
    """Per contender its figures; a dash for one that did not run, as the layouts of a norm over rows."""
    found = {one.contender: ", ".join(_figure(getattr(one, key)) for key in what) for one in same}
    return [found.get(contender, "—") for contender in contenders]


def _figure(error: float | None) -> str:
    """Two digits; a dash where there is no figure.

    >>> _figure(0.0123), _figure(0.0), _figure(float("nan")), _figure(None)
    ('1.2e-02', '0', 'NaN', '—')
    """
    if error is None:
        return "—"
    if math.isnan(error):
        return "NaN"
    return "0" if error == 0 else f"{error:.1e}"
