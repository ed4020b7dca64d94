"""What figures are drawn with: a style, colors that a page decides, lines with bands and names, effects with intervals.

A figure is drawn by a function, which is called again for each medium: in a page its colors are the page's variables,
in a file they are its own. So colors are asked for while drawing (`color`, `ink`), never kept.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Literal

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from normkit.lab.bootstrap import bootstrap_mean
from normkit.lab.intervals import Estimate
from normkit.lab.models import NORMS, USUAL
from normkit.lab.palette import LIGHT, SAME, variables

WIDTH, HEIGHT = 7.4, 4.2  # inches

# Matplotlib wants colors where the page has variables: each of these stands for one, and `svg` puts it in place.
_STAND_INS = {name: f"#0a0b{index:02x}" for index, name in enumerate(LIGHT)}
_colors: ContextVar[Mapping[str, str]] = ContextVar("colors", default=_STAND_INS)

_DASHES = ("-", (0, (5, 1.5)), (0, (1.5, 1)), (0, (5, 1.5, 1.5, 1.5)))
DASHES = {norm: _DASHES[i // len(USUAL)] for i, norm in enumerate(NORMS)}


def color(norm: str) -> str:
    """The color of a norm, the same in every figure."""
    return _colors.get()[f"norm-{SAME.get(norm, norm)}"]


def series(index: int) -> str:
    """The color of something that is no norm, the first, the second and so on; six are told apart."""
    return color((USUAL[1], USUAL[2], USUAL[4], USUAL[3], USUAL[5], USUAL[0])[index % len(USUAL)])


def ink() -> str:
    """The color of text."""
    return _colors.get()["ink"]


def rule() -> str:
    """The color of thin lines: grid, axes."""
    return _colors.get()["line"]


@dataclass(frozen=True)
class Curve:
    """A line of a figure: for each x the values of the seeds, of which it shows the median and the spread."""

    name: str  # written at its end
    x: Sequence[float]
    values: Sequence[Sequence[float]]  # for each x those of all seeds; may differ in number
    color: str
    dashes: Any = "-"
    band: Literal["range", "interval", "none"] = (
        "range"  # lowest to highest seed, or 95% of the mean's bootstrap
    )


def curves(axes: Axes, drawn: Sequence[Curve], *, distance: float = 0.062) -> None:
    """Draw lines with their bands, each named at its right end in its color; set the scales before.

    Args:
        axes: where.
        drawn: the lines.
        distance: between two names, as a share of the height of the axes.
    """
    ends: list[tuple[Curve, float]] = []
    for curve in drawn:
        low, middle, high = _band(curve, axes.get_yscale() == "log")
        if curve.band != "none":
            axes.fill_between(curve.x, low, high, color=curve.color, alpha=0.14, lw=0)
        axes.plot(curve.x, middle, color=curve.color, lw=2, ls=curve.dashes)
        if curve.x:
            ends.append((curve, middle[-1]))
    if ends:
        axes.set_xlim(right=max(max(curve.x) for curve, _ in ends))
    label_ends(axes, [(c.name, c.color, c.x[-1], y) for c, y in ends], distance)


def _band(curve: Curve, logarithmic: bool) -> tuple[list[float], list[float], list[float]]:
    """Its lower end, its middle, its upper end for each x; on a logarithmic scale the interval is of logarithms."""
    if curve.band == "interval":
        there, back = (np.log, np.exp) if logarithmic else (np.asarray, np.asarray)
        estimates = [bootstrap_mean(there(values).tolist()) for values in curve.values]
        low = [e.mean if e.low is None else e.low for e in estimates]
        high = [e.mean if e.high is None else e.high for e in estimates]
        return back(low).tolist(), back([e.mean for e in estimates]).tolist(), back(high).tolist()
    low, middle, high = (
        [float(summary(values)) for values in curve.values] for summary in (np.min, np.median, np.max)
    )
    return low, middle, high


def label_ends(axes: Axes, ends: Sequence[tuple[str, str, float, float]], distance: float = 0.062) -> None:
    """Name points (name, color, x, y) at the right side, the names moved apart, a thread from point to name."""
    axes.autoscale_view()  # the scales of what was drawn, which are settled no sooner than when asked for
    to_axes = axes.transData + axes.transAxes.inverted()
    points = [to_axes.transform((x, y)) for _, _, x, y in ends]
    labels = within(spread([float(y) for _, y in points], distance), distance)
    for (name, shade, _, _), (x, y), label in zip(ends, points, labels, strict=True):
        thread = [float(x) + 0.005, 1.005, 1.035] if x < 0.99 else [1.005, 1.035]
        heights = [float(y)] * (len(thread) - 1) + [label]
        style: dict[str, Any] = {"transform": axes.transAxes, "color": shade, "clip_on": False}
        axes.plot(thread, heights, lw=1, ls=(0, (1, 2)) if x < 0.99 else "-", **style)
        axes.text(1.045, label, name, va="center", weight="bold", **style)


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


def within(values: Sequence[float], distance: float) -> list[float]:
    """Move values that are spread back to between 0 and 1, and as far as it takes those that are in their way.

    >>> within([0.5, 0.9, 1.25], 0.25)
    [0.5, 0.75, 1.0]
    """
    order = sorted(range(len(values)), key=lambda index: values[index])
    result = list(values)
    bound = 1.0
    for index in reversed(order):
        result[index] = min(result[index], bound)
        bound = result[index] - distance
    bound = 0.0
    for index in order:
        result[index] = max(result[index], bound)
        bound = result[index] + distance
    return result


def dots(axes: Axes, y: float, values: Sequence[float], shade: str) -> None:
    """One row of a categorical plot: the mean with its interval at height `y`, and below it each seed."""
    axes.plot(values, [y + 0.27] * len(values), "o", color=shade, ms=4, alpha=0.6, mew=0)
    if values:
        estimate = bootstrap_mean(values)
        interval(axes, y, estimate.mean, estimate.low, estimate.high, shade)


def interval(axes: Axes, y: float, mean: float, low: float | None, high: float | None, shade: str) -> None:
    """A large dot at the mean, a bar over the interval."""
    if low is not None and high is not None:
        axes.plot([low, high], [y, y], color=shade, lw=2, solid_capstyle="round")
    axes.plot([mean], [y], "o", color=shade, ms=7)


def forest(
    axes: Axes, effects: Sequence[tuple[str, Estimate, str]], no_effect: float, *, claimed: str = ""
) -> None:
    """Effects (name, estimate, color) below each other, against a line where there is none.

    Args:
        axes: where; set a logarithmic horizontal scale before for ratios.
        effects: the rows.
        no_effect: where the line stands, 0 for differences, 1 for ratios.
        claimed: `below` or `above`, the side of the line on which the claim holds, which is shaded.
    """
    for y, (_, estimate, shade) in enumerate(effects):
        interval(axes, y, estimate.mean, estimate.low, estimate.high, shade)
    axes.axvline(no_effect, color=ink(), lw=0.8)
    rows(axes, [name for name, _, _ in effects])
    if claimed:
        low, high = axes.get_xlim()
        side = (low, no_effect) if claimed == "below" else (no_effect, high)
        axes.axvspan(*side, color=rule(), alpha=0.35, lw=0, zorder=0)
        axes.set_xlim(min(low, no_effect), max(high, no_effect))


def rows(axes: Axes, names: Sequence[str]) -> None:
    """Make the vertical axis one of names, the first on top, as `dots` and `interval` fill it: y = 0, 1, ..."""
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.spines.left.set_visible(False)
    axes.grid(visible=False, axis="y")


def plain_ticks(axis: Any, places: Sequence[float]) -> None:
    """Ticks at these places of a logarithmic axis, as plain numbers."""
    axis.set_major_locator(FixedLocator(list(places)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def svg(draw: Callable[[], Figure], name: str) -> str:
    """An SVG to stand in a page, from which it takes its colors.

    The same figure gives the same text: no date, and identifiers that follow from `name`, which is unique in the page.
    """
    view, body = _svg(draw, name)
    return f"<svg {view}>{body}</svg>"


def svg_file(draw: Callable[[], Figure], name: str) -> str:
    """An SVG as a file of its own, in light or dark as its reader prefers, of 100 pixels an inch."""
    view, body = _svg(draw, name)
    width, height = (round(float(points) * 100 / 72) for points in view.rstrip('"').split()[-2:])
    size = f'{view} width="{width}" height="{height}"'
    style = "svg { color: var(--ink); background: var(--ground); font-family: sans-serif }"
    spaces = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    return f"<svg {spaces} {size}><style>{variables()}\n{style}</style>{body}</svg>\n"


def png_file(draw: Callable[[], Figure]) -> bytes:
    """A PNG of 150 dots an inch, in light."""
    target = io.BytesIO()
    with _palette(LIGHT):
        draw().savefig(target, format="png", dpi=150, facecolor=LIGHT["ground"], metadata={"Software": None})
    return target.getvalue()


def _svg(draw: Callable[[], Figure], name: str) -> tuple[str, str]:
    """The view box, and all that stands in it, with variables for colors."""
    target = io.StringIO()
    with _palette(_STAND_INS), matplotlib.rc_context({"svg.hashsalt": name}):
        draw().savefig(target, format="svg", metadata={"Date": None})
    attributes, _, body = target.getvalue().partition("<svg ")[2].partition(">")
    body = body.rpartition("</svg>")[0]
    body = re.sub(r"<metadata>.*?</metadata>|<defs>\s*<style.*?</defs>", "", body, flags=re.DOTALL)
    view = re.findall(r'viewBox="[^"]*"', attributes)[0]
    replaced = {stand_in: f"var(--{name})" for name, stand_in in _STAND_INS.items()}
    replaced[_STAND_INS["ink"]] = "currentColor"
    return view, re.sub("|".join(replaced), lambda match: replaced[match.group()], body)


@contextmanager
def _palette(colors: Mapping[str, str]) -> Generator[None]:
    token = _colors.set(colors)
    try:
        with matplotlib.rc_context(_style(colors)):
            yield
    finally:
        _colors.reset(token)


def _style(colors: Mapping[str, str]) -> dict[str, Any]:
    text, line = colors["ink"], colors["line"]
    return {
        "svg.fonttype": "none",  # text stays text: searchable, read aloud, in the page's font
        "font.size": 10,
        "text.color": text,
        "axes.labelcolor": text,
        "axes.edgecolor": line,
        "axes.titlesize": 10,
        "axes.titlelocation": "left",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": line,
        "grid.linewidth": 0.6,
        "xtick.color": line,
        "ytick.color": line,
        "xtick.labelcolor": text,
        "ytick.labelcolor": text,
        "figure.facecolor": "none",
        "axes.facecolor": "none",
    }
