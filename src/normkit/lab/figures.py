"""The report's figures, as SVG that takes its colors from the page and so follows light and dark."""

from __future__ import annotations

import io
import re
import statistics
from collections.abc import Callable, Iterable, Sequence

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullFormatter, NullLocator

from normkit.lab.comparison import Comparison, Row, final, gap
from normkit.lab.intervals import Estimate
from normkit.lab.models import NORMS, USUAL
from normkit.lab.records import Measurement

# Matplotlib wants colors where the page has variables: each color stands for one, and _svg puts it in place.
_TEXT, _LINE = "#0a0b01", "#0a0b02"
_COLORS = {norm: f"#0a0c{index:02x}" for index, norm in enumerate(NORMS)}
_VARIABLES = {_TEXT: "currentColor", _LINE: "var(--line)"} | {
    color: f"var(--norm-{norm})" for norm, color in _COLORS.items()
}
# More colors than the usual norms have are not told apart: the others have these again, with other dashes.
DASHES = {norm: ("-", (0, (5, 1.5)), (0, (1.5, 1)))[i // len(USUAL)] for i, norm in enumerate(NORMS)}

_STYLE = {
    "svg.fonttype": "none",  # text stays text: searchable, read aloud, in the page's font
    "font.size": 10,
    "text.color": _TEXT,
    "axes.labelcolor": _TEXT,
    "axes.edgecolor": _LINE,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _LINE,
    "grid.linewidth": 0.6,
    "xtick.color": _LINE,
    "ytick.color": _LINE,
    "xtick.labelcolor": _TEXT,
    "ytick.labelcolor": _TEXT,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
}
_WIDTH, _HEIGHT = 7.4, 4.2  # inches, of curves with up to 14 labels


def accuracy_curves(comparison: Comparison) -> str:
    """Validation accuracy over steps: each norm's median, and a band from its lowest to its highest seed."""

    def draw() -> Figure:
        curves = {row.norm: _over_steps(row, lambda m: 1 - m.val_accuracy) for row in _drawn(comparison)}
        stretch = max(1.0, len(curves) / 14)
        figure = Figure(figsize=(_WIDTH, stretch * _HEIGHT), layout="constrained")
        axes = figure.add_subplot()
        errors = (error for curve in curves.values() for values in curve.values() for error in values)
        perfect = min(filter(None, errors), default=0.01) / 2  # a logarithm has no place for an error of 0
        ends = {}
        for norm, curve in curves.items():
            median, low, high = (
                [max(summary(values), perfect) for values in curve.values()]
                for summary in (statistics.median, min, max)
            )
            axes.fill_between(list(curve), low, high, color=_COLORS[norm], alpha=0.12, lw=0)
            axes.plot(list(curve), median, color=_COLORS[norm], lw=2, ls=DASHES[norm])
            ends[norm] = median[-1]
        target = max(1 - comparison.target, perfect)
        axes.axhline(target, color=_TEXT, lw=0.9, ls=(0, (5, 4)))
        axes.set(yscale="log", xlabel="optimizer steps", ylabel="validation accuracy")
        axes.invert_yaxis()
        axes.yaxis.set_major_locator(
            FixedLocator([0.9, 0.5, 0.2, 0.1, 0.05, 0.02, 0.01, 0.005, 0.002, 0.001])
        )
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda error, _: f"{100 * (1 - error):g}%"))
        _step_axis(axes, curves.values())
        _label_ends(axes, ends, 0.062 / stretch)
        axes.annotate(
            f"target {comparison.target:.1%}",
            (0, target),
            xycoords=axes.get_yaxis_transform(),
            xytext=(4, 4),
            textcoords="offset points",
        )
        return figure

    return _svg(draw, "accuracy")


def loss_gaps(comparison: Comparison) -> str:
    """Training and validation loss over steps, a panel for each norm; what lies between them is the gap."""

    def draw() -> Figure:
        rows = _drawn(comparison)
        columns = min(3, len(rows))
        height = -(-len(rows) // columns)
        figure = Figure(figsize=(_WIDTH, 0.5 + 1.75 * height), layout="constrained")
        panels = figure.subplots(height, columns, sharex=True, sharey=True, squeeze=False).flat
        for row, axes in zip(rows, panels, strict=False):
            training = _over_steps(row, lambda m: m.train_loss)
            validation = _over_steps(row, lambda m: m.val_loss)
            color = _COLORS[row.norm]
            steps = list(training)
            lower, upper = ([*map(statistics.median, curve.values())] for curve in (training, validation))
            axes.fill_between(steps, lower, upper, color=color, alpha=0.25, lw=0)
            axes.plot(steps, lower, color=color, lw=1.2, ls=(0, (3, 2)))
            axes.plot(steps, upper, color=color, lw=1.8)
            axes.set(title=row.norm, yscale="log")
            axes.yaxis.set_major_formatter(FuncFormatter(lambda loss, _: f"{loss:g}"))
            axes.yaxis.set_minor_formatter(NullFormatter())
            _step_axis(axes, [training])
        for axes in panels:
            axes.set_visible(False)
        figure.supxlabel("optimizer steps", fontsize=10)
        figure.supylabel("cross-entropy loss", fontsize=10)
        return figure

    return _svg(draw, "loss")


def intervals(comparison: Comparison) -> str:
    """Steps, final accuracy and gap of every row: the mean with its interval, and below it each seed."""

    def draw() -> Figure:
        rows = comparison.rows
        figure = Figure(figsize=(_WIDTH, 0.9 + 0.34 * len(rows)), layout="constrained")
        left, middle, right = figure.subplots(1, 3, sharey=True)
        several = len({row.lr for row in rows}) > 1
        names = [f"{row.norm}, {row.lr:g}" if several else row.norm for row in rows]
        left.set_yticks(range(len(rows)), names)
        left.set_ylim(len(rows) - 0.5, -0.5)
        for y, row in enumerate(rows):
            lasts = [final(run) for run in row.runs if run.status != "diverged"]
            arrived = [float(step) for step in row.steps.values if step is not None]
            _dots(left, y, row, arrived, row.steps.mean)
            _dots(middle, y, row, [100 * m.val_accuracy for m in lasts], row.accuracy, scale=100)
            _dots(right, y, row, [gap(m) for m in lasts], row.gap)
            if not row.steps.complete:
                never = f"{len(row.runs) - row.steps.reached} of {len(row.runs)} never"
                left.annotate(never, (1, y), xycoords=left.get_yaxis_transform(), ha="right", va="center")
        right.axvline(0, color=_TEXT, lw=0.8)
        for axes, title in (
            (left, f"steps to {comparison.target:.1%}"),
            (middle, "final accuracy, %"),
            (right, "gap, points"),
        ):
            axes.set_title(title)
            axes.tick_params(axis="y", length=0)
            axes.spines.left.set_visible(False)
            axes.grid(visible=False, axis="y")
            axes.xaxis.set_major_locator(MaxNLocator(4))
        return figure

    return _svg(draw, "intervals")


def spread(values: Sequence[float], distance: float) -> list[float]:
    """Move values apart until neighbors are `distance` apart, keeping their order and the mean of each crowd.

    >>> spread([0.0, 0.0, 5.0], 1.0)
    [-0.5, 0.5, 5.0]
    """
    order = sorted(range(len(values)), key=lambda index: values[index])
    crowds: list[tuple[float, int]] = []  # (sum of wished first positions, members)
    for rank, index in enumerate(order):
        crowds.append((values[index] - rank * distance, 1))
        while len(crowds) > 1 and crowds[-2][0] / crowds[-2][1] > crowds[-1][0] / crowds[-1][1]:
            (a, m), (b, n) = crowds.pop(), crowds.pop()
            crowds.append((a + b, m + n))
    moved = [total / members for total, members in crowds for _ in range(members)]
    result = [0.0] * len(values)
    for rank, index in enumerate(order):
        result[index] = moved[rank] + rank * distance
    return result


def _drawn(comparison: Comparison) -> list[Row]:
    return [row for row in comparison.best_rows if row.diverged < len(row.runs)]


def _over_steps(row: Row, value: Callable[[Measurement], float]) -> dict[int, list[float]]:
    """Step to one value per run that did not diverge, without the measurement before the first step."""
    curve: dict[int, list[float]] = {}
    for run in row.runs:
        if run.status != "diverged":
            for measured in (m for epoch in run.epochs for m in epoch.measurements if m.step > 0):
                curve.setdefault(measured.step, []).append(value(measured))
    return curve


def _step_axis(axes: Axes, curves: Iterable[Iterable[int]]) -> None:
    """A logarithmic axis, on which equal distances are equal ratios of steps."""
    steps = [step for curve in curves for step in curve]
    axes.set_xscale("log")
    axes.set_xlim(min(steps), max(max(steps), min(steps) + 1))
    axes.xaxis.set_major_locator(FixedLocator([m * 10**e for e in range(7) for m in (1, 2, 5)]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda step, _: f"{step:,.0f}"))


def _label_ends(axes: Axes, ends: dict[str, float], distance: float) -> None:
    """Name each line at its right end, the names moved apart, with a thread from line to name."""
    to_axes = axes.transData + axes.transAxes.inverted()
    heights = [float(to_axes.transform((1, y))[1]) for y in ends.values()]
    for norm, height, label in zip(ends, heights, spread(heights, distance), strict=True):
        axes.plot(
            [1.005, 1.035],
            [height, label],
            transform=axes.transAxes,
            color=_COLORS[norm],
            lw=1,
            clip_on=False,
        )
        axes.text(
            1.045, label, norm, transform=axes.transAxes, color=_COLORS[norm], va="center", weight="bold"
        )


def _dots(
    axes: Axes, y: int, row: Row, values: list[float], mean: Estimate | None, scale: float = 1.0
) -> None:
    color = _COLORS[row.norm]
    axes.plot(values, [y + 0.27] * len(values), "o", color=color, ms=4, alpha=0.4, mew=0)
    if mean is None:
        return
    if mean.low is not None and mean.high is not None:
        axes.plot([scale * mean.low, scale * mean.high], [y, y], color=color, lw=2, solid_capstyle="round")
    axes.plot([scale * mean.mean], [y], "o", color=color, ms=7)


def _svg(draw: Callable[[], Figure], name: str) -> str:
    """Draw, and strip what belongs to a file of its own, so that the SVG can stand in a page.

    The same comparison gives the same text: no date, and identifiers that follow from `name`.
    """
    target = io.StringIO()
    with matplotlib.rc_context(_STYLE | {"svg.hashsalt": name}):
        draw().savefig(target, format="svg", metadata={"Date": None})
    attributes, _, body = target.getvalue().partition("<svg ")[2].partition(">")
    body = re.sub(r"<metadata>.*?</metadata>|<defs>\s*<style.*?</defs>", "", body, flags=re.DOTALL)
    view = re.findall(r'viewBox="[^"]*"', attributes)[0]
    return f"<svg {view}>" + re.sub("|".join(_VARIABLES), lambda match: _VARIABLES[match.group()], body)
