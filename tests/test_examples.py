"""The examples in docstrings and in the README run, and give what they say."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import pytest

import normkit

README = Path(__file__).parent.parent / "README.md"
# Peers that the benchmark measures where they are installed; running the module would be an import of theirs.
PEERS = {"normkit.bench.jax_peer", "normkit.bench.keras_peer"}
MODULES = [
    module.name
    for module in pkgutil.walk_packages(normkit.__path__, "normkit.")
    if module.name not in PEERS and not module.name.endswith(("__main__", "_native"))
]


@pytest.mark.parametrize("name", MODULES)
def test_docstrings(name: str) -> None:
    failed, _ = doctest.testmod(importlib.import_module(name), optionflags=doctest.NORMALIZE_WHITESPACE)
    assert failed == 0


def test_there_are_examples() -> None:
    """Doctests that are not found would pass too."""
    finder = doctest.DocTestFinder(exclude_empty=True)
    found = [test for name in MODULES for test in finder.find(importlib.import_module(name)) if test.examples]
    assert len(found) >= 15


def test_the_readme() -> None:
    (block,) = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)
    names: dict[str, object] = {}
    exec(block, names)
    assert names["y"].shape == names["x"].shape
    assert names["norm"].num_batches_tracked == 1
