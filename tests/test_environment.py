from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import normkit
from normkit.environment import describe

SOURCE = Path(normkit.__file__).parent.parent


def facts(text: str) -> dict[str, str]:
    return dict(re.split(r"  +", line, maxsplit=1) for line in text.splitlines())


def without(folder: Path, *hidden: str) -> dict[str, str]:
    """An environment with the packages of this one, less the hidden ones, and normkit not compiled."""
    folder.mkdir()
    for installed in Path(torch.__file__).parent.parent.iterdir():
        name = re.split(r"[-.]", installed.name)[0].lower()
        if name not in hidden:
            (folder / installed.name).symlink_to(installed)
    return {**os.environ, "PYTHONPATH": f"{SOURCE}{os.pathsep}{folder}"}


def normkit_command(*arguments: str, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    # -S: without this environment's packages, so that those of PYTHONPATH are all there is
    command = [sys.executable, "-S", "-m", "normkit", *arguments]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)


def test_env_tells_versions_and_kernels() -> None:
    found = facts(describe())
    assert found["normkit"] == normkit.__version__
    assert found["Python"] == f"{platform.python_version()} ({sys.executable})"
    assert found["torch"] == f"{torch.__version__}, {torch.get_num_threads()} threads"
    assert found["CPU"].endswith(f", {os.cpu_count()} cores")
    assert found["kernels"] == normkit.kernels.explain(torch.empty(8, 4))
    assert found["extra lab"] == "installed"
    assert (
        torch.cuda.is_available() or found["GPU kernels"] == f"torch {torch.__version__} sees no CUDA device"
    )


def test_env_tells_what_the_extension_was_built_with() -> None:
    native = pytest.importorskip("normkit.kernels.cpu._native", reason="installed without a compiler")
    built = native.describe()
    assert facts(describe())["extension"] == (
        f"built by {built['compiler']}, this processor runs {built['instruction_set']}"
    )


def test_env_names_a_missing_compiler(tmp_path: Path) -> None:
    done = normkit_command("env", env={**without(tmp_path / "packages"), "PATH": str(tmp_path)})
    assert (done.returncode, done.stderr) == (0, "")
    extension = facts(done.stdout)["extension"]
    assert "no C++ compiler, none of c++, g++ or clang++ is on PATH" in extension
    assert extension.endswith("then reinstall normkit")


def test_env_says_to_reinstall_where_there_is_a_compiler(tmp_path: Path) -> None:
    compiler = tmp_path / "clang++"
    compiler.write_text("#!/bin/sh\n")
    compiler.chmod(0o755)
    done = normkit_command("env", env={**without(tmp_path / "packages"), "PATH": str(tmp_path)})
    assert facts(done.stdout)["extension"].endswith(f"{compiler} can build it, reinstall normkit")


def test_env_works_without_the_extra_and_says_what_is_missing(tmp_path: Path) -> None:
    done = normkit_command("env", env=without(tmp_path / "packages", "typer", "rich", "matplotlib"))
    assert (done.returncode, done.stderr) == (0, "")
    assert facts(done.stdout)["extra lab"] == ('matplotlib, rich, typer missing: pip install "normkit[lab]"')


@pytest.mark.parametrize("hidden", ["typer", "rich", "matplotlib", "sklearn"])
def test_commands_name_the_extra_that_they_need(tmp_path: Path, hidden: str) -> None:
    done = normkit_command("compare", env=without(tmp_path / "packages", hidden))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f'normkit: {hidden} is not installed, and this needs it: pip install "normkit[lab]"\n'
    )


def test_env_does_not_fail_over_what_is_broken() -> None:
    told = subprocess.run(
        [sys.executable, "-m", "normkit", "env"],
        env={**os.environ, "NORMKIT_BACKEND": "nonsense"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert facts(told.stdout)["kernels"].startswith("unknown: InputError: unknown NORMKIT_BACKEND 'nonsense'")
