"""The figures of a comparison, as SVG that takes its colors from the page and so follows light and dark."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullFormatter, NullLocator

from normkit.lab.comparison import Comparison, Row, final, gap
from normkit.lab.drawing import DASHES, HEIGHT, WIDTH, color, ink, interval, label_ends, rows, svg
from normkit.lab.intervals import Estimate
from normkit.lab.records import Measurement


def accuracy_curves(comparison: Comparison) -> str:
    """Validation accuracy over steps: each norm's median, and a band from its lowest to its highest seed."""

    def draw() -> Figure:
        curves = {row.norm: _over_steps(row, lambda m: 1 - m.val_accuracy) for row in _drawn(comparison)}
        stretch = max(1.0, len(curves) / 14)
        figure = Figure(figsize=(WIDTH, stretch * HEIGHT), layout="constrained")
        axes = figure.add_subplot()
        errors = (error for curve in curves.values() for values in curve.values() for error in values)
        perfect = min(filter(None, errors), default=0.01) / 2  # a logarithm has no place for an error of 0
        ends = {}
        for norm, curve in curves.items():
            median, low, high = (
                [max(summary(values), perfect) for values in curve.values()]
                for summary in (statistics.median, min, max)
            )
            axes.fill_between(list(curve), low, high, color=color(norm), alpha=0.12, lw=0)
            axes.plot(list(curve), median, color=color(norm), lw=2, ls=DASHES[norm])
            ends[norm] = median[-1]
        target = max(1 - comparison.target, perfect)
        axes.axhline(target, color=ink(), lw=0.9, ls=(0, (5, 4)))
        axes.set(yscale="log", xlabel="optimizer steps", ylabel="validation accuracy")
        axes.invert_yaxis()
        axes.yaxis.set_major_locator(
            FixedLocator([0.9, 0.5, 0.2, 0.1, 0.05, 0.02, 0.01, 0.005, 0.002, 0.001])
        )
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda error, _: f"{100 * (1 - error):g}%"))
        _step_axis(axes, curves.values())
        last = max(max(curve) for curve in curves.values())
        label_ends(axes, [(norm, color(norm), last, y) for norm, y in ends.items()], 0.062 / stretch)
        axes.annotate(
            f"target {comparison.target:.1%}",
            (0, target),
            xycoords=axes.get_yaxis_transform(),
            xytext=(4, 4),
            textcoords="offset points",
        )
        return figure

    return svg(draw, "accuracy")


def loss_gaps(comparison: Comparison) -> str:
    """Training and validation loss over steps, a panel for each norm; what lies between them is the gap."""

    def draw() -> Figure:
        rows = _drawn(comparison)
        columns = min(3, len(rows))
        height = -(-len(rows) // columns)
        figure = Figure(figsize=(WIDTH, 0.5 + 1.75 * height), layout="constrained")
        panels = figure.subplots(height, columns, sharex=True, sharey=True, squeeze=False).flat
        for row, axes in zip(rows, panels, strict=False):
            training = _over_steps(row, lambda m: m.train_loss)
            validation = _over_steps(row, lambda m: m.val_loss)
            shade = color(row.norm)
            steps = list(training)
            lower, upper = ([*map(statistics.median, curve.values())] for curve in (training, validation))
            axes.fill_between(steps, lower, upper, color=shade, alpha=0.25, lw=0)
            axes.plot(steps, lower, color=shade, lw=1.2, ls=(0, (3, 2)))
            axes.plot(steps, upper, color=shade, lw=1.8)
            axes.set(title=row.norm, yscale="log")
            axes.yaxis.set_major_formatter(FuncFormatter(lambda loss, _: f"{loss:g}"))
            axes.yaxis.set_minor_formatter(NullFormatter())
            _step_axis(axes, [training])
        for axes in panels:
            axes.set_visible(False)
        figure.supxlabel("optimizer steps", fontsize=10)
        figure.supylabel("cross-entropy loss", fontsize=10)
        return figure

    return svg(draw, "loss")


def intervals(comparison: Comparison) -> str:
    """Steps, final accuracy and gap of every row: the mean with its interval, and below it each seed."""

    def draw() -> Figure:
        drawn = comparison.rows
        figure = Figure(figsize=(WIDTH, 0.9 + 0.34 * len(drawn)), layout="constrained")
        left, middle, right = figure.subplots(1, 3, sharey=True)
        several = len({row.lr for row in drawn}) > 1
        names = [f"{row.norm}, {row.lr:g}" if several else row.norm for row in drawn]
        for y, row in enumerate(drawn):
            lasts = [final(run) for run in row.runs if run.status != "diverged"]
            arrived = [float(step) for step in row.steps.values if step is not None]
            _dots(left, y, row, arrived, row.steps.mean)
            _dots(middle, y, row, [100 * m.val_accuracy for m in lasts], row.accuracy, scale=100)
            _dots(right, y, row, [gap(m) for m in lasts], row.gap)
            if not row.steps.complete:
                never = f"{len(row.runs) - row.steps.reached} of {len(row.runs)} never"
                left.annotate(never, (1, y), xycoords=left.get_yaxis_transform(), ha="right", va="center")
        right.axvline(0, color=ink(), lw=0.8)
        for axes, title in (
            (left, f"steps to {comparison.target:.1%}"),
            (middle, "final accuracy, %"),
            (right, "gap, points"),
        ):
            axes.set_title(title)
            rows(axes, names)
            axes.xaxis.set_major_locator(MaxNLocator(4))
        return figure

    return svg(draw, "intervals")


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


def _dots(
    axes: Axes, y: int, row: Row, values: list[float], mean: Estimate | None, scale: float = 1.0
) -> None:
    shade = color(row.norm)
    axes.plot(values, [y + 0.27] * len(values), "o", color=shade, ms=4, alpha=0.6, mew=0)
    if mean is not None:
        low, high = (None if end is None else scale * end for end in (mean.low, mean.high))
        interval(axes, y, scale * mean.mean, low, high, shade)
