"""From readings to findings: one small class for each illness, and the choice among them by code."""

from __future__ import annotations

from collections.abc import Iterable

from normkit.doctor.checks import (
    batches,
    deployment,
    dynamics,
    optimisation,
    sharing,
    statistics,
    structure,
    tracking,
)
from normkit.doctor.checks.check import Check
from normkit.doctor.diagnosis import SEVERITIES, Diagnosis
from normkit.doctor.readings import Readings
from normkit.errors import InputError, unknown

CHECKS: tuple[type[Check], ...] = (
    *structure.CHECKS,
    *sharing.CHECKS,
    *statistics.CHECKS,
    *tracking.CHECKS,
    *batches.CHECKS,
    *optimisation.CHECKS,
    *dynamics.CHECKS,
    *deployment.CHECKS,
)


def chosen(select: Iterable[str] = (), ignore: Iterable[str] = ()) -> tuple[type[Check], ...]:
    """The checks whose codes begin with a prefix in select (all, where that is empty) and with none in ignore.

    Raises:
        InputError: a prefix that no code begins with; nothing is left.

    >>> [check.code for check in chosen(["NK7"], ignore=["NK702"])]
    ['NK701', 'NK703']
    """
    select, ignore = list(select), list(ignore)
    for prefix in (*select, *ignore):
        if not any(check.code.startswith(prefix) for check in CHECKS):
            raise unknown("code", prefix, [check.code for check in CHECKS])
    left = tuple(
        check
        for check in CHECKS
        if check.code.startswith(tuple(select) or "") and not check.code.startswith(tuple(ignore) or ("-",))
    )
    if not left:
        raise InputError("--select and --ignore leave no check")
    return left


def by_code(code: str) -> type[Check]:
    """The check of a code.

    Raises:
        InputError: there is none.
    """
    for check in CHECKS:
        if check.code == code:
            return check
    raise unknown("code", code, [check.code for check in CHECKS])


def judge(seen: Readings, checks: Iterable[type[Check]] = CHECKS) -> Diagnosis:
    """All findings, the worst first, those of one severity by code."""
    found = [finding for check in checks for finding in check().check(seen)]
    found.sort(key=lambda finding: (SEVERITIES.index(finding.severity), finding.code))
    return Diagnosis(tuple(found), seen)
