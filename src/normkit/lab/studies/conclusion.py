"""From effects to a verdict, and to words."""

from __future__ import annotations

from collections.abc import Sequence

from normkit.lab.intervals import Estimate
from normkit.lab.studies.study import Effect, Verdict


def each_of(effects: Sequence[Effect]) -> Verdict:
    """Supported where every effect is, contradicted where any is."""
    verdicts = {effect.verdict for effect in effects}
    if "contradicted" in verdicts:
        return "contradicted"
    return "supported" if verdicts == {"supported"} else "undecided"


def agreed(effects: Sequence[Effect]) -> Verdict:
    """The verdict that all effects have, undecided where they differ: what holds here and not there is neither."""
    verdicts = {effect.verdict for effect in effects}
    return effects[0].verdict if len(verdicts) == 1 else "undecided"


def told(estimate: Estimate, digits: int = 2) -> str:
    """A mean and its interval, to some significant digits.

    >>> told(Estimate(0.5123, 0.4, 0.6111, 6))
    '0.51 (0.4 to 0.61)'
    """
    if estimate.low is None or estimate.high is None:
        return f"{estimate.mean:.{digits}g}"
    return f"{estimate.mean:.{digits}g} ({estimate.low:.{digits}g} to {estimate.high:.{digits}g})"
