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

from normkit.lab.sweep.interrupts import held
from normkit.lab.sweep.task import Outcome, Task, measure

ATTEMPTS = 3  # at a task whose workers are killed


def run(tasks: Iterable[Task], workers: int) -> Generator[Outcome]:
    """Measure the tasks, and give each outcome as it comes; closed early, it ends the workers at once."""
    waiting, killed = deque(tasks), Counter[str]()
    busy: dict[_Worker, Task] = {}
    idle: list[_Worker] = []
    try:
        while waiting or busy:
            while waiting and len(busy) < workers:
                worker = idle.pop() if idle else _Worker()
                busy[worker] = waiting.popleft()
                worker.give(busy[worker])
            ready = wait([worker.pipe for worker in busy])
            for worker in [worker for worker in busy if worker.pipe in ready]:
                task, outcome = busy.pop(worker), worker.take()
                if outcome is not None:
                    idle.append(worker)
                    yield outcome
                    continue
                killed[task.key] += 1
                if killed[task.key] < ATTEMPTS:
                    waiting.appendleft(task)
                else:
                    yield Outcome(task, None, 0.0, f"{ATTEMPTS} workers at it ended: {worker.end()}")
    finally:
        for worker in (*busy, *idle):
            worker.kill()


class _Worker:
    """A process and the pipe to it."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs,), daemon=True)
        resource_tracker.ensure_running()  # would be started with the process, and let SIGINT through again
        with held():  # which the process inherits
            self._process.start()
        theirs.close()  # so that the pipe ends when the process does

    def give(self, task: Task) -> None:
        """Send a task; of a process that is no more, `take` tells."""
        with suppress(OSError):
            self.pipe.send(task)

    def take(self) -> Outcome | None:
        """The outcome of its task, or None where the process ended before it had one."""
        try:
            return self.pipe.recv()
        except (EOFError, OSError):
            self._process.join()
            self.pipe.close()
            return None

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
    """What a worker does: measure what it is sent, until the pool is gone."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    while True:
        try:
            task = pipe.recv()
        except EOFError:
            return
        pipe.send(measure(task))


def _end_with_parent() -> None:
    """A pool that was killed cannot end its workers: they look for it themselves."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
