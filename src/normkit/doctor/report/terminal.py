"""A diagnosis as text: findings of one code together, under what it is about."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

from rich.text import Text

from normkit.doctor.checks import by_code
from normkit.doctor.diagnosis import SEVERITIES, Diagnosis, Finding
from normkit.doctor.repair import Treatment
from normkit.errors import printable

_STYLES = {"error": "bold red", "warning": "yellow", "note": "cyan"}
WORSE = (
    "the loss rose: the statistics before suited these weights and data better. Is --data what the model was trained "
    "on, drawn at random, as preprocessed there? If so, keep the weights that you had"
)
_SHOWN = 8  # layers of a code


def lines(diagnosis: Diagnosis) -> Iterator[Text]:
    """The findings, the worst first, and how many there are."""
    for (severity, code), group in groupby(diagnosis.findings, key=lambda f: (f.severity, f.code)):
        findings = list(group)
        head = Text(f"{severity} ", style=_STYLES[severity])
        yield head.append(f"{code} ", style="bold").append(f"{by_code(code).title()}", style="bold")
        for finding in findings[:_SHOWN]:
            yield Text(f"  {printable(finding.module) or 'the model'}: {printable(finding.message)}")
        if len(findings) > _SHOWN:
            yield Text(f"  and {len(findings) - _SHOWN} more layers")
        yield Text(
            f"  remedy: {findings[0].remedy}" + (" [--fix]" if findings[0].fixable else ""), style="dim"
        )
    yield Text(summary(diagnosis.findings))
    if diagnosis.readings.run is None:
        yield Text(
            "without data: whether statistics fit, and what batches show, was not looked at", style="dim"
        )


def summary(findings: Sequence[Finding]) -> str:
    """How many findings there are of each severity.

    >>> summary([])
    'nothing found'
    """
    counts = {severity: sum(f.severity == severity for f in findings) for severity in SEVERITIES}
    words = [f"{n} {severity}{'s' if n > 1 else ''}" for severity, n in counts.items() if n]
    return f"found: {', '.join(words)}" if words else "nothing found"


def treatment_lines(treatment: Treatment) -> Iterator[Text]:
    """What was changed, and the loss before and after."""
    for repair in treatment.repairs:
        yield Text(f"fixed {', '.join(repair.codes)}: {printable(repair.what)}", style="green")
    if not treatment.repairs:
        yield Text("nothing that --fix can repair here")
    for code, reason in treatment.left.items():
        yield Text(f"left {code}: {reason}", style="yellow")
    if treatment.loss_before is not None and treatment.loss_after is not None:
        yield Text(
            f"loss in evaluation mode: {treatment.loss_before:.6g} before, {treatment.loss_after:.6g} after"
        )
    if treatment.worse:
        yield Text(WORSE, style="bold yellow")
