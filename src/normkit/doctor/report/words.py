"""What the text and the page say alike."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from normkit.doctor.checks import by_code
from normkit.doctor.diagnosis import SEVERITIES, Finding
from normkit.doctor.repair import Repair, Treatment

WORSE = (
    "the loss rose: the statistics before suited these weights and data better. Is --data what the model was trained "
    "on, drawn at random, as preprocessed there? If so, keep the weights that you had"
)
SHOWN = 8  # layers of a code


def summary(findings: Sequence[Finding]) -> str:
    """How many findings there are of each severity.

    >>> summary([])
    'nothing found'
    """
    counts = {severity: sum(f.severity == severity for f in findings) for severity in SEVERITIES}
    words = [f"{n} {severity}{'s' if n > 1 else ''}" for severity, n in counts.items() if n]
    return f"found: {', '.join(words)}" if words else "nothing found"


def layers(findings: Sequence[Finding]) -> str:
    """The names of the first few, and how many more there are."""
    names = list(dict.fromkeys(finding.module or "the model" for finding in findings))
    more = [f"{len(names) - SHOWN} more"] if len(names) > SHOWN else []
    return ", ".join(names[:SHOWN]) + "".join(f" and {words}" for words in more)


def illnesses(findings: Sequence[Finding]) -> Iterator[str]:
    """Each code once: what it is, and the layers that have it."""
    for code in sorted({finding.code for finding in findings}):
        of_code = [finding for finding in findings if finding.code == code]
        yield f"{code} {by_code(code).title()}: {layers(of_code)}"


def repairs(treatment: Treatment) -> list[Repair]:
    """What was done; of what was done alike to several layers, one."""
    done: dict[tuple[str, bool], tuple[Finding, ...]] = {}
    for repair in treatment.repairs:
        key = repair.what, repair.in_code
        done[key] = done.get(key, ()) + repair.findings
    return [Repair(what, findings, in_code) for (what, in_code), findings in done.items()]


def left(treatment: Treatment) -> dict[str, list[Finding]]:
    """What was not repaired, by the reason."""
    reasons: dict[str, list[Finding]] = {}
    for code, reason in treatment.left.items():
        reasons.setdefault(reason, []).extend(f for f in treatment.before.findings if f.code == code)
    return reasons
