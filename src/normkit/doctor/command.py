"""What `normkit doctor` prints."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from importlib.metadata import version
from io import StringIO
from pathlib import Path

from rich.console import Console

from normkit.doctor.checks import by_code
from normkit.doctor.consultation import Result
from normkit.doctor.diagnosis import SEVERITIES
from normkit.doctor.repair import Treatment
from normkit.doctor.report import terminal, words
from normkit.doctor.report.document import document
from normkit.doctor.report.sarif import sarif
from normkit.errors import InputError, optional, printable, unknown


def explanation(code: str) -> str:
    """All there is to know of a code.

    Raises:
        InputError: there is none.
    """
    check = by_code(code)
    fixable = "; --fix repairs it" if check.fixable else ""
    return f"{check.code} ({check.severities()}{fixable})\n\n{inspect.getdoc(check)}"


def show(format: str, result: Result, target: str, console: Console) -> None:
    """Write a diagnosis to where the console writes."""
    FORMATS[format](result, target, console)


def fails(result: Result, least: str) -> bool:
    """Whether there is a finding of this severity or a worse one.

    Raises:
        InputError: there is no such severity.
    """
    worst = SEVERITIES[: rank(least) + 1]
    return any(finding.severity in worst for finding in result.diagnosis.findings)


def rank(severity: str) -> int:
    """0 for the worst.

    Raises:
        InputError: there is no such severity.
    """
    if severity not in SEVERITIES:
        raise unknown("severity", severity, SEVERITIES)
    return SEVERITIES.index(severity)


def format_of(report: Path) -> str:
    """The format of a file by its suffix.

    Raises:
        InputError: another suffix.
    """
    if report.suffix not in _BY_SUFFIX:
        raise InputError(f"a report ends in {', '.join(_BY_SUFFIX)}, got {report}")
    return _BY_SUFFIX[report.suffix]


def write(report: Path, result: Result, target: str) -> None:
    """Write a diagnosis to a file, all of it at once, in the format of its suffix."""
    text = StringIO()
    show(
        format_of(report),
        result,
        target,
        Console(file=text, width=120, soft_wrap=True, markup=False, highlight=False),
    )
    report.write_text(text.getvalue(), encoding="utf-8")


def _text(result: Result, target: str, console: Console) -> None:
    if result.treatment is not None:
        console.print(f"before: {words.summary(result.treatment.before.findings)}")
        for line in terminal.treatment_lines(result.treatment):
            console.print(line)
        for line in _kept(result, result.treatment):
            console.print(line)
        console.print("after:")
    for line in terminal.lines(result.diagnosis, result.hints):
        console.print(line)


def _kept(result: Result, treatment: Treatment) -> Iterator[str]:
    """Where the repairs are, and which of them no file of weights holds."""
    if not treatment.repairs:
        return
    where = "not written; -o FILE keeps them" if result.written is None else printable(str(result.written))
    yield f"weights: {where}"
    if result.dropped:
        yield f"not in it, for it holds tensors alone: {printable(', '.join(result.dropped))}"
    in_code = [
        f"{repair.what} ({words.layers(repair.findings)})"
        for repair in words.repairs(treatment)
        if repair.in_code
    ]
    if in_code:
        yield f"to be set in the code, as weights do not hold it: {printable('; '.join(in_code))}"


def _json(result: Result, target: str, console: Console) -> None:
    console.file.write(document(result.diagnosis, target, version("normkit"), result.treatment) + "\n")


def _sarif(result: Result, target: str, console: Console) -> None:
    console.file.write(sarif(result.diagnosis, target, version("normkit")) + "\n")


def _html(result: Result, target: str, console: Console) -> None:
    optional("jinja2", "lab")
    from normkit.doctor.report.page import page

    console.file.write(
        page(result.diagnosis, target, version("normkit"), result.treatment, result.hints) + "\n"
    )


FORMATS: dict[str, Callable[[Result, str, Console], None]] = {
    "text": _text,
    "json": _json,
    "html": _html,
    "sarif": _sarif,
}
_BY_SUFFIX = {".html": "html", ".json": "json", ".sarif": "sarif", ".txt": "text"}
