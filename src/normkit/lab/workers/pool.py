"""Worker processes on this machine: a task each at a time, and another attempt where one was killed.

Each worker has a pipe of its own, so that one killed while it writes spoils nothing that another says. Only the
process that owns the pool gets Ctrl-C; a worker ends with its pool, however that ends.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import Counter, deque
from collections.abc import Generator, Iterable
from contextlib import suppress
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from typing import Any

from normkit.lab.workers.interrupts import held
from normkit.lab.workers.task import ATTEMPTS, AnyTask, Done, Outcome, perform


def run(tasks: Iterable[AnyTask], *, workers: int, shared: object = None) -> Generator[Outcome[AnyTask]]:
    """Have tasks done, and give each outcome as it comes; closed early, it ends the workers at once.

    Args:
        tasks: in the order in which they begin.
        workers: how many of them at a time.
        shared: what all orders get; it is sent to each worker once.
    """
    waiting, killed = deque(tasks), Counter[str]()
    busy: dict[_Worker, AnyTask] = {}
    idle: list[_Worker] = []
    try:
        while waiting or busy:
            free = min(len(waiting), workers - len(busy))
            while len(idle) < free:  # all of them start, and none is waited for yet
                idle.append(_Worker(shared))
            for _ in range(free):
                worker, task = idle.pop(), waiting.popleft()
                busy[worker] = task
                worker.give(task.order())
            ready = wait([worker.pipe for worker in busy])
            for worker in [worker for worker in busy if worker.pipe in ready]:
                task = busy[worker]
                try:
                    said = worker.take()
                except EOFError:
                    del busy[worker]
                    killed[task.key] += 1
                    if killed[task.key] < ATTEMPTS:
                        waiting.appendleft(task)
                    else:
                        yield Outcome.killed(task, worker.end())
                    continue
                if not isinstance(said, Done):
                    task.heard(said)
                    continue
                del busy[worker]
                idle.append(worker)
                yield Outcome(task, *said)
    finally:
        for worker in (*busy, *idle):
            worker.kill()


class _Worker:
    """A process and the pipe to it."""

    def __init__(self, shared: object) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs,), daemon=True)
        self._shared: tuple[object, ...] = (shared,)  # until it is sent
        resource_tracker.ensure_running()  # would be started with the process, and let SIGINT through again
        with held():  # which the process inherits
            self._process.start()
        theirs.close()  # so that the pipe ends when the process does

    def give(self, order: object) -> None:
        """Send an order, and before the first what all share; of a process that is no more, `take` tells."""
        with suppress(OSError):
            for thing in (*self._shared, order):
                self.pipe.send(thing)
        self._shared = ()

    def take(self) -> Any:
        """What it tells, and at last how its order ended.

        Raises:
            EOFError: the process ended before.
        """
        try:
            return self.pipe.recv()
        except (EOFError, OSError):
            self._process.join()
            self.pipe.close()
            raise EOFError from None

    def end(self) -> str:
        """How the process ended."""
        code = self._process.exitcode
        assert code is not None
        return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"

    def kill(self) -> None:
        """End the process, whatever it does."""
        self._process.kill()
        self._process.join()
        self.pipe.close()


def _serve(pipe: Connection) -> None:
    """What a worker does: carry out what it is sent, until the pool is gone."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with suppress(EOFError):
        shared = pipe.recv()
        while True:
            pipe.send(perform(pipe.recv(), shared, pipe.send))


def _end_with_parent() -> None:
    """A pool that was killed cannot end its workers: they look for it themselves."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
