"""What a row comes to: geometric means over its shapes, and whether it reaches what is required of it."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from normkit.bench.contenders import EAGER, PEERS
from normkit.bench.result import Measured, Phase, Result, Spread
from normkit.bench.rows import BACKWARD_BOUND, FORWARD_BOUND, ROWS, Row


@dataclass(frozen=True)
class Extreme:
    """The ratio furthest to the bad side, and the shape that it belongs to."""

    ratio: float
    where: str


@dataclass(frozen=True)
class Summary:
    """A row over its shapes. Every ratio of a shape is the median over the rounds."""

    row: Row
    speedups: dict[str, float]  # geometric mean against each peer that ran
    worst: Extreme  # against torch eager
    over_floor: float | None  # geometric mean
    forward: Extreme | None  # over the floor, of the shapes beyond the last-level cache; None without any
    backward: Extreme | None

    @property
    def misses(self) -> list[str]:
        """What falls short, each by how much; a row without any is met."""
        eager = self.speedups[EAGER]
        found = [
            _short("mean", eager, self.row.geomean),
            _short(f"worst, {self.worst.where},", self.worst.ratio, self.row.worst),
            _over("forward", self.forward, FORWARD_BOUND),
            _over("backward", self.backward, BACKWARD_BOUND),
        ]
        return [miss for miss in found if miss]


def summarize(result: Result) -> list[Summary]:
    """A summary per row that was measured, in the order of the table of rows."""
    return [_summary(row, result.of(row.key)) for row in ROWS if result.of(row.key)]


def _summary(row: Row, measured: Sequence[Measured]) -> Summary:
    speedups = {peer: _mean(one.speedup(peer) for one in measured) for peer in PEERS}
    eager = [(one.speedup(), str(one)) for one in measured]
    beyond = [one for one in measured if one.beyond_cache]
    return Summary(
        row,
        {peer: mean for peer, mean in speedups.items() if mean is not None},
        min((Extreme(spread.median, where) for spread, where in eager if spread), key=lambda e: e.ratio),
        _mean(one.over_floor() for one in measured),
        _furthest(beyond, "forward"),
        _furthest(beyond, "backward"),
    )


def _mean(spreads: Iterable[Spread | None]) -> float | None:
    medians = [spread.median for spread in spreads if spread is not None]
    return statistics.geometric_mean(medians) if medians else None


def _furthest(measured: Sequence[Measured], phase: Phase) -> Extreme | None:
    spreads = [(one.over_floor(phase), str(one)) for one in measured]
    extremes = [Extreme(spread.median, where) for spread, where in spreads if spread]
    return max(extremes, key=lambda extreme: extreme.ratio, default=None)


def _short(what: str, ratio: float, required: float) -> str:
    if ratio >= required:
        return ""
    return f"{what} {ratio:.2f}x of {required:g}x ({1 - ratio / required:.0%} short)"


def _over(phase: str, extreme: Extreme | None, bound: float) -> str:
    if extreme is None or extreme.ratio <= bound:
        return ""
    excess = extreme.ratio / bound - 1
    return f"{phase}, {extreme.where}, {extreme.ratio:.2f} floors of {bound:g} ({excess:.0%} over)"
