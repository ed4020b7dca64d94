"""`normkit study --ray` and `compare --ray` on a real Ray, started for this and ended after it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator
from pathlib import Path

import made_studies
import pytest
from test_compare_workers import recorded
from test_compare_workers import start as start_normkit
from test_study_command import complete, grown, kept, wait_until

from normkit.lab.store import Store

MARKS = "NORMKIT_TEST_MARKS"


@pytest.fixture(scope="module")
def cluster() -> Generator[tuple[str, Path]]:
    """The address of a head with two workers, and the folder where a killed trial leaves marks."""
    with socket.socket() as first, socket.socket() as second:
        first.bind(("127.0.0.1", 0))
        second.bind(("127.0.0.1", 0))
        port, spare = first.getsockname()[1], second.getsockname()[1]
    ray = Path(sys.executable).parent / "ray"
    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp") as folder:  # its sockets want a short path
        marks = Path(folder) / "marks"
        marks.mkdir()
        command = [
            sys.executable, ray, "start", "--head", "--block", f"--port={port}", "--num-cpus=2",
            "--node-ip-address=127.0.0.1", f"--temp-dir={folder}/ray", "--include-dashboard=false",
            "--disable-usage-stats", "--object-store-memory=80000000", f"--ray-client-server-port={spare}",
            "--min-worker-port=0", "--max-worker-port=0",
        ]  # fmt: skip
        env = {
            **os.environ,
            "PYTHONPATH": str(Path(made_studies.__file__).parent),
            "RAY_worker_niceness": "0",
            MARKS: str(marks),
            "NORMKIT_TEST_KILLS": "1",
        }
        head = subprocess.Popen(
            command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        try:
            wait_for(port, head)
            yield f"127.0.0.1:{port}", marks
        finally:
            head.send_signal(signal.SIGTERM)
            head.wait(timeout=60)


def wait_for(port: int, head: subprocess.Popen[bytes]) -> None:
    for _ in range(600):
        assert head.poll() is None, "Ray did not start"
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.1)
        else:
            return
    raise AssertionError("Ray does not answer")


def test_a_cluster_measures_the_same_and_tries_again_what_was_killed(
    cluster: tuple[str, Path], tmp_path: Path
) -> None:
    address, marks = cluster
    code, out, err = complete("killed", "made", "--quick", "--ray", address, "--out", str(tmp_path / "ray"))
    assert (code, err) == (0, "")
    assert "2 supported" in out
    assert len([*marks.iterdir()]) == 1
    complete("made", "--quick", "--workers", "1", "--out", str(tmp_path / "here"))
    here = sorted(result for _, result in kept(tmp_path / "here"))
    for study in ("killed", "made"):
        assert sorted(result for name, result in kept(tmp_path / "ray") if name == study) == here


def test_a_cluster_trains_the_same_runs(cluster: tuple[str, Path], tmp_path: Path) -> None:
    address, _ = cluster
    arguments = ["compare", "--model", "mlp", "--norms", "none,batch", "--epochs", "2", "--seeds", "1"]
    for out, more in (("here", []), ("ray", ["--ray", address])):
        process = start_normkit(*arguments, *more, "--out", str(tmp_path / out))
        shown, said = process.communicate(timeout=240)
        assert (process.returncode, said) == (0, "")
        assert ("ms/step" in shown) == (out == "here")
    assert recorded(tmp_path / "ray") == recorded(tmp_path / "here")
    process = start_normkit(
        *arguments, "--ray", address, "--threads", "3", "--out", str(tmp_path / "threads")
    )
    shown, said = process.communicate(timeout=240)
    assert (process.returncode, shown) == (2, "")
    assert said == "normkit: --threads must be at most the 2 CPUs of the cluster's largest machine, got 3\n"


def test_interrupted_on_a_cluster_it_keeps_what_has_ended(cluster: tuple[str, Path], tmp_path: Path) -> None:
    address, _ = cluster
    arguments = ["compare", "--model", "mlp", "--norms", "none,batch", "--epochs", "60", "--seeds", "3"]
    process = start_normkit(*arguments, "--ray", address, "--out", str(tmp_path))
    wait_until(lambda: grown(tmp_path / "runs.sqlite-wal", 8 * 4096))  # the first run is in
    os.killpg(process.pid, signal.SIGINT)
    assert process.communicate(timeout=60) == (
        "",
        "normkit: interrupted; finished runs are kept, the same command goes on\n",
    )
    assert process.returncode == 130
    with Store(tmp_path) as store:
        runs = store.runs()
    assert 1 <= len(runs) < 6
    assert {run.status for run in runs} == {"finished"}


@pytest.mark.slow  # it is given half a minute
def test_something_else_at_the_address_gets_a_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"
        code, out, err = complete("made", "--quick", "--ray", address, "--out", str(tmp_path))
    assert (code, out) == (2, "")
    assert err.startswith(f"normkit: --ray {address}: cannot be joined ")
    assert err.count("\n") == 1
