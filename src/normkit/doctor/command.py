"""What `normkit doctor` prints."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from importlib.metadata import version

from rich.console import Console

from normkit.doctor.checks import by_code
from normkit.doctor.consultation import Result
from normkit.doctor.repair import IN_CODE, Treatment
from normkit.doctor.report import terminal
from normkit.doctor.report.document import document
from normkit.doctor.report.sarif import sarif
from normkit.errors import optional, printable


def explanation(code: str) -> str:
    """All there is to know of a code.

    Raises:
        InputError: there is none.
    """
    check = by_code(code)
    fixable = "; --fix repairs it" if check.fixable else ""
    return f"{check.code} ({check.severity}{fixable})\n\n{inspect.getdoc(check)}"


def _text(result: Result, target: str, console: Console) -> None:
    if result.treatment is not None:
        console.print(f"before: {terminal.summary(result.treatment.before.findings)}")
        for line in terminal.treatment_lines(result.treatment):
            console.print(line)
        for line in _kept(result, result.treatment):
            console.print(line)
        console.print("after:")
    for line in terminal.lines(result.diagnosis):
        console.print(line)


def _kept(result: Result, treatment: Treatment) -> Iterator[str]:
    """Where the repairs are, and which of them no file of weights holds."""
    if not treatment.repairs:
        return
    where = "not written; -o FILE keeps them" if result.written is None else printable(str(result.written))
    yield f"weights: {where}"
    in_code = sorted({code for repair in treatment.repairs for code in repair.codes} & set(IN_CODE))
    if in_code:
        yield f"to be set in the code, as weights do not hold it: what fixed {', '.join(in_code)}"


def _json(result: Result, target: str, console: Console) -> None:
    print(document(result.diagnosis, target, version("normkit"), result.treatment))


def _sarif(result: Result, target: str, console: Console) -> None:
    print(sarif(result.diagnosis, target, version("normkit")))


def _html(result: Result, target: str, console: Console) -> None:
    optional("jinja2", "lab")
    from normkit.doctor.report.page import page

    print(page(result.diagnosis, target, version("normkit"), result.treatment))


FORMATS: dict[str, Callable[[Result, str, Console], None]] = {
    "text": _text,
    "json": _json,
    "html": _html,
    "sarif": _sarif,
}
