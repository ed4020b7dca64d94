"""A diagnosis as text: findings of one code together, under what it is about."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby

from rich.text import Text

from normkit.doctor.checks import by_code
from normkit.doctor.diagnosis import Diagnosis, Finding
from normkit.doctor.repair import Treatment
from normkit.doctor.report import words
from normkit.errors import printable

_STYLES = {"error": "bold red", "warning": "yellow", "note": "cyan"}


def lines(diagnosis: Diagnosis, hints: Iterable[str] = ()) -> Iterator[Text]:
    """The findings, the worst first, how many there are, and what could not be seen."""
    for (severity, code), group in groupby(diagnosis.findings, key=lambda f: (f.severity, f.code)):
        findings = list(group)
        head = Text(f"{severity} ", style=_STYLES[severity])
        yield head.append(f"{code} ", style="bold").append(f"{by_code(code).title()}", style="bold")
        for finding in findings[: words.SHOWN]:
            yield Text(f"  {printable(finding.module) or 'the model'}: {printable(finding.message)}")
        if len(findings) > words.SHOWN:
            yield Text(f"  and {len(findings) - words.SHOWN} more layers")
        yield Text(
            f"  remedy: {findings[0].remedy}" + (" [--fix]" if findings[0].fixable else ""), style="dim"
        )
    yield Text(words.summary(diagnosis.findings))
    for hint in hints:
        yield Text(printable(hint), style="dim")


def treatment_lines(treatment: Treatment) -> Iterator[Text]:
    """What was changed, against what, and the loss before and after."""
    done = words.repairs(treatment)
    for repair in done:
        yield Text(f"fixed: {printable(repair.what)}", style="green")
        yield from _illnesses(repair.findings)
    if not done:
        yield Text("nothing that --fix can repair here")
    for reason, findings in words.left(treatment).items():
        yield Text(f"left: {reason}", style="yellow")
        yield from _illnesses(findings)
    if treatment.loss_before is not None and treatment.loss_after is not None:
        yield Text(
            f"loss in evaluation mode: {treatment.loss_before:.6g} before, {treatment.loss_after:.6g} after"
        )
    if treatment.worse:
        yield Text(words.WORSE, style="bold yellow")


def _illnesses(findings: Sequence[Finding]) -> Iterator[Text]:
    for line in words.illnesses(findings):
        yield Text(f"  {printable(line)}")
