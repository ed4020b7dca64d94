"""What is installed, what is missing, and which kernels run: the lines of `normkit env`."""

from __future__ import annotations

import importlib
import os
import platform
import re
import shutil
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import normkit

_EXTENSION = "normkit.kernels.cpu._native"
_COMPILERS = ("c++", "g++", "clang++")


def describe() -> str:
    """One aligned line per fact. It never fails: what cannot be found out is said to be unknown, and why."""
    facts: dict[str, Callable[[], str]] = {
        "normkit": lambda: normkit.__version__,
        "Python": lambda: f"{platform.python_version()} ({sys.executable})",
        "torch": _torch,
        "NumPy": lambda: importlib.import_module("numpy").__version__,
        "CPU": cpu,
        "extension": _extension,
        "kernels": _kernels,
        "GPU kernels": _gpu_kernels,
        **{f"extra {name}": lambda name=name: _extra(name) for name in _extras()},
    }
    width = max(map(len, facts))
    return "\n".join(f"{name:<{width}}  {_known(fact)}" for name, fact in facts.items())


def cpu() -> str:
    """The processor's name and its cores."""
    info = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.+)", info.read_text()) if info.exists() else []
    name = names[0] if names else platform.processor() or platform.machine()
    return f"{name}, {os.cpu_count()} cores"


def _known(fact: Callable[[], str]) -> str:
    try:
        return fact()
    except Exception as failure:  # whatever is broken here is what the reader wants to hear of
        return f"unknown: {type(failure).__name__}: {' '.join(str(failure).split())}"


def _torch() -> str:
    torch = importlib.import_module("torch")
    return f"{torch.__version__}, {torch.get_num_threads()} threads"


def _extension() -> str:
    try:
        built = importlib.import_module(_EXTENSION).describe()
    except ImportError as failure:
        return f"not there ({failure}): {_remedy()}"
    return f"built by {built['compiler']}, this processor runs {built['instruction_set']}"


def _remedy() -> str:
    found = next(filter(None, map(shutil.which, _COMPILERS)), None)
    if found:
        return f"{found} can build it, reinstall normkit"
    names = f"{', '.join(_COMPILERS[:-1])} or {_COMPILERS[-1]}"
    return f"no C++ compiler, none of {names} is on PATH; install one, then reinstall normkit"


def _kernels() -> str:
    torch = importlib.import_module("torch")
    explain = importlib.import_module("normkit.kernels").explain
    return explain(torch.empty(8, 4))


def _gpu_kernels() -> str:
    torch = importlib.import_module("torch")
    if not torch.cuda.is_available():
        return f"torch {torch.__version__} sees no CUDA device"
    return importlib.import_module("normkit.kernels").explain(torch.empty(8, 4, device="cuda"))


def _extras() -> list[str]:
    try:
        extras = metadata.metadata("normkit").get_all("Provides-Extra") or []
    except metadata.PackageNotFoundError:
        return []
    return [extra for extra in extras if extra != "all"]


def _extra(name: str) -> str:
    requirements = [line.partition(";") for line in metadata.requires("normkit") or []]
    belonging = [what for what, _, marker in requirements if re.search(rf"extra == .{name}\W", marker)]
    packages = [re.split(r"[^\w.-]", what.strip(), maxsplit=1)[0] for what in belonging]
    missing = [package for package in packages if not _installed(package)]
    if missing:
        return f'{", ".join(missing)} missing: pip install "normkit[{name}]"'
    return "installed"


def _installed(package: str) -> bool:
    try:
        metadata.version(package)
    except metadata.PackageNotFoundError:
        return False
    return True
