"""What workers are asked for, and what comes of it.

The owner of a store has tasks. A worker is given a task's order, may tell something on the way, and ends with a result
or with the one line that says why there is none. What it tells goes to its task, in the owner's process.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from normkit.errors import InputError, one_line

ATTEMPTS = 3  # at a task whose workers are killed

Tell = Callable[[Any], None]


class Order(Protocol):
    """What is sent to a worker: it can be pickled."""

    def carry_out(self, shared: Any, tell: Tell) -> Any:
        """Do it with what all orders share, tell what is worth keeping on the way, and return what came of it."""
        ...


class Task(Protocol):
    """What the owner wants done; as text, what a person calls it."""

    @property
    def key(self) -> str:
        """The name that no other task has."""
        ...

    def order(self) -> Order:
        """What a worker is given: asked for at every attempt, so that it may begin where the last one ended."""
        ...

    def heard(self, message: Any) -> None:
        """Take what a worker tells on the way."""
        ...


AnyTask = TypeVar("AnyTask", bound=Task)


class Done(NamedTuple):
    """How an order ended, as its worker says."""

    result: Any  # None where there is a problem
    seconds: float
    problem: str = ""
    trace: str = ""  # of our own error, or of the user's code


@dataclass(frozen=True)
class Outcome(Generic[AnyTask]):
    """What came of a task: its result, or the one line that says why there is none."""

    task: AnyTask
    result: Any
    seconds: float
    problem: str = ""
    trace: str = ""

    @classmethod
    def killed(cls, task: AnyTask, how: str = "") -> Outcome[AnyTask]:
        """Of a task whose workers ended at every attempt."""
        return cls(task, None, 0.0, f"{ATTEMPTS} workers at it ended" + (f": {how}" if how else ""))


class Runner(Protocol):
    """What has tasks done and gives each outcome as it comes, in any order; closed early, it ends what is under way."""

    def __call__(self, tasks: Iterable[AnyTask], *, shared: object = None) -> Generator[Outcome[AnyTask]]: ...


def perform(order: Order, shared: object, tell: Tell) -> Done:
    """Carry out an order; an exception becomes a line."""
    started = time.perf_counter()
    try:
        result = order.carry_out(shared, tell)
    except Exception as error:
        problem = str(error) if isinstance(error, InputError) else one_line(error)
        return Done(None, time.perf_counter() - started, problem, traceback.format_exc())
    return Done(result, time.perf_counter() - started)
