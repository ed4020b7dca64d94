"""Trials as tasks of a Ray cluster: the same measurements elsewhere, kept by the process that owns the store.

Machines of the cluster need normkit, and the user's own files under the same paths. A worker that is killed costs an
attempt, as on one machine; trials that measure time never come here.
"""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from typing import Any

from normkit.errors import InputError, one_line, optional, printable
from normkit.lab.sweep.pool import ATTEMPTS
from normkit.lab.sweep.sweep import Runner
from normkit.lab.sweep.task import Outcome, Task, measure

_REACH = 5.0  # seconds for the cluster to take a connection
_JOIN = 30.0  # and to let a process join, which has to start for it


def connect(address: str) -> Runner:
    """What measures tasks on the cluster whose head is at HOST:PORT; with ray:// before it, by a Ray client.

    Raises:
        InputError: no such cluster, or one that cannot be joined from this machine.
    """
    ray = optional("ray", "ray")
    _reach(address)

    def run(tasks: Iterable[Task]) -> Generator[Outcome]:
        queue = list(tasks)
        if not queue:
            return
        with _joined(ray, address):
            remote = ray.remote(num_cpus=1, max_retries=ATTEMPTS - 1)(measure)
            under_way = {remote.remote(task): task for task in queue}
            while under_way:
                (done,), _ = ray.wait(list(under_way), num_returns=1)
                yield _outcome(ray, done, under_way.pop(done))

    return run


def _outcome(ray: Any, done: Any, task: Task) -> Outcome:
    try:
        return ray.get(done)
    except ray.exceptions.WorkerCrashedError:
        return Outcome(task, None, 0.0, f"{ATTEMPTS} workers at it ended")
    except ray.exceptions.RayTaskError as error:
        return Outcome(task, None, 0.0, one_line(error))
    except ray.exceptions.RayError as error:
        raise InputError(
            f"the Ray cluster is gone ({one_line(error)}): run the same command again"
        ) from error


def _reach(address: str) -> None:
    """Whether a cluster is there; Ray itself would wait for minutes where nobody answers, or somebody else does."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():
        raise InputError(f"--ray must be HOST:PORT of the cluster's head, got {address!r}")
    try:
        socket.create_connection((host, int(port)), timeout=_REACH).close()
    except (OSError, OverflowError) as failure:
        raise InputError(
            f"--ray {address}: no answer ({failure}): is `ray start --head` up there?"
        ) from failure
    join = f"import ray; ray.init(address={address!r}, log_to_driver=False, logging_level='ERROR')"
    try:
        tried = subprocess.run([sys.executable, "-c", join], capture_output=True, text=True, timeout=_JOIN)
    except subprocess.TimeoutExpired as late:
        raise InputError(f"--ray {address}: cannot be joined within {_JOIN:g} s: is it Ray's?") from late
    if tried.returncode:
        why = (tried.stderr.strip().splitlines() or ["it gave no reason"])[-1]
        raise InputError(f"--ray {address}: cannot be joined ({printable(why)})")


@contextmanager
def _joined(ray: Any, address: str) -> Generator[None]:
    try:
        ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    except Exception as failure:  # Ray raises of many kinds here, and none of them is ours
        raise InputError(f"--ray {address}: cannot be joined ({one_line(failure)})") from failure
    try:
        yield
    finally:
        ray.shutdown()
