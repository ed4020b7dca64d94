"""The reviewed stub says what the extension says about itself: names, arguments, types, docstrings."""

from __future__ import annotations

import ast
from pathlib import Path

from normkit.kernels import cpu
from normkit.kernels.cpu import _native


def test_stub_is_the_extension():
    stub = ast.parse((Path(cpu.__file__).parent / "_native.pyi").read_text())
    reviewed = {
        f.name: (signature(f), ast.get_docstring(f)) for f in stub.body if isinstance(f, ast.FunctionDef)
    }
    compiled = {}
    for name, function in vars(_native).items():
        if not name.startswith("_"):
            ((text, doc, *_),) = function.__nb_signature__
            compiled[name] = signature(ast.parse(f"{text}: ...").body[0]), doc
    assert reviewed == compiled


def signature(function: ast.FunctionDef) -> str:
    returns = "" if function.returns is None else ast.unparse(function.returns)
    return f"({ast.unparse(function.args)}) -> {returns}"
