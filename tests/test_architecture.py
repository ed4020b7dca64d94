"""The shape of the package: imports run one way, nothing optional is imported unasked, names are reviewed."""

from __future__ import annotations

import ast
import inspect
import json
import re
import subprocess
import sys
from pathlib import Path

import torch

import normkit as nk

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "src" / "normkit"
SURFACE = Path(__file__).parent / "surface" / "names.txt"

# Each room may import those before it, and itself. errors.py stands before all, cli.py after.
ROOMS = ["errors", "kernels", "statistics", "processes", "norms", "functional", "surgery", "page", "doctor"]
ROOMS += ["lightning", "lab", "environment", "bench", "cli"]
# These use the package as its users do, by its public names.
USERS = {"lab", "bench", "environment", "cli"}
SEPARATE = {"reference", "__init__", "__main__"}


def room_of(module: str) -> str:
    return module.removeprefix("normkit.").split(".")[0]


def imports_of(path: Path) -> set[str]:
    """The modules of this package that a file imports, also inside its functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            if node.module == "normkit":
                found |= {f"normkit.{alias.name}" for alias in node.names}
            else:
                found.add(node.module)
    return {name for name in found if name.startswith("normkit")}


def test_imports_run_one_way() -> None:
    for path in PACKAGE.rglob("*.py"):
        room = path.relative_to(PACKAGE).with_suffix("").parts[0]
        if room in SEPARATE:
            continue
        assert room in ROOMS, f"{path}: a new room needs its place in ROOMS"
        for name in imports_of(path):
            if name == "normkit":
                assert room in {"lab", "bench", "environment", "cli"}, f"{path} imports the whole package"
                continue
            target = room_of(name)
            if room in {"lab", "bench", "environment", "cli"} and target not in ROOMS:
                continue  # a public name of the package
            assert ROOMS.index(target) <= ROOMS.index(room), f"{path} imports {name}, which stands after it"


def test_nothing_optional_is_imported() -> None:
    """import normkit needs torch and NumPy, and loads nothing that these do not load themselves."""
    code = (
        "import sys, json, torch, numpy; before = set(sys.modules); import normkit;"
        "print(json.dumps(sorted({m.split('.')[0] for m in set(sys.modules) - before})))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(result.stdout) == ["normkit"]


def surface() -> str:
    """Every public name with its signature, a line each."""
    lines = []
    for name in nk.__all__:
        value = getattr(nk, name)
        if inspect.ismodule(value):
            members = [n for n in sorted(value.__all__) if inspect.isfunction(getattr(value, n))]
            lines += [f"{name}.{n}{inspect.signature(getattr(value, n))}" for n in members]
            continue
        lines.append(f"{name}{inspect.signature(value)}")
        if inspect.isfunction(value):
            continue
        if issubclass(value, torch.nn.Module):
            lines.append(f"{name}.forward{inspect.signature(value.forward)}")
        else:
            lines += [
                f"{name}.{n}{inspect.signature(getattr(value, n))}"
                for n, v in sorted(vars(value).items())
                if not n.startswith("_") and (inspect.isfunction(v) or isinstance(v, staticmethod))
            ]
    return "\n".join(lines) + "\n"


def test_public_names_are_the_reviewed_ones() -> None:
    """After a wanted change: `python tests/test_architecture.py` writes the file; review its diff."""
    assert surface() == SURFACE.read_text()


def tree_of(readme: str) -> dict[str, str]:
    """Path and annotation of each entry of the README's tree."""
    (block,) = re.findall(r"```text\n(normkit/\n.*?)```", readme, flags=re.DOTALL)
    entries, parents = {}, []
    for line in block.splitlines()[1:]:
        indent, name, note = re.fullmatch(r"( *)(\S+)\s*(.*)", line).groups()
        depth = len(indent) // 2 - 1
        parents = [*parents[:depth], name.rstrip("/")]
        entries["/".join(parents)] = note
    return entries


def test_tree_in_the_readme_is_the_real_one() -> None:
    """Every file stands in the tree, itself or by its folder; every entry exists and says what it is."""
    entries = tree_of((ROOT / "README.md").read_text())
    for path, note in entries.items():
        assert (ROOT / path).exists(), f"README's tree has {path}, which does not exist"
        assert note, f"README's tree does not say what {path} is"
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    folders = {str(parent) for path in entries for parent in Path(path).parents} - {"."}
    opened = {folder for folder in folders if folder in entries}
    for path in filter(None, listed.stdout.splitlines()):
        if Path(path).name == "__init__.py" or not (ROOT / path).exists():
            continue
        above = [str(parent) for parent in Path(path).parents if str(parent) != "."]
        closed = any(parent in entries and parent not in opened for parent in above)
        assert path in entries or closed, f"{path} is missing in README's tree"


if __name__ == "__main__":
    SURFACE.write_text(surface())
