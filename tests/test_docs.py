"""The pages of the norms: one for each, whose example runs, whose links lead somewhere, whose picture is drawn."""

from __future__ import annotations

import re
import runpy
from operator import attrgetter
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch

import normkit as nk

DOCS = Path(__file__).parent.parent / "docs"
INDEX = DOCS / "norms" / "README.md"
PAGES = sorted(path for path in INDEX.parent.glob("*.md") if path != INDEX)
SECTIONS = ["When to choose it", "Cost", "Arguments of interest", "Example", "Paper"]
every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)


def names_of(page: Path) -> list[str]:
    """The public names that a page is about: its second line."""
    return re.findall(r"`nk\.([\w.]+)`", page.read_text(encoding="utf-8").splitlines()[1])


def public_norms() -> set[str]:
    """Every layer and function that normalizes, and what the rooms of the norms offer besides."""
    names = {
        name
        for name in nk.__all__
        if getattr(getattr(nk, name), "__module__", "").startswith("normkit.norms.")
    }
    return names | {f"functional.{name}" for name in nk.functional.__all__}


def test_every_public_norm_has_a_page_and_what_pages_name_is_public() -> None:
    named = [name for page in PAGES for name in names_of(page)]
    assert len(set(named)) == len(named)
    assert public_norms() <= set(named)
    for name in named:
        assert callable(attrgetter(name)(nk))


@every_page
def test_a_page_has_its_parts(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert re.findall(r"^## (.*)$", text, flags=re.MULTILINE) == SECTIONS
    assert text.count("```math") >= 1
    assert re.search(rf"^!\[.+\]\({page.stem}\.svg\)$", text, flags=re.MULTILINE)
    assert "https://arxiv.org/abs/" in text.partition("## Paper")[2]


@every_page
def test_the_example_runs(page: Path) -> None:
    (block,) = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert any(name.split(".")[-1] in block for name in names_of(page))
    torch.manual_seed(0)
    exec(compile(block, str(page), "exec"), {})


def anchors_of(page: Path) -> set[str]:
    """The headings of a page, as links name them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", [INDEX, *PAGES], ids=lambda page: page.stem)
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for link in re.findall(r"\]\((.*?)\)", text):
        if link.startswith("https:"):
            assert re.fullmatch(r"https://arxiv\.org/abs/\d{4}\.\d{5}", link), link
            continue
        file, _, anchor = link.partition("#")
        target = page.parent / file if file else page
        assert target.exists(), link
        assert not anchor or anchor in anchors_of(target), link


def rows_of(text: str, heading: str) -> dict[str, list[str]]:
    """The table under a heading: from the page that its first column links to, to the other columns."""
    lines = text.partition(f"## {heading}\n")[2].partition("\n## ")[0].splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| [")]
    return {re.findall(r"\]\((\w+)\.md\)", row[0])[0]: row[1:] for row in rows}


def test_the_index_has_a_row_for_every_page() -> None:
    assert sorted(rows_of(INDEX.read_text(encoding="utf-8"), "The family")) == [page.stem for page in PAGES]


@every_page
def test_a_page_leads_to_its_cost(page: Path) -> None:
    section = page.read_text(encoding="utf-8").partition("## Cost\n")[2].partition("\n## ")[0]
    assert "](README.md#cost)" in section


def test_pictures_are_what_the_script_draws() -> None:
    """After a change of the script: `python docs/norms/draw.py` writes them; look at them."""
    script = runpy.run_path(str(INDEX.parent / "draw.py"))
    assert sorted(script["PICTURES"]) == [page.stem for page in PAGES]
    for name in script["PICTURES"]:
        text = script["picture"](name)
        assert (INDEX.parent / f"{name}.svg").read_text(encoding="utf-8") == text
        assert ElementTree.fromstring(text).tag.endswith("svg")
