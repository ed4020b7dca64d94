"""The pictures of the pages: which elements share a statistic. `python docs/norms/draw.py` draws them anew.

A picture is a row of panels, a panel a table of cells: a row for each sample, a column for each channel, and in the
cell the positions of space. What has one color shares one statistic; what is gray shares others, likewise.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

GRAY, FIRST, SECOND, THIRD = COLORS = ("#8b8b8b", "#2f80d1", "#d9772b", "#2a9d6f")
TEXT = "#787878"  # a contrast of 4.4 to white and of 4.3 to #0d1117: one picture serves light and dark pages

POSITION, GAP, CELL_GAP, LETTER = 9, 1.5, 6, 7  # LETTER: the width that a letter is given
CELL = 3 * POSITION + 2 * GAP
LEFT, TOP, BOTTOM, SIGN = 26, 22, 24, 16

Paint = Callable[[int, int], str]  # the color of a cell, by row and column


@dataclass(frozen=True)
class Panel:
    """A table of cells, each of side × side positions."""

    title: str
    paint: Paint
    rows: int = 4
    columns: int = 6
    side: int = 3
    down: str = "samples"
    across: str = "channels"
    sign: str = ""  # between the panel to the left and this one

    @property
    def left(self) -> float:
        """Where the cells begin."""
        return LEFT if self.down else 0.0

    @property
    def width(self) -> float:
        """Of the cells, or of the letters above them."""
        return self.left + max(self.columns * (CELL + CELL_GAP) - CELL_GAP, LETTER * len(self.title))

    @property
    def height(self) -> float:
        """Of the cells."""
        return self.rows * (CELL + CELL_GAP) - CELL_GAP


def cells(color: str, row: int | None = None, column: int | None = None) -> Paint:
    """A row, a column, or one cell, in a color."""
    return lambda r, c: color if row in (None, r) and column in (None, c) else GRAY


def columns(row: int, column: int) -> str:
    """Two channels, each over batch and space."""
    return {1: FIRST, 3: SECOND}.get(column, GRAY)


def rows(row: int, column: int) -> str:
    """Two samples, each over channels and space."""
    return {1: FIRST, 2: SECOND}.get(row, GRAY)


def planes(row: int, column: int) -> str:
    """Two channels of a sample, each over space."""
    return columns(row, column) if row == 1 else GRAY


def groups(row: int, column: int) -> str:
    """The two groups of a sample, each over its channels and space."""
    return GRAY if row != 1 else FIRST if column < 3 else SECOND


def halves(row: int, column: int) -> str:
    """A channel, the first two samples apart from the others."""
    return GRAY if column != 1 else FIRST if row < 2 else SECOND


CHANNEL, PLANE = cells(FIRST, column=1), cells(FIRST, 1, 1)
TOKENS = {"side": 1, "down": "tokens"}
FILTERS = {"down": "outputs", "across": "inputs"}
VECTOR = {"rows": 1, "side": 1, "down": ""}

PICTURES = {
    "batch_norm": [Panel("one per channel", columns)],
    "layer_norm": [
        Panel("LayerNorm(C): one per token", rows, **TOKENS),
        Panel("LayerNorm((C, H, W)): one per sample", rows),
    ],
    "rms_norm": [Panel("one mean square per token", rows, **TOKENS)],
    "group_norm": [Panel("one per sample and group", groups)],
    "instance_norm": [Panel("one per sample and channel", planes)],
    "ghost_batch_norm": [Panel("one per ghost batch and channel", halves)],
    "batch_renorm": [
        Panel("the batch", CHANNEL),
        Panel("running statistics", cells(SECOND, column=1), **VECTOR, sign="→"),
    ],
    "virtual_batch_norm": [
        Panel("the reference batch", CHANNEL),
        Panel("and one sample", CHANNEL, rows=1, down="", sign="+"),
    ],
    "adaptive_batch_norm": [
        Panel("the samples at hand", CHANNEL),
        Panel("running statistics", CHANNEL, **VECTOR, sign="+"),
    ],
    "domain": [
        Panel('domain("photo")', CHANNEL, rows=3),
        Panel('domain("sketch")', cells(SECOND, column=1), rows=3),
    ],
    "switch_norm": [
        Panel("instance", PLANE),
        Panel("layer", cells(FIRST, row=1), down="", sign="+"),
        Panel("batch", CHANNEL, down="", sign="+"),
    ],
    "batch_instance_norm": [Panel("batch", CHANNEL), Panel("instance", PLANE, down="", sign="+")],
    "conditional": [
        Panel("mean and variance, here of batch norm", CHANNEL),
        Panel("weight and bias", rows, side=1, down=""),
    ],
    "filter_response_norm": [Panel("one mean square per sample and channel", planes)],
    "dynamic_tanh": [Panel("every element by itself", PLANE, **TOKENS)],
    "recurrent_batch_norm": [
        Panel(f"step {step}", cells(color, column=1), columns=3, side=1, down="" if step else "samples")
        for step, color in enumerate((FIRST, SECOND, THIRD))
    ],
    "sync_batch_norm": [
        Panel("process 0", columns, rows=3),
        Panel("process 1", columns, rows=1, down="", sign="+"),
    ],
    "weight_norm": [Panel("one length per filter of the weight", rows, **FILTERS)],
    "weight_standardization": [Panel("one per filter of the weight", rows, **FILTERS)],
    "spectral_norm": [Panel("one singular value of the weight", cells(FIRST), **FILTERS)],
}


def picture(name: str) -> str:
    """The picture of a page as SVG."""
    panels = PICTURES[name]
    parts: list[str] = []
    x, bottom = 1.0, TOP + max(panel.height for panel in panels) + BOTTOM
    for i, panel in enumerate(panels):
        if i:
            x += 2 * SIGN
            parts.append(words(x - SIGN, TOP + CELL / 2 + 5, panel.sign, size=18))
        parts += drawn(panel, x)
        x += panel.width
    size = f'width="{x + 1:g}" height="{bottom:g}" viewBox="0 0 {x + 1:g} {bottom:g}"'
    style = f'fill="{TEXT}" font-family="system-ui, sans-serif" font-size="12"'
    return "\n".join([f'<svg xmlns="http://www.w3.org/2000/svg" {size} {style}>', *parts, "</svg>", ""])


def drawn(panel: Panel, x: float) -> list[str]:
    """A panel whose left edge is at x."""
    x += panel.left
    step = CELL + CELL_GAP
    middle = x + (panel.columns * step - CELL_GAP) / 2
    parts = [words(x, TOP - 8, panel.title, "start"), words(middle, TOP + panel.height + 16, panel.across)]
    if panel.down:
        parts.append(words(x - 10, TOP + panel.height / 2, panel.down, turned=True))
    for row in range(panel.rows):
        for column in range(panel.columns):
            parts += cell(x + column * step, TOP + row * step, panel.side, panel.paint(row, column))
    return parts


def cell(x: float, y: float, side: int, color: str) -> list[str]:
    """The positions of a cell, which has one size however many they are."""
    size = (CELL - (side - 1) * GAP) / side
    look = f'fill="{color}"' + (' opacity="0.35"' if color == GRAY else "")
    places = [(x + i * (size + GAP), y + j * (size + GAP)) for j in range(side) for i in range(side)]
    return [
        f'<rect x="{a:g}" y="{b:g}" width="{size:g}" height="{size:g}" rx="1.5" {look}/>' for a, b in places
    ]


def words(x: float, y: float, text: str, anchor: str = "middle", size: int = 0, turned: bool = False) -> str:
    """Text at a place."""
    more = f' font-size="{size}"' if size else ""
    more += f' transform="rotate(-90 {x:g} {y:g})"' if turned else ""
    quoted = text.replace('"', "&quot;")
    return f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}"{more}>{quoted}</text>'


if __name__ == "__main__":
    for name in PICTURES:
        (Path(__file__).parent / f"{name}.svg").write_text(picture(name), encoding="utf-8")
