"""The pages of the surgery: each has an example, which runs, and its row in the index; links lead somewhere."""

from __future__ import annotations

import re
from operator import attrgetter
from pathlib import Path

import pytest
import torch

import normkit as nk

INDEX = Path(__file__).parents[2] / "docs" / "surgery" / "README.md"
PAGES = sorted(path for path in INDEX.parent.glob("*.md") if path != INDEX)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_example_runs(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = page.read_text(encoding="utf-8")
    names = re.findall(r"`nk\.(\w+)`", text.splitlines()[1])
    assert names
    (block,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    for name in names:
        assert callable(attrgetter(name)(nk))
        assert f"nk.{name}(" in block
    torch.manual_seed(0)
    exec(compile(block, str(page), "exec"), {})


def test_the_index_leads_to_every_page() -> None:
    linked = re.findall(r"\]\((\w+\.md)\)", INDEX.read_text(encoding="utf-8"))
    assert sorted(linked) == [page.name for page in PAGES]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for link in re.findall(r"\]\(([^)]+)\)", text):
        assert link.startswith("https://arxiv.org/abs/") or (page.parent / link).exists(), link
