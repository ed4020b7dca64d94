"""A run of the GPU benchmark as tables: every measurement, and the rows with what they must reach."""

from __future__ import annotations

from statistics import geometric_mean

from normkit.bench.cuda import PEERS, ROWS
from normkit.bench.result import Result, Spread
from normkit.bench.table import terminal
from normkit.errors import optional

_NOTES = """\
Speed: the peer's time over ours, of forward and backward, by CUDA events, inputs in turn.
Floor: our time over that of the least bytes at the rate of the copy of the same round.
In brackets the quartiles over the rounds, of which the median is given."""


def print_table(result: Result) -> None:
    """Print a run for a person.

    Raises:
        MissingExtraError: rich is not installed.
    """
    console = terminal()
    console.print(str(result.machine))
    for backend in dict.fromkeys(one.backend for one in result.measured):
        console.print(f"kernels: {backend}")
    for peer, reason in result.absent.items():
        console.print(f"without {peer}: {reason}")
    table = optional("rich.table", "lab").Table
    ran = [peer for peer in PEERS if any(peer in one.times for one in result.measured)]
    every = table("row", "input", *ran, "floor forward", "floor")
    for one in result.measured:
        floors = one.over_floor("forward"), one.over_floor()
        every.add_row(one.row, str(one), *map(_words, (*map(one.speedup, ran), *floors)))
    console.print(every)
    rows = table("row", *ran, "must reach", "floor")
    for row in ROWS:
        if of_row := result.of(row.key):
            means = [_mean([one.speedup(peer) for one in of_row]) for peer in ran]
            rows.add_row(row.title, *means, f"{row.geomean:g}", _mean([one.over_floor() for one in of_row]))
    console.print(rows)
    console.print(_NOTES)


def _words(spread: Spread | None) -> str:
    return "-" if spread is None else f"{spread.median:.2f} ({spread.low:.2f}-{spread.high:.2f})"


def _mean(spreads: list[Spread | None]) -> str:
    """The geometric mean of the medians that there are."""
    there = [one.median for one in spreads if one is not None]
    return f"{geometric_mean(there):.2f}" if there else "-"
