"""The pages of the doctor are what its checks say, their links lead somewhere, their example runs."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

FOLDER = Path(__file__).parents[2] / "docs" / "doctor"


def test_pages_are_what_the_script_writes() -> None:
    """After a change of a check: `python docs/doctor/write.py` writes them."""
    pages = runpy.run_path(str(FOLDER / "write.py"))["pages"]()
    assert {path.name for path in FOLDER.glob("*.md")} == set(pages)
    for name, text in pages.items():
        assert (FOLDER / name).read_text(encoding="utf-8") == text


def test_links_lead_somewhere() -> None:
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)]+)\)", text):
        file, _, anchor = link.partition("#")
        headings = re.findall(r"^## (.*)$", (FOLDER / file).read_text(encoding="utf-8"), flags=re.MULTILINE)
        assert not anchor or anchor in {heading.lower() for heading in headings}, link


def test_the_example_runs() -> None:
    (block,) = re.findall(r"```python\n(.*?)```", (FOLDER / "README.md").read_text(), flags=re.DOTALL)
    names: dict[str, object] = {}
    exec(block, names)
    assert "NK301" in {finding.code for finding in names["diagnosis"].findings}
