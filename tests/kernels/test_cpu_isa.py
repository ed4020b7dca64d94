"""Every instruction set that this processor runs passes the same tests; an unknown one is an error."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from normkit.kernels import cpu

HERE = Path(__file__).parent
FAMILIES = [
    "test_cpu_channels.py",
    "test_cpu_rows.py",
    "test_cpu_groups.py",
    "test_cpu_mixtures.py",
    "test_cpu_rounding.py",
]
WIDEST_FIRST = ["avx512", "avx2", "baseline"]


def run(isa: str, *command: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "NORMKIT_ISA": isa, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *command], env=environment, capture_output=True, text=True, check=False
    )


def narrower() -> list[str]:
    """The instruction sets below the one in use, all of which an x86 processor runs as well."""
    name = cpu.describe()["instruction_set"]
    return WIDEST_FIRST[WIDEST_FIRST.index(name) + 1 :]


@pytest.mark.parametrize("isa", narrower())
def test_narrower_instruction_sets(isa):
    chosen = run(isa, "-c", "from normkit.kernels import cpu; print(cpu.describe()['instruction_set'])")
    assert chosen.stdout.strip() == isa
    files = [str(HERE / name) for name in FAMILIES]
    tests = run(
        isa,
        "-m",
        "pytest",
        "-q",
        "-x",
        "-m",
        "not slow",
        "-k",
        "not ten_million",
        "-p",
        "no:cacheprovider",
        *files,
    )
    assert tests.returncode == 0, tests.stdout[-3000:]


def test_an_unknown_instruction_set_is_refused():
    refused = run("sse9", "-c", "import normkit")
    assert refused.returncode != 0
    assert "NORMKIT_ISA='sse9': this build on this processor runs" in refused.stderr
    assert "baseline" in refused.stderr
