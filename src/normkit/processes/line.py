"""The line of exchanges of one group: which comes next, and whether all processes are in the same one.

An exchange is one collective: an all-gather in a forward pass, an all-reduce in a backward pass. Each message
begins with a short hash of what its process is doing, so that processes that disagree notice, all of them, in
the very exchange in which they do.

Messages that meet must have one length, for a backend may crash or mix up data otherwise; and a process
cannot know what the others are about to do. So the length of each message is agreed on in the exchange before
it: each process proposes what it needed there the last time, and where proposals differ or nothing is known,
the next message is a bare head. Where a message turns out too short for its data, all processes have seen the
same heads by then, and follow it with a second one that is long enough. From the second training step on,
each exchange is one collective.
"""

from __future__ import annotations

import bisect
import hashlib
import time
import weakref
from datetime import timedelta
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import torch.distributed as dist
from torch import Tensor

from normkit.errors import ProcessError
from normkit.processes.board import REPLY, Board, Note

PATIENCE = 0.5  # seconds after which a process that waits says so, and looks what others say
_PATIENCE = timedelta(seconds=PATIENCE)
Pass = Literal["forward", "backward"]


class Layer(NamedTuple):
    """How a layer is known: the order in which layers were made holds in every process, and so do names."""

    made: int
    title: str


class Call(NamedTuple):
    """What a process does in an exchange; all must do the same."""

    which: Pass
    layer: Layer
    channels: int
    gradients: bool = True


class Line:
    """The exchanges of one group, as this process sees them."""

    def __init__(self, group: dist.ProcessGroup) -> None:
        self._group = weakref.ref(group)  # which this is kept beside, and gone with
        self.size, self._rank, self._name = group.size(), group.rank(), f"group {group.group_name!r}"
        self._board = Board(group)
        self._number = 0  # of the exchange that is next
        self._room = 0  # numbers that the next message holds beyond its head
        self._needed: dict[Call | None, int] = {}  # by the exchange after each one
        self._last: Call | None = None
        self._letters: dict[Any, _Letter] = {}  # by length, device and dtype: they are written anew
        self._used: list[int] = []  # the layers that took part, in the order in which they were made
        self._places: dict[int, tuple[int, int]] = {}
        self._evaluated, self._looked = -1, 0.0

    def gather(
        self, call: Call, numbers: tuple[float, ...], data: Tensor
    ) -> tuple[list[list[float]], Tensor]:
        """A few numbers, and data, of all processes in the order of their ranks.

        Data as rows, which are as long as the longest of them: the others end in zeros. They are good until the
        next exchange.
        """
        before = self._last
        text, need = self._enter(call, data)
        while True:
            head = (*_words(text), self._following(call), float(need), *numbers)
            letter = self._letter(head, data)
            self._wait(text, call, dist.all_gather_single, letter.received, letter.sent)
            heads: list[list[float]] = letter.rows_read[:, : len(head)].tolist()
            agreed = all(tuple(other[:3]) == head[:3] for other in heads)
            foreseen = all(other[3] == head[3] for other in heads)
            longest = int(max(other[4] for other in heads)) if agreed else need
            self._needed[before] = max(longest, self._needed[before])
            if self._settle(text, longest, agreed=agreed, following=head[3] if foreseen else 0):
                return [other[5:] for other in heads], letter.rows[:, len(head) : len(head) + longest]

    def sum(self, call: Call, data: Tensor) -> Tensor:
        """The sum of the data of all processes, good until the next exchange."""
        text, need = self._enter(call, data)
        while True:
            # Numbers are equal where their sum and that of their squares are those of equal numbers.
            own = (*_words(text), self._following(call))
            head = (*own, *(number * number for number in own))
            letter = self._letter(head, data)
            self._wait(text, call, dist.all_reduce, letter.sent)
            sums: list[float] = letter.written[: len(head)].tolist()
            equal = [total == self.size * number for number, total in zip(head, sums, strict=True)]
            agreed, foreseen = all(equal[:3] + equal[4:7]), equal[3] and equal[7]
            if self._settle(text, need, agreed=agreed, following=own[3] if foreseen else 0):
                return letter.sent[len(head) : len(head) + need]

    def evaluates(self, layer: Layer) -> None:
        """Leave a note, once after each exchange, and now and then look whether others have given up."""
        now = time.monotonic()
        if self._evaluated != self._number:
            self._evaluated = self._number
            self._board.write(Note(self._rank, self._number, f"runs {layer.title} in evaluation mode"))
        elif now - self._looked > PATIENCE:
            self._heed(f"{layer.title} in evaluation mode")
        else:
            return
        self._looked = now

    def _enter(self, call: Call, data: Tensor) -> tuple[str, int]:
        """Come to an exchange: what this process is doing, and how much data it brings."""
        need = data.numel()
        self._needed[self._last] = max(need, self._needed.get(self._last, 0))
        self._last = call
        return self._describe(call), need

    def _following(self, call: Call) -> float:
        """The room that the exchange after this one needed the last time."""
        return float(min(self._needed.get(call, 0), _WORD - 1))

    def _letter(self, head: tuple[float, ...], data: Tensor) -> _Letter:
        """The head, and as much as was agreed on: the data and zeros, or zeros alone where there is no room."""
        length, begin, need = len(head) + self._room, len(head), data.numel()
        letter = self._letters.get(like := (length, data.device, data.dtype))
        if letter is None:
            letter = _Letter(self.size, length, data)
            if letter.received.numel() <= _KEPT:
                self._letters[like] = letter
        numbers = letter.written
        numbers[:begin] = data.new_tensor(head) if numbers is letter.sent else head
        end = begin + need if self._room >= need else begin
        if end > begin:
            numbers[begin:end] = _numbers(data).reshape(-1)
        if end < length:
            numbers[end:] = 0
        return letter

    def _settle(self, text: str, need: int, *, agreed: bool, following: float) -> bool:
        """Go on to the next exchange, and say whether the data went through in this one."""
        if not agreed:
            raise self._disagreement(text)
        enough = self._room >= need
        self._number += 1
        self._room = int(following) if enough else need  # all are in the same call, which needs the same
        return enough

    def _wait(self, text: str, call: Call, collective: Any, *tensors: Tensor) -> None:
        """Until it is done; after a while saying so, and looking whether it can still be."""
        start = time.monotonic()
        try:
            work = collective(*tensors, group=self._group(), async_op=True)
            while not _done(work):
                self._board.write(Note(self._rank, self._number, text), call.which)
                self._heed(text, other="backward" if call.which == "forward" else "forward")
        except ProcessError:
            raise
        except RuntimeError as failure:
            raise self._abandoned(text, failure, time.monotonic() - start) from failure

    def _heed(self, text: str, other: str = "left") -> None:
        """Raise where somebody has given up on this exchange, or waits in another one for this process."""
        for note in self._board.read("left", other):
            if note.rank != self._rank and note.number == self._number:
                self._leave(text)
                raise ProcessError(f"{self._here(text)}, but {_of(note.rank)} {note.text}: {_REMEDY}")

    # What went wrong, in words.

    def _describe(self, call: Call) -> str:
        """What a process is doing, so exactly that it is the same text where it is the same thing."""
        made = call.layer.made
        if made not in self._places:
            bisect.insort(self._used, made)
            # Layers made in one order and used in another show here, whatever else was made in between.
            self._places[made] = len(self._used), self._used.index(made) + 1
        used, place = self._places[made]
        gradients = "" if call.gradients else ", without gradients"
        return (
            f"is in the {call.which} pass of {call.layer.title} "
            f"({call.channels} channels, layer {used}.{place} of the group{gradients})"
        )

    def _disagreement(self, text: str) -> ProcessError:
        """All processes are in the same exchange, and come here together."""
        self._board.write(Note(self._rank, self._number, text))
        texts = self._board.gather(self._number)
        self._number, self._room, self._last = self._number + 1, 0, None
        said = "; ".join(f"{_of(rank)} {texts[rank]}" for rank in sorted(texts))
        return ProcessError(f"the processes of {self._name} disagree: {said}: {_REMEDY}")

    def _abandoned(self, text: str, failure: RuntimeError, waited: float) -> ProcessError:
        """The collective failed: its timeout passed, or a connection broke, which others are yet to notice."""
        self._leave(text)
        texts = self._board.gather(self._number, REPLY - waited)
        said = [f"{_of(rank)} {text}" for rank, text in sorted(texts.items()) if rank != self._rank]
        silent = [rank for rank in range(self.size) if rank not in texts and rank != self._rank]
        if silent:
            said.append(f"no word from {_of(*silent)}")
        reason = " ".join(str(failure).split())[:200]
        return ProcessError(f"{self._here(text)}, in vain: {'; '.join(said)} ({reason}): {_REMEDY}")

    def _leave(self, text: str) -> None:
        self._board.write(Note(self._rank, self._number, f"gave up where it {text}"), "left")

    def _here(self, text: str) -> str:
        return f"{_of(self._rank)} of {self._name} {text}"


class _Letter:
    """What is sent and, in a gathering, received, of one length; each also as it is quickest to read and write."""

    def __init__(self, size: int, length: int, like: Tensor) -> None:
        self.sent = like.new_empty(length)
        self.received = like.new_empty(size * length)
        self.rows = self.received.view(size, length)
        self.written, self.rows_read = _numbers(self.sent), _numbers(self.rows)


_REMEDY = "every process must run the same synchronized layers in the same order and mode"
_KEPT = 2**17  # numbers that are received in a letter that is kept
_WORD = 2**20  # squares of words, summed over 8192 processes, are exact in float64
_lines: weakref.WeakKeyDictionary[dist.ProcessGroup, Line] = weakref.WeakKeyDictionary()


def line_of(group: dist.ProcessGroup) -> Line:
    """The line of a group, which is one for all layers that share its statistics."""
    line = _lines.get(group)
    if line is None:
        line = _lines[group] = Line(group)
    return line


@lru_cache(maxsize=4096)
def _words(text: str) -> tuple[float, ...]:
    """A hash of 60 bits, as three numbers."""
    number = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")
    return tuple(float(number >> shift & (_WORD - 1)) for shift in (0, 20, 40))


def _numbers(data: Tensor) -> Any:
    """The same numbers for a few small steps: NumPy takes them where it can, with far less behind each."""
    return data.detach().numpy() if data.is_cpu else data


def _done(work: dist.Work) -> bool:
    """Wait for a collective, for a while; what it failed with is raised."""
    try:
        work.wait(_PATIENCE)
    except RuntimeError:
        if work.is_completed():
            raise
        return False
    return True


def _of(*ranks: int) -> str:
    return ("rank " if len(ranks) == 1 else "ranks ") + ", ".join(map(str, ranks))
