"""The contract's numbers hold for the composed backend as well, which other devices and transforms take."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.mark.parametrize("name", ["test_numerics", "test_state", "test_misuse", "test_torch_databases"])
def test_composed(name: str) -> None:
    """In a process of its own: the choice of a backend is made at import."""
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-x", "-p", "no:cacheprovider", str(HERE / f"{name}.py")],
        env={**os.environ, "NORMKIT_BACKEND": "composed"},
        cwd=HERE.parent.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout[-3000:]
