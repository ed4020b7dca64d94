"""Tasks on a Ray cluster: the same results elsewhere, kept by the process that owns the store.

Machines of the cluster need normkit, and the user's own files under the same paths. A worker that is killed costs an
attempt, as on one machine. What a worker tells on the way comes with its result; what measures time never comes here.
"""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from typing import Any

from normkit.errors import InputError, one_line, optional, printable
from normkit.lab.workers.task import ATTEMPTS, AnyTask, Done, Order, Outcome, Runner, perform

_REACH = 5.0  # seconds for the cluster to take a connection
_JOIN = 30.0  # and to let a process join, which has to start for it


def connect(address: str, threads: int = 1) -> Runner:
    """What has tasks done on the cluster whose head is at HOST:PORT; with ray:// before it, by a Ray client.

    Args:
        address: of the head.
        threads: of each task.

    Raises:
        InputError: no such cluster, or one that cannot be joined from this machine.
    """
    ray = optional("ray", "ray")
    _reach(address)

    def run(tasks: Iterable[AnyTask], *, shared: object = None) -> Generator[Outcome[AnyTask]]:
        queue = list(tasks)
        if not queue:
            return
        with _joined(ray, address):
            _check_room(ray, threads)
            remote = ray.remote(num_cpus=threads, max_retries=ATTEMPTS - 1)(_perform)
            everywhere = ray.put(shared)
            under_way = {remote.remote(task.order(), everywhere): task for task in queue}
            while under_way:
                (done,), _ = ray.wait(list(under_way), num_returns=1)
                yield _outcome(ray, done, under_way.pop(done))

    return run


def _perform(order: Order, shared: object) -> tuple[list[Any], Done]:
    """What a worker of the cluster does: the order, and what it tells, all at the end."""
    said: list[Any] = []
    return said, perform(order, shared, said.append)


def _outcome(ray: Any, done: Any, task: AnyTask) -> Outcome[AnyTask]:
    try:
        said, ended = ray.get(done)
    except ray.exceptions.WorkerCrashedError:
        return Outcome.killed(task)
    except ray.exceptions.RayTaskError as error:
        return Outcome(task, None, 0.0, one_line(error))
    except ray.exceptions.RayError as error:
        raise InputError(
            f"the Ray cluster is gone ({one_line(error)}): run the same command again"
        ) from error
    for message in said:
        task.heard(message)
    return Outcome(task, *ended)


def _check_room(ray: Any, threads: int) -> None:
    """Ray would wait for ever for a machine that the cluster does not have."""
    largest = max((node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"]), default=0)
    if threads > largest:
        raise InputError(
            f"--threads must be at most the {largest:g} CPUs of the cluster's largest machine, got {threads}"
        )


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
