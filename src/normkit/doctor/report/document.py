"""A diagnosis as JSON; docs/doctor/diagnosis.schema.json says what is in it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from normkit.doctor.diagnosis import Diagnosis, Finding
from normkit.doctor.readings import Norm
from normkit.doctor.repair import Treatment

SCHEMA_VERSION = 2  # goes up when a field changes its meaning or leaves; new ones may come at any time


def document(diagnosis: Diagnosis, target: str, version: str, treatment: Treatment | None = None) -> str:
    """The findings, what was seen of each norm, and what was repaired."""
    content: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "normkit": version,
        "target": target,
        "findings": [entry(finding) for finding in diagnosis.findings],
        "norms": [_norm(norm) for norm in diagnosis.readings.norms],
        "fix": None,
    }
    if treatment is not None:
        content["fix"] = {
            "repairs": [
                {"codes": list(repair.codes), "modules": _modules(repair.findings), "what": repair.what}
                for repair in treatment.repairs
            ],
            "left": dict(treatment.left),
            "findings_before": [entry(finding) for finding in treatment.before.findings],
            "loss_before": number(treatment.loss_before),
            "loss_after": number(treatment.loss_after),
        }
    return json.dumps(content, indent=2, allow_nan=False)


def _modules(findings: Sequence[Finding]) -> list[str]:
    return list(dict.fromkeys(finding.module for finding in findings))


def _norm(norm: Norm) -> dict[str, Any]:
    return {
        "module": norm.module,
        "type": norm.type,
        "kind": norm.kind,
        "effect": number(norm.effect),
        "gradient": number(norm.traffic.gradient if norm.traffic else None),
    }


def entry(finding: Finding) -> dict[str, Any]:
    """A finding as JSON has it."""
    return {
        "code": finding.code,
        "severity": finding.severity,
        "module": finding.module,
        "message": finding.message,
        "evidence": evidence(finding.evidence),
        "remedy": finding.remedy,
        "fixable": finding.fixable,
    }


def evidence(values: Mapping[str, float]) -> dict[str, float | None]:
    """Numbers by name."""
    return {name: number(value) for name, value in values.items()}


def number(value: float | None) -> float | None:
    """What is not finite is null: JSON has no other word for it."""
    return value if value is not None and math.isfinite(value) else None
