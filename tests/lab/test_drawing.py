from __future__ import annotations

import io
import re

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from normkit.lab import drawing
from normkit.lab.bootstrap import bootstrap_mean
from normkit.lab.drawing import Curve, curves, forest, png_file, svg, svg_file
from normkit.lab.palette import DARK, LIGHT

SEEDS = [[1.0, 1.2, 0.9, 1.1, 1.3, 0.8], [2.0, 2.4, 1.9, 2.2, 2.5, 1.7], [4.0, 4.4, 3.9, 4.3, 4.6, 3.5]]


def figure() -> Figure:
    made = Figure(figsize=(drawing.WIDTH, drawing.HEIGHT))
    axes = made.add_subplot()
    drawn = [Curve("batch", [1, 2, 3], SEEDS, drawing.color("batch"))]
    drawn.append(Curve("layer", [1, 2], SEEDS[:2], drawing.color("layer"), band="interval"))
    curves(axes, drawn)
    return made


def axes_with(*drawn: Curve, scale: str = "linear") -> Axes:
    axes = Figure().add_subplot()
    axes.set_yscale(scale)
    curves(axes, drawn)
    return axes


def extent(axes: Axes) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper end of the one band, at each x."""
    (band,) = axes.collections
    points = band.get_paths()[0].vertices
    xs = sorted({float(x) for x, _ in points})
    return tuple(np.array([end(y for x, y in points if x == at) for at in xs]) for end in (min, max))


def test_a_band_is_of_all_seeds_or_an_interval() -> None:
    low, high = extent(axes_with(Curve("a", [1, 2, 3], SEEDS, "k")))
    assert low.tolist() == [min(values) for values in SEEDS]
    assert high.tolist() == [max(values) for values in SEEDS]
    low, high = extent(axes_with(Curve("a", [1, 2, 3], SEEDS, "k", band="interval")))
    estimates = [bootstrap_mean(values) for values in SEEDS]
    assert low.tolist() == [e.low for e in estimates]
    assert high.tolist() == [e.high for e in estimates]


def test_on_a_logarithmic_scale_an_interval_is_of_logarithms() -> None:
    """So it stays above 0, where that of the values would not."""
    skewed = [[0.01, 0.011, 0.012, 0.009, 0.01, 1.0]] * 2
    assert bootstrap_mean(skewed[0]).low < 0
    low, high = extent(axes_with(Curve("a", [1, 2], skewed, "k", band="interval"), scale="log"))
    estimate = bootstrap_mean(np.log(skewed[0]).tolist())
    assert low.tolist() == pytest.approx([np.exp(estimate.low)] * 2)
    assert high.tolist() == pytest.approx([np.exp(estimate.high)] * 2)


def test_names_stand_at_the_ends_of_their_lines() -> None:
    ends = [Curve(name, [0, 1], [[0.0], [end]], "k") for name, end in (("a", 0.0), ("b", 1.0), ("c", 0.5))]
    axes = axes_with(*ends)
    heights = {text.get_text(): text.get_position()[1] for text in axes.texts}
    assert heights["a"] < heights["c"] < heights["b"]
    low, high = axes.get_ylim()
    assert heights["c"] == pytest.approx((0.5 - low) / (high - low), abs=1e-9)


def test_effects_stand_on_their_side_of_the_line() -> None:
    made = Figure()
    axes = made.add_subplot()
    effects = [(str(shift), bootstrap_mean([v + shift for v in SEEDS[0]]), "k") for shift in (-3.0, 3.0)]
    forest(axes, effects, 0.0, claimed="below")
    assert [label.get_text() for label in axes.get_yticklabels()] == ["-3.0", "3.0"]
    (side,) = axes.patches
    assert side.get_x() + side.get_width() == 0.0
    bars = [
        line.get_xdata() for line in axes.lines if len(line.get_xdata()) == 2 and line.get_linewidth() == 2
    ]
    assert [tuple(bar) for bar in bars] == [(e.low, e.high) for _, e, _ in effects]


def test_a_page_s_figure_has_the_page_s_colors_and_a_file_its_own() -> None:
    inline, alone = svg(figure, "f"), svg_file(figure, "f")
    assert not re.findall(r"#[0-9a-f]{6}\b|rgb", inline)
    assert "var(--norm-batch)" in inline
    assert "currentColor" in inline
    assert set(re.findall(r"#[0-9a-f]{6}\b", alone)) == {*LIGHT.values(), *DARK.values()}
    assert inline == svg(figure, "f")
    assert inline != svg(figure, "g")  # identifiers of two figures of a page differ


def test_a_png_is_drawn_in_light() -> None:
    with Image.open(io.BytesIO(png_file(figure))) as image:
        pixels = np.asarray(image.convert("RGB"))
    wanted = tuple(int(LIGHT["norm-batch"][i : i + 2], 16) for i in (1, 3, 5))
    assert tuple(pixels[0, 0]) == (255, 255, 255)
    assert (pixels == wanted).all(axis=2).sum() > 500  # a line of 2 points across the figure
