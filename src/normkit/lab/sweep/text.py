"""Effects and verdicts as text: the same words in the terminal, on the page and in files."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from rich.box import SIMPLE
from rich.table import Table

from normkit.lab.studies.study import Effect
from normkit.lab.sweep.sweep import Report
from normkit.lab.table import number, span

UNMEASURED = "unmeasured"  # in the place of a verdict where trials failed


def verdict(report: Report) -> str:
    """The study's verdict, or that it has none."""
    return report.finding.verdict if report.finding else UNMEASURED


def mean(effect: Effect) -> str:
    """The mean with its unit, to the digits that its interval leaves."""
    return number(effect.estimate.mean, _digits(effect), sign=effect.no_effect == 0) + _unit(effect)


def interval(effect: Effect) -> str:
    """The interval as `low to high`, without its unit; a dash where there is none."""
    return span(effect.estimate, _digits(effect), sign=effect.no_effect == 0) or "—"


def with_interval(effect: Effect) -> str:
    """Both, after what is compared."""
    bounds = interval(effect)
    return f"{effect.label}: {mean(effect)}" + ("" if bounds == "—" else f" ({bounds})")


def telling_effect(report: Report) -> str:
    """For the table of claims: of contrasts that decide, the first that says what the verdict says, else the first."""
    if report.finding is None:
        return (
            f"{len(report.problems)} of {len(report.problems) + len(report.results.measured)} trials failed"
        )
    effects, of_study = report.finding.effects, report.finding.verdict
    telling = next(
        (effect for effect in effects[: report.finding.counted] if effect.verdict == of_study), None
    )
    if telling is None:
        return with_interval(effects[0]) if effects else report.finding.sentence
    return with_interval(telling)


def summary(reports: Sequence[Report]) -> str:
    """How many studies came out how.

    >>> summary([])
    'Nothing was measured.'
    """
    counts = Counter(map(verdict, reports))
    if not counts:
        return "Nothing was measured."
    words = ("supported", "contradicted", "undecided", UNMEASURED)
    parts = [f"{counts[word]} {word}" for word in words if counts[word]]
    claims = len({report.study.claim for report in reports})
    studies = f"Of {len(reports)} stud{'ies' if len(reports) > 1 else 'y'}"
    return f"{studies} of {claims} claim{'s' if claims > 1 else ''}: {', '.join(parts)}."


def problems(report: Report, most: int = 3) -> list[str]:
    """A line for each trial that failed, the first of many."""
    lines = [f"{outcome.task}: {outcome.problem}" for outcome in report.problems[:most]]
    more = len(report.problems) - most
    return [*lines, f"{report.study.name}: {more} more trials failed"] if more > 0 else lines


def terminal(reports: Sequence[Report]) -> Table:
    """The table of claims for the terminal."""
    table = Table(box=SIMPLE, padding=(0, 1, 0, 0), caption=summary(reports), caption_justify="left")
    for name in ("claim", "study", "verdict", "effect"):
        table.add_column(name)
    for report in reports:
        table.add_row(report.study.claim, report.study.name, verdict(report), telling_effect(report))
    return table


def _digits(effect: Effect) -> int:
    """Decimals that show two digits of the interval's half width, else three of the mean."""
    half = effect.estimate.half_width or abs(effect.estimate.mean) / 10
    return min(6, max(0, 1 - math.floor(math.log10(half)))) if half else 0


def _unit(effect: Effect) -> str:
    if not effect.unit:
        return ""
    return "×" if effect.unit == "x" else f" {effect.unit}"
