"""What the processes of a group tell each other once something takes long or fails.

An exchange that goes well never comes here. Notes lie in the store that the group was made with; each
process has one of its own, and three are of the whole group: who waits in a forward pass, who waits in a
backward pass, and who has given up. Reading may hang, for the store may be in a process that stands still: so
everything here happens in a thread of its own, and whoever asks waits for a short time only.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import torch.distributed as dist

REPLY = 2.0  # seconds that a process waits for what the others say
_T = TypeVar("_T")


class Note(NamedTuple):
    """Where a process was when it wrote this."""

    rank: int
    number: int  # of the exchange that it was in, or would have come to next
    text: str


class Board:
    """The notes of one group. Where the store does not answer, nobody said anything."""

    def __init__(self, group: dist.ProcessGroup) -> None:
        self._size, self._group_store = group.size(), group.get_group_store()
        self._store: Any = None
        self._hangs = False

    def write(self, note: Note, *keys: str) -> None:
        """Put a note where all see it: this process's own place, and others by name."""

        def write() -> None:
            for key in (str(note.rank), *keys):
                self._open().set(_PREFIX + key, json.dumps(note))

        self._ask(write, None)

    def read(self, *keys: str) -> list[Note]:
        """The notes at these places, as far as there are any."""
        return self._ask(lambda: self._read(keys), [])

    def gather(self, number: int, seconds: float = REPLY) -> dict[int, str]:
        """What each rank says of an exchange, waiting that long for those that have not spoken."""
        found: dict[int, str] = {}
        pause, deadline = 0.01, time.monotonic() + seconds
        while True:
            missing = [str(rank) for rank in range(self._size) if rank not in found]
            found |= {note.rank: note.text for note in self.read(*missing) if note.number == number}
            if len(found) == self._size or self._hangs or time.monotonic() + pause > deadline:
                return found
            time.sleep(pause)
            pause *= 2

    def _read(self, keys: tuple[str, ...]) -> list[Note]:
        store = self._open()
        there = [key for key in keys if store.check([_PREFIX + key])]
        return [Note(*json.loads(store.get(_PREFIX + key))) for key in there]

    def _ask(self, action: Callable[[], _T], otherwise: _T) -> _T:
        """What the action returns, or `otherwise` where it fails, or hangs; that is waited for only once."""
        results: list[_T] = []

        def run() -> None:
            try:
                results.append(action())
            except (RuntimeError, ValueError):  # the store is gone with the process that it was in
                results.append(otherwise)

        if not self._hangs:
            thread = threading.Thread(target=run, daemon=True)
            thread.start()
            thread.join(REPLY)
            self._hangs = not results
        return results[0] if results else otherwise

    def _open(self) -> Any:
        """A connection of our own, so that a reader that hangs blocks nobody else's use of the store."""
        if self._store is None:
            self._store = self._group_store.clone()  # pyright: ignore[reportAttributeAccessIssue]
        return self._store


_PREFIX = "normkit/"
