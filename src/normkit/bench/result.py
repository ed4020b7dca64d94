"""What a run found: the times of every round, and the ratios that follow from them."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from normkit.bench.contenders import COPY, EAGER, OURS
from normkit.bench.machine import Machine
from normkit.bench.timing import Times

Phase = Literal["total", "forward", "backward"]


@dataclass(frozen=True)
class Spread:
    """A median and the quartiles about it."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """The quartiles of two or more values."""
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median, low, high)


@dataclass(frozen=True)
class Measured:
    """One operation on one input: what each contender took, and what the memory bus allows.

    The floor of a phase is its least bytes over the rate of the copy of the same round. For whole training
    steps there is no copy, and so no floor.
    """

    row: str  # key of the row; "steps" for whole training steps
    network: str
    size: tuple[int, ...]
    backend: str  # normkit's own words on which kernels ran, and why
    tensor_bytes: int
    forward_bytes: int
    backward_bytes: int
    beyond_cache: bool
    times: dict[str, Times]

    def __str__(self) -> str:
        return f"{self.network} {'x'.join(map(str, self.size))}"

    def speedup(self, peer: str = EAGER) -> Spread | None:
        """How many times the time of ours the peer took, round by round; None where it did not run."""
        return self.ratio(peer, OURS)

    def ratio(self, one: str, other: str) -> Spread | None:
        """How many times the time of the other the one took, round by round; None where it did not run."""
        if one not in self.times:
            return None
        pairs = zip(self.times[one].total, self.times[other].total, strict=True)
        return Spread.of([its / the_others for its, the_others in pairs])

    def over_floor(self, phase: Phase = "total") -> Spread | None:
        """How many times the floor ours took, round by round; None where the phase was not timed."""
        least = {"forward": self.forward_bytes, "backward": self.backward_bytes}
        bytes_ = least.get(phase, sum(least.values()))
        ours = getattr(self.times[OURS], phase)
        # In evaluation the forward pass is all there is.
        if phase == "forward" and self.backward_bytes == 0:
            ours = self.times[OURS].total
        if COPY not in self.times or not ours:
            return None
        copies = bytes_ / (2 * self.tensor_bytes)  # a copy reads and writes a tensor
        pairs = zip(ours, self.times[COPY].total, strict=True)
        return Spread.of([time / (copies * copy) for time, copy in pairs])


@dataclass(frozen=True)
class Result:
    """A whole run."""

    machine: Machine
    absent: dict[str, str]  # peers that could not run, and why
    measured: list[Measured]

    def of(self, row: str) -> list[Measured]:
        """What was measured in a row."""
        return [one for one in self.measured if one.row == row]


def to_json(result: Result) -> str:
    """Every time of every round; `from_json` reads it back, and all ratios follow from it."""
    return json.dumps(asdict(result), indent=1, allow_nan=False)


def from_json(text: str) -> Result:
    """The result that `to_json` wrote."""
    plain = json.loads(text)
    return Result(
        Machine(**plain["machine"]), plain["absent"], [_measured(**one) for one in plain["measured"]]
    )


def _measured(*, size: list[int], times: dict[str, dict[str, list[float]]], **rest: Any) -> Measured:
    return Measured(size=tuple(size), times={name: Times(**phases) for name, phases in times.items()}, **rest)
