"""The comparison as a table: the same words in the terminal and in the report."""

from __future__ import annotations

from rich.box import SIMPLE
from rich.table import Table

from normkit.lab.comparison import Comparison, Contrast, Row
from normkit.lab.intervals import Estimate, StepsToTarget

MINUS = "\N{MINUS SIGN}"


def number(value: float, digits: int, sign: bool = False) -> str:
    """A number with `digits` decimals and a true minus sign; never a negative zero.

    >>> number(-0.04, 1), number(2.5, 1, sign=True)
    ('0.0', '+2.5')
    """
    text = f"{value:+.{digits}f}" if sign else f"{value:.{digits}f}"
    if float(text) == 0:
        text = text.lstrip("+-")
    return text.replace("-", MINUS)


def plus_minus(estimate: Estimate | None, digits: int, scale: float = 1.0) -> str:
    """An estimate as `mean ± half`; the mean alone where there is no interval, a dash where there is none."""
    if estimate is None:
        return "—"
    mean = number(scale * estimate.mean, digits)
    half = estimate.half_width
    return mean if half is None else f"{mean} ± {number(scale * half, digits)}"


def span(estimate: Estimate, digits: int, sign: bool = False) -> str:
    """An estimate's interval as `low to high`; empty where there is none."""
    if estimate.low is None or estimate.high is None:
        return ""
    return f"{number(estimate.low, digits, sign)} to {number(estimate.high, digits, sign)}"


def steps(value: StepsToTarget) -> str:
    """Steps as `mean ± half` where every run arrived, else the median and how many arrived."""
    if value.complete:
        return plus_minus(value.mean, 0)
    median = f">{value.limit}" if value.median is None else f"median {value.median}"
    return f"{median}, {value.reached} of {len(value.values)}"


def header(comparison: Comparison) -> list[str]:
    """The columns: those for the learning rate, times and diverged runs only where they tell something."""
    names = ["norm", "lr"] if _several_lrs(comparison) else ["norm"]
    names += [f"steps to {100 * comparison.target:.1f}%", "accuracy, %", "loss", "gap, pts"]
    names += ["ms/step"] if comparison.timed else []
    return [*names, "diverged"] if _any_diverged(comparison) else names


def cells(comparison: Comparison, row: Row) -> list[str]:
    """One row in the order of `header`."""
    values = [row.norm]
    if _several_lrs(comparison):
        values.append(f"{row.lr:g} *" if row.best else f"{row.lr:g}  ")
    values += [
        steps(row.steps),
        plus_minus(row.accuracy, 1, scale=100),
        plus_minus(row.loss, 3),
        plus_minus(row.gap, 1),
    ]
    if comparison.timed:
        values.append(plus_minus(row.milliseconds, 2))
    if _any_diverged(comparison):
        values.append(f"{row.diverged} of {len(row.runs)}" if row.diverged else "")
    return values


CONTRAST_HEADER = ["norm", "steps, ratio", "C1: fewer steps", "gap, difference", "C7: smaller gap"]


def contrast_cells(contrast: Contrast) -> list[str]:
    """One row in the order of `CONTRAST_HEADER`."""
    ratio, difference = contrast.steps_ratio, contrast.gap_difference
    return [
        contrast.norm,
        "—" if ratio is None else contrast.bound + _with_span(ratio, 2),
        contrast.fewer_steps,
        "—" if difference is None else _with_span(difference, 2, sign=True),
        contrast.smaller_gap,
    ]


def legend(comparison: Comparison) -> str:
    """What the numbers mean, for the foot of the table."""
    seeds = comparison.seeds
    parts = [
        f"± is the 95% interval of the mean over {seeds} seeds" if seeds > 1 else "one seed: no intervals",
        "accuracy and loss are final and on the validation split",
        "gap is training minus validation accuracy, in percentage points",
    ]
    if any(not row.steps.complete for row in comparison.rows):
        parts.append(f"steps give median and count where some of the {seeds} runs never arrived")
    if _several_lrs(comparison):
        parts.append("* has the lowest final validation loss of its norm")
    if _any_diverged(comparison):
        parts.append("diverged runs are left out of final values")
    if not comparison.timed:
        parts.append("no time per step, as runs shared the machine")
    return "; ".join(parts) + "."


def terminal(comparison: Comparison) -> Table:
    """The table for the terminal."""
    table = Table(box=SIMPLE, padding=(0, 1, 0, 0), caption=legend(comparison), caption_justify="left")
    for index, name in enumerate(header(comparison)):
        table.add_column(name, justify="right" if index else "left")
    for row in comparison.rows:
        table.add_row(*cells(comparison, row))
    return table


def _with_span(estimate: Estimate, digits: int, sign: bool = False) -> str:
    mean, interval = number(estimate.mean, digits, sign), span(estimate, digits, sign)
    return f"{mean} ({interval})" if interval else mean


def _several_lrs(comparison: Comparison) -> bool:
    return len({row.lr for row in comparison.rows}) > 1


def _any_diverged(comparison: Comparison) -> bool:
    return any(row.diverged for row in comparison.rows)
