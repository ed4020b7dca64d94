"""The page of studies in docs/ is what its script writes from a store of real trials, and its links lead somewhere."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any, ClassVar
from xml.etree import ElementTree

import pytest
from made_studies import Made
from matplotlib.figure import Figure

from normkit.errors import InputError
from normkit.lab.studies import NAMES, find
from normkit.lab.studies.study import Results
from normkit.lab.sweep import text
from normkit.lab.sweep.sweep import carry_out, plan

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "docs" / "studies"
WRITE: dict[str, Any] = runpy.run_path(str(FOLDER / "write.py"))


class Crowded(Made):
    """Its figure has a mark for each of 5,000 points."""

    name: ClassVar[str] = "crowded"

    def figure(self, results: Results) -> Figure:
        figure = Figure()
        figure.add_subplot().plot(range(5000), "o")
        return figure


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    carry_out(plan([Made(), Crowded()], "quick"), folder, workers=1)
    return folder


def headings(page: str) -> set[str]:
    """As GitHub makes anchors of them; none of ours needs more than this."""
    return set(re.findall(r"^## ([a-z0-9-]+)$", page, flags=re.MULTILINE))


def dead_links(page: str, names: set[str]) -> list[str]:
    links = re.findall(r"\]\(([^)]+)\)", page)
    assert links
    return [link for link in links if link.lstrip("#") not in (headings(page) if link[0] == "#" else names)]


def test_a_store_gives_page_and_figures_the_same_each_time(store: Path) -> None:
    reports, the_plan = WRITE["reports_of"](store, [Made()], quick=True)
    files = WRITE["files"](reports, the_plan)
    assert WRITE["files"](*WRITE["reports_of"](store, [Made()], quick=True)) == files
    assert set(files) == {"README.md", "made.svg"}
    page = files["README.md"]
    assert dead_links(page, set(files)) == []
    effect = text.telling_effect(reports[0])
    assert f"| C1 | [Sums are lower with \\<batch> norm.](#made) | supported | {effect} |" in page
    for part in (Made.question, Made.design, Made.rule, Made.source, Made.literature):
        assert part in page
    assert "`normkit study made --quick`: 12 trials" in page
    figure = ElementTree.fromstring(files["made.svg"])
    assert (figure.get("width"), figure.get("height")) == ("740", "420")  # 7.4 by 4.2 inches


def test_its_table_is_that_of_the_readme(store: Path) -> None:
    reports, _ = WRITE["reports_of"](store, [Made()], quick=True)
    head, rule, row = WRITE["table"](reports).splitlines()
    assert row.startswith(
        "| C1 | Sums are lower with \\<batch> norm. | supported | batch - none, sum: −0.500"
    )
    (rows,) = re.findall(
        re.escape(f"{head}\n{rule}\n") + r"((?:\|.*\n)*)", (ROOT / "README.md").read_text(encoding="utf-8")
    )
    claims = [tuple(line.split(" | ")[:2]) for line in rows.splitlines()]
    assert claims == [(f"| {s.claim}", WRITE["plain"](s.statement)) for s in map(find, NAMES)]


def test_text_is_shown_as_it_is() -> None:
    assert WRITE["plain"]("a_b <c> | $d$ `nk.e_f` [g]*") == r"a\_b \<c> \| \$d\$ `nk.e_f` \[g\]\*"


def test_what_the_store_lacks_is_not_made_up(store: Path, tmp_path: Path) -> None:
    lacking = rf"{store} lacks 12 of 24 trials .*: run `normkit study made --out {store}`"
    with pytest.raises(InputError, match=lacking):
        WRITE["reports_of"](store, [Made()])
    command = [sys.executable, str(FOLDER / "write.py"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f"write.py: {tmp_path} must be the folder that `normkit study --out` wrote, and has no trials.sqlite\n"
    )
    assert [*tmp_path.iterdir()] == []


def test_a_figure_too_large_for_the_sources_is_refused(store: Path) -> None:
    with pytest.raises(InputError, match=r"the figure of crowded must be at most 100,000 bytes, got \d+"):
        WRITE["files"](*WRITE["reports_of"](store, [Crowded()], quick=True))


def test_what_is_committed_is_all_of_a_run_or_nothing() -> None:
    """A study that changes after the run whose page this is needs another run."""
    there = {path.name for path in FOLDER.iterdir()} - {"write.py", "__pycache__"}
    assert there in (set(), {"README.md", *(f"{name}.svg" for name in NAMES)})
    if there:
        page = (FOLDER / "README.md").read_text(encoding="utf-8")
        assert dead_links(page, there) == []
        for study in map(find, NAMES):
            for part in (study.statement, study.question, study.design, study.rule, study.literature):
                assert WRITE["plain"](part) in page
