"""A run of the speed benchmark as tables: each measurement, and last the rows with their verdicts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from normkit.bench import family
from normkit.bench.contenders import COPY, EAGER, OURS, PEERS
from normkit.bench.result import Measured, Result, Spread
from normkit.bench.rows import BACKWARD_BOUND, FORWARD_BOUND, ROWS
from normkit.bench.steps import STEPS
from normkit.bench.summary import Summary, summarize
from normkit.errors import optional

_NOTES = f"""\
Speed: the peer's time over ours, of forward and backward, or of forward in evaluation.
Floor: our time over that of the least bytes at the rate of the copy of the same round.
In brackets the quartiles over the rounds, of which the median is given.
* beyond the last-level cache: forward may take {FORWARD_BOUND:g} floors there, backward {BACKWARD_BOUND:g}.
Every iteration has the same input: what fits the cache is found there."""


def print_table(result: Result) -> None:
    """Print a run for a person: machine and kernels, every measurement, and the rows last.

    Raises:
        MissingExtraError: rich is not installed.
    """
    console = terminal()
    console.print(str(result.machine))
    for backend in dict.fromkeys(one.backend for one in result.measured):
        console.print(f"kernels: {backend}")
    for peer, reason in result.absent.items():
        console.print(f"without {peer}: {reason}")
    peers = [peer for peer in PEERS if peer not in result.absent]
    summaries = summarize(result)
    if summaries:
        console.print(_measurements(result, peers))
    costs = family.costs(result)
    if costs:
        console.print(_members(result), _family(costs))
    if result.of(STEPS):
        console.print(_steps(result.of(STEPS)))
    if summaries:
        console.print(_rows(summaries, peers))
        for one in summaries:
            for miss in one.misses:
                console.print(f"{one.row.title} misses {miss}")
        console.print(f"\n{_NOTES}")


def terminal() -> Any:
    """A rich console that prints text as it is; into a file, which has no width, lines stay whole."""
    console = optional("rich.console", "lab").Console
    plain = {"markup": False, "highlight": False}
    found = console(**plain)
    return found if found.is_terminal else console(**plain, width=200, soft_wrap=True)


def columns(*names: str) -> Any:
    """A rich table with these columns, the first one to the left."""
    table = optional("rich.table", "lab").Table(box=optional("rich.box", "lab").SIMPLE)
    for i, name in enumerate(names):
        table.add_column(name, justify="right" if i else "left")
    return table


def _measurements(result: Result, peers: Sequence[str]) -> Any:
    table = columns("shape", "copy, ms", "ours, ms", *peers, "floor", "forward", "backward")
    for row in ROWS:
        measured = result.of(row.key)
        if measured:
            table.add_section()
            table.add_row(row.title)
        for one in measured:
            table.add_row(
                f"  {one}{' *' if one.beyond_cache else ''}",
                _milliseconds(one, COPY),
                _milliseconds(one, OURS),
                *(_spread(one.speedup(peer)) for peer in peers),
                *(_median(one.over_floor(phase)) for phase in ("total", "forward", "backward")),
            )
    return table


def _steps(measured: Sequence[Measured]) -> Any:
    table = columns("training step", "ours, ms", EAGER)
    for one in measured:
        table.add_row(str(one), _milliseconds(one, OURS), _spread(one.speedup()))
    return table


def _members(result: Result) -> Any:
    table = columns("shape", "batch norm, ms", "member, ms", "× batch norm")
    for member in family.MEMBERS:
        measured = result.of(member.key)
        if measured:
            table.add_section()
            table.add_row(member.title)
        for one in measured:
            times = [_milliseconds(one, contender) for contender in (family.BATCH, family.MEMBER)]
            table.add_row(f"  {one}", *times, _spread(family.ratio(one)))
    return table


_FAMILY = ("× batch norm", "geometric mean", "worst", "of", "verdict")


def _family(costs: Sequence[family.Cost]) -> Any:
    table = columns(*_FAMILY)
    for one in costs:
        table.add_row(*_cost_cells(one))
    return table


def family_markdown(result: Result) -> str:
    """The costs of the family in Markdown."""
    rows = [_FAMILY, ["---"] * len(_FAMILY), *map(_cost_cells, family.costs(result))]
    return "\n".join([f"{result.machine}.", "", *(f"| {' | '.join(row)} |" for row in rows), ""])


def _cost_cells(one: family.Cost) -> list[str]:
    bound = "—" if one.member.bound is None else f"{one.member.bound:g}"
    return [one.member.title, _ratio(one.mean), f"{one.worst:.2f}, {one.where}", bound, one.verdict]


def _rows(summaries: Sequence[Summary], peers: Sequence[str]) -> Any:
    others = [peer for peer in peers if peer != EAGER]
    table = columns("geometric mean", EAGER, "worst", *others, "floor", "forward *", "backward *", "verdict")
    for one in summaries:
        table.add_row(
            one.row.title,
            f"{one.speedups[EAGER]:.2f} of {one.row.geomean:g}",
            f"{one.worst.ratio:.2f} of {one.row.worst:g}",
            *(_ratio(one.speedups.get(peer)) for peer in others),
            _ratio(one.over_floor),
            _ratio(one.forward and one.forward.ratio),
            _ratio(one.backward and one.backward.ratio),
            "missed" if one.misses else "met",
        )
    return table


def _milliseconds(one: Measured, contender: str) -> str:
    return f"{1e3 * Spread.of(one.times[contender].total).median:.3g}"


def _ratio(ratio: float | None) -> str:
    return "—" if ratio is None else f"{ratio:.2f}"


def _median(spread: Spread | None) -> str:
    return _ratio(spread and spread.median)


def _spread(spread: Spread | None) -> str:
    """A median and its quartiles; a dash where there is none.

    >>> _spread(Spread(2.0, 1.9, 2.25))
    '2.00 (1.90–2.25)'
    """
    return "—" if spread is None else f"{spread.median:.2f} ({spread.low:.2f}–{spread.high:.2f})"
