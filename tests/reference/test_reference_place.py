"""What the specification refuses, and its place in the package."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from normkit import reference

REFERENCE = Path(reference.__file__).parent


X = np.zeros((4, 6, 3))
NARROW_MASK = np.ones((4, 1), np.bool_)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: reference.batch_norm(X, weight=np.ones(5)), "weight must have shape (6,), got (5,)"),
        (lambda: reference.layer_norm(X, 2, bias=np.ones(18)), "bias must have shape (6, 3), got (18,)"),
        (
            lambda: reference.batch_norm_inference(X, np.ones(6), np.ones(1)),
            "running_var must have shape (6,)",
        ),
        (lambda: reference.batch_norm(X, mask=NARROW_MASK), "mask must be bool of shape (4, 3), got bool of"),
        (
            lambda: reference.batch_norm(X, mask=np.ones((4, 3))),
            "mask must be bool of shape (4, 3), got float",
        ),
        (lambda: reference.group_norm(X, 4), "divide the channels, got 4 groups and 6 channels"),
        (lambda: reference.rms_norm(X, 4), "normalized_ndim must lie in 1..3, the axes of x, got 4"),
        (
            lambda: reference.backward(X[0], reference.batch_norm(X)[1]),
            "the shape of x, (4, 6, 3), got (6, 3)",
        ),
        (lambda: reference.batchnorm_forward(X, X, X), "x must be N x D, got shape (4, 6, 3)"),
        (lambda: reference.batch_norm(np.ones((1, 2)))[1].unbiased_var, "two or more values, got 1"),
    ],
)
def test_misuse_is_named(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        call()


def imports(source: str) -> Iterator[str]:
    """Every name that a module imports, dotted; a relative import begins with its dots."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            origin = "." * node.level + (node.module or "")
            yield from (f"{origin}.{alias.name}" for alias in node.names)


def test_reference_imports_numpy_alone() -> None:
    names = {name for file in REFERENCE.glob("*.py") for name in imports(file.read_text("utf-8"))}
    others = {name.split(".")[0] for name in names if not name.startswith("normkit.reference.")}
    assert others - sys.stdlib_module_names == {"numpy"}


def uses_the_reference(source: str) -> bool:
    return any("reference" in name.split(".") for name in imports(source))


@pytest.mark.parametrize("source", ["import normkit.reference", "from .. import reference as r"])
def test_an_import_of_the_reference_is_seen(source: str) -> None:
    assert uses_the_reference(source)


def test_no_module_of_the_package_imports_the_reference() -> None:
    modules = sorted(set(REFERENCE.parent.rglob("*.py")) - set(REFERENCE.glob("*.py")))
    assert len(modules) > 50
    assert [str(m) for m in modules if uses_the_reference(m.read_text("utf-8"))] == []
