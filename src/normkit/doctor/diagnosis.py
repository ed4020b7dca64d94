"""What the doctor found: findings, and the diagnosis that holds them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from normkit.doctor.readings import Readings

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")


@dataclass(frozen=True)
class Finding:
    """One illness at one place.

    Attributes:
        code: of the check, `NK202`.
        severity: "error": what the model computes is not what it was trained for, or cannot be; "warning": it
            will cost accuracy or stability; "note": it costs something, or is worth knowing.
        module: name of the layer in the model; empty for the model itself.
        message: one line, with the numbers.
        evidence: these numbers by name.
        remedy: what to do, one line.
        fixable: whether `--fix` can do it.
    """

    code: str
    severity: Severity
    module: str
    message: str
    evidence: Mapping[str, float]
    remedy: str
    fixable: bool


@dataclass(frozen=True)
class Diagnosis:
    """All findings, the worst first, and what they were read from."""

    findings: tuple[Finding, ...]
    readings: Readings

    def __bool__(self) -> bool:
        """Whether there is a finding."""
        return bool(self.findings)

    def __repr__(self) -> str:
        """A line for each finding."""
        if not self.findings:
            return "Diagnosis: nothing found"
        lines = [f"{f.code} {f.severity:7} {f.module or 'the model'}: {f.message}" for f in self.findings]
        return "\n".join([f"Diagnosis: {len(lines)} found", *lines])
