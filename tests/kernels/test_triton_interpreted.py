"""The GPU's kernels without a GPU: the tests of `tests/gpu`, by Triton's interpreter, in a process for each file.

What the interpreter cannot show: the barrier of a grid that runs all at once (it runs the same two stages as two
launches), the rounding to bfloat16 (it truncates unless it is told), and speed.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent.parent
FILES = sorted(path.name for path in (TESTS / "gpu").glob("test_*.py"))


def interpreted(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-x",
            "-p",
            "no:cacheprovider",
            "-W",
            "ignore::RuntimeWarning",
            *arguments,
        ],
        env={**os.environ, "TRITON_INTERPRET": "1", "NORMKIT_BACKEND": "triton"},
        cwd=TESTS.parent,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("name", FILES)
def test_kernels(name: str) -> None:
    run = interpreted(str(TESTS / "gpu" / name))
    assert run.returncode == 0, run.stdout[-3000:]
    assert "skipped" not in run.stdout


def test_the_files_are_there() -> None:
    assert len(FILES) == 4
