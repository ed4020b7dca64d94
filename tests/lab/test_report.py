from __future__ import annotations

import itertools
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from hand_made import SAMPLES, run, runs
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from browser import browse, contrast, needs_browser, of_hex, screenshot
from normkit.errors import InputError
from normkit.lab import drawing, figures, report, table
from normkit.lab.compare import compare
from normkit.lab.comparison import Comparison, summarize
from normkit.lab.grid import Grid
from normkit.lab.models import NORMS, USUAL
from normkit.lab.palette import DARK, LIGHT, SAME, variables

CURVES = [[0.4, 0.7, 0.90], [0.3, 0.8, 0.93], [0.5, 0.6, 0.95]]
COMMAND = "normkit compare --seeds 3"


def made(*norms: str, **settings: object) -> Comparison:
    return summarize(
        [r for norm in norms for r in runs(norm, CURVES, gap=0.02, **settings)], samples=SAMPLES, chance=0.1
    )


class Page(HTMLParser):
    """What a reader of the page could see or fetch."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def rows_of(html: str, table_id: str) -> list[list[str]]:
    (body,) = re.findall(rf'<table id="{table_id}">.*?<tbody>(.*?)</tbody>', html, flags=re.DOTALL)
    cell = r"<t[hd][^>]*>(?:<span[^>]*></span>)?(.*?)</t[hd]>"
    return [
        re.findall(cell, row, flags=re.DOTALL) for row in re.findall(r"<tr.*?</tr>", body, flags=re.DOTALL)
    ]


def test_page_has_the_tables_of_the_comparison() -> None:
    comparison = made(*NORMS)
    html = report.render(comparison, command=COMMAND)
    shown = [[*table.cells(comparison, r), table.plus_minus(r.loss_gap, 3)] for r in comparison.rows]
    assert rows_of(html, "norms") == shown
    assert rows_of(html, "contrasts") == [table.contrast_cells(c) for c in comparison.contrasts]
    assert COMMAND in html


def test_runs_that_shared_the_machine_have_no_times() -> None:
    """One epoch of one run is enough: the column would compare it with the others."""
    alone = [*runs("none", CURVES), *runs("batch", CURVES)]
    first = replace(alone[0].epochs[0], shared=True)
    beside = [replace(alone[0], epochs=(first, *alone[0].epochs[1:])), *alone[1:]]
    pages = [
        report.render(summarize(made, samples=SAMPLES, chance=0.1), command=COMMAND)
        for made in (alone, beside)
    ]
    for html, timed in zip(pages, (True, False), strict=True):
        assert ("ms/step" in html) == timed
        assert ("Time per step is that of the median epoch" in html) == timed
        assert ("no time per step, as runs shared the machine" in html) == (not timed)
        assert ("Time per step is left out" in html) == (not timed)
        assert {len(row) for row in rows_of(html, "norms")} == {7 if timed else 6}


def test_page_fetches_nothing() -> None:
    html = report.render(made(*NORMS), command=COMMAND)
    assert "http" not in html
    assert "@import" not in html
    assert all(target.startswith("#") for target in re.findall(r"url\(['\"]?(.)", html))
    page = Page(html)
    assert {tag for tag, _ in page.tags}.isdisjoint({"script", "link", "img", "iframe", "object", "base"})
    references = {v for _, attrs in page.tags for k, v in attrs.items() if k in {"src", "href", "xlink:href"}}
    assert all(reference and reference.startswith("#") for reference in references)


def test_references_within_the_page_lead_to_one_place() -> None:
    page = Page(report.render(made(*NORMS), command=COMMAND))
    targets = [
        attrs["id"] for tag, attrs in page.tags if "id" in attrs and tag in {"clipPath", "clippath", "path"}
    ]
    used = {v for _, attrs in page.tags for k, v in attrs.items() if k == "xlink:href"}
    used |= {v[4:-1] for _, attrs in page.tags for k, v in attrs.items() if k == "clip-path" and v}
    assert used
    assert all(targets.count(str(reference)[1:]) == 1 for reference in used)


def test_the_same_comparison_gives_the_same_page() -> None:
    comparison = made("none", "batch")
    assert report.render(comparison, command=COMMAND) == report.render(comparison, command=COMMAND)


def test_names_from_outside_are_escaped() -> None:
    name = '<script>alert("1")</script>&.npz'
    html = report.render(made("none", "batch", data=name), command=f"normkit compare --data '{name}'")
    page = Page(html)
    assert "script" not in {tag for tag, _ in page.tags}
    text = "".join(page.text)
    assert f"Does normalization help on {name}?" in text
    assert f"--data '{name}'" in text


def test_a_failure_leaves_what_was_there(tmp_path: Path) -> None:
    taken = tmp_path / "report.html"
    taken.mkdir()  # a folder cannot be replaced by a file
    (taken / "inside").write_text("kept")
    with pytest.raises(InputError, match=r"report\.html: ") as refused:
        report.write(made("none"), taken, command=COMMAND)
    assert "\n" not in str(refused.value)
    assert [*tmp_path.iterdir()] == [taken]
    assert (taken / "inside").read_text() == "kept"


def test_an_older_report_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text("older")
    report.write(made("none", "batch"), path, command=COMMAND)
    assert path.read_text(encoding="utf-8") == report.render(made("none", "batch"), command=COMMAND)
    assert [*tmp_path.iterdir()] == [path]


@pytest.mark.parametrize(
    "comparison",
    [
        pytest.param(summarize([run("none", [0.5, 0.9])], samples=SAMPLES, chance=0.1), id="one run"),
        pytest.param(summarize([run("none", [0.5])], samples=SAMPLES, chance=0.1), id="one epoch"),
        pytest.param(summarize(runs("none", [[1.0, 1.0]] * 2), samples=SAMPLES, chance=0.1), id="no errors"),
        pytest.param(
            summarize(runs("none", [[0.0, 0.0]] * 2), samples=SAMPLES, chance=0.1), id="nothing learned"
        ),
        pytest.param(
            summarize(runs("none", CURVES) + runs("rms", CURVES), samples=SAMPLES, chance=0.1, target=1.0),
            id="no one",
        ),
        pytest.param(
            summarize(
                [*runs("none", CURVES[:2]), run("none", [0.4], diverged=True, seed=2)],
                samples=SAMPLES,
                chance=0.1,
            ),
            id="one diverged",
        ),
        pytest.param(
            summarize(
                [*runs("none", CURVES), *runs("rms", [[]] * 3, diverged=True)], samples=SAMPLES, chance=0.1
            ),
            id="one norm diverged",
        ),
        pytest.param(
            summarize(
                [*runs("none", CURVES, lr=1), *runs("none", CURVES, lr=2)], samples=SAMPLES, chance=0.1
            ),
            id="rates",
        ),
    ],
)
def test_every_outcome_has_a_page_with_its_figures(comparison: Comparison) -> None:
    html = report.render(comparison, command=COMMAND)
    assert len(re.findall("<svg ", html)) == 3
    assert "nan" not in "".join(Page(html).text).split()


def test_all_diverged_has_a_page_without_figures() -> None:
    html = report.render(
        summarize(runs("none", [[], []], diverged=True), samples=SAMPLES, chance=0.1), command=COMMAND
    )
    assert "<svg" not in html
    assert "Every run diverged" in html
    assert rows_of(html, "norms") == [["none", "&gt;3, 0 of 2", "—", "—", "—", "—", "2 of 2", "—"]]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12), st.floats(0.01, 0.2))
def test_spread_moves_labels_apart_and_no_more(values: list[float], distance: float) -> None:
    moved = drawing.spread(values, distance)
    order = np.argsort(values, kind="stable")
    apart = np.diff(np.array(moved)[order])
    tolerance = 1e-12  # rounding of sums of a dozen values of order one
    assert (apart >= distance - tolerance).all()
    assert np.mean(moved) == pytest.approx(np.mean(values), abs=1e-9)
    if (np.diff(np.sort(values)) >= distance).all():
        assert moved == pytest.approx(values, abs=tolerance)


def test_labels_at_line_ends_do_not_overlap() -> None:
    svg = figures.accuracy_curves(made(*NORMS))  # equal curves end at one point
    texts = re.findall(r'<text[^>]* y="([\d.]+)"[^>]*>(\w+)</text>', svg)
    heights = {name: float(y) for y, name in texts if name in NORMS}
    assert set(heights) == set(NORMS)
    assert np.diff(sorted(heights.values())).min() >= 10  # the font's size


def test_figures_take_every_color_from_the_page() -> None:
    comparison = made(*NORMS)
    for draw in (figures.accuracy_curves, figures.loss_gaps, figures.intervals):
        assert not re.findall(r"#[0-9a-f]{6}\b|rgb", draw(comparison))


# Colors


def test_a_page_has_the_palette_by_scheme() -> None:
    light, dark = (
        dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", part))
        for part in variables().split("@media (prefers-color-scheme: dark)")
    )
    assert (light, dark) == (LIGHT, DARK)
    assert variables() in report.render(made("none"), command=COMMAND)


# Machado, Oliveira and Fernandes (2009), severity 1, on linear RGB.
VISIONS = {
    "all cones": np.eye(3),
    "protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "tritanopia": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}


def cielab(rgb: NDArray[np.float64]) -> NDArray[np.float64]:
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    x, y, z = np.cbrt(to_xyz @ np.clip(rgb, 0, 1) / [0.9505, 1.0, 1.089])  # none is dark enough for the toe
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("scheme", [LIGHT, DARK], ids=["light", "dark"])
def test_palette_is_legible(scheme: dict[str, str]) -> None:
    """WCAG 2: 4.5 for text, 3 for graphics and large text."""
    for ground in ("ground", "panel"):
        for name in ("ink", "quiet", "good", "bad"):
            assert contrast(of_hex(scheme[name]), of_hex(scheme[ground])) >= 4.5, name
    for norm in USUAL:
        assert contrast(of_hex(scheme[f"norm-{norm}"]), of_hex(scheme["ground"])) >= 3, norm


def test_no_two_norms_look_alike() -> None:
    """The usual ones have colors of their own, the others theirs and other dashes."""
    assert set(SAME) | set(USUAL) == set(NORMS)
    assert set(SAME.values()) <= set(USUAL)
    assert len({(SAME.get(norm, norm), drawing.DASHES[norm]) for norm in NORMS}) == len(NORMS)


@pytest.mark.parametrize("vision", VISIONS)
@pytest.mark.parametrize("scheme", [LIGHT, DARK], ids=["light", "dark"])
def test_palette_is_told_apart(scheme: dict[str, str], vision: str) -> None:
    seen = [cielab(np.array(VISIONS[vision]) @ of_hex(scheme[f"norm-{norm}"])) for norm in USUAL]
    assert min(np.linalg.norm(a - b) for a, b in itertools.combinations(seen, 2)) >= 22


# In a browser


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> tuple[Comparison, Path]:
    """The report of a real comparison."""
    out = tmp_path_factory.mktemp("compare")
    grid = Grid(norms=("none", "batch", "layer"), model="mlp", epochs=3, seeds=2)
    comparison = compare(grid, out)
    report.write(comparison, out / "report.html", command=grid.command(out))
    return comparison, out / "report.html"


@needs_browser
def test_browser_finds_tables_and_figures(page: tuple[Comparison, Path], tmp_path: Path) -> None:
    comparison, path = page
    dom = browse(path, tmp_path, "--dump-dom")
    assert [row[0] for row in rows_of(dom, "norms")] == ["none", "batch", "layer"]
    assert rows_of(dom, "contrasts") == [table.contrast_cells(c) for c in comparison.contrasts]
    assert dom.count("<svg ") == 3
    assert dom.count("</figure>") == 3


@needs_browser
@pytest.mark.parametrize(("preferred", "scheme"), [(1, LIGHT), (0, DARK)], ids=["light", "dark"])
def test_page_is_legible_as_rendered(
    page: tuple[Comparison, Path], tmp_path: Path, preferred: int, scheme: dict[str, str]
) -> None:
    """Down the whole page, each strip that shows anything has text that stands out from its ground."""
    pixels = screenshot(page[1], tmp_path, preferred, height=3000)
    ground = pixels[0, 0]
    assert ground == pytest.approx(of_hex(scheme["ground"]), abs=1e-6)
    against = contrast(pixels, ground)
    strips = against.reshape(30, 100, 900)
    shown = strips.max(axis=(1, 2)) > 1.5
    assert shown.sum() >= 20  # 2000 pixels of page
    # Thin strokes are antialiased; of a strip with text some pixels still come near the color of the ink.
    assert (strips.max(axis=(1, 2))[shown] >= 4.5).all()
    assert ((against >= 7).mean(axis=(0, 1)) > 0.005).all()
