"""A diagnosis as SARIF 2.1.0, which code scanning of repositories and editors read."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any
from urllib.parse import quote

from normkit.doctor.checks import CHECKS
from normkit.doctor.checks.check import Check
from normkit.doctor.diagnosis import Diagnosis, Finding
from normkit.doctor.report.document import evidence

_SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"


def sarif(diagnosis: Diagnosis, target: str, version: str) -> str:
    """One run; every check is a rule, every finding a result at a module, in the file of the target if it has one."""
    driver = {
        "name": "normkit doctor",
        "semanticVersion": version,
        "rules": [_rule(check) for check in CHECKS],
    }
    run = {
        "tool": {"driver": driver},
        "results": [_result(finding, target) for finding in diagnosis.findings],
    }
    return json.dumps({"$schema": _SCHEMA, "version": "2.1.0", "runs": [run]}, indent=2, allow_nan=False)


def _rule(check: type[Check]) -> dict[str, Any]:
    text = inspect.getdoc(check) or ""
    return {
        "id": check.code,
        "name": check.__name__,
        "shortDescription": {"text": check.title()},
        "help": {"text": check.remedy, "markdown": text},
        "defaultConfiguration": {"level": check.severity},
    }


def _result(finding: Finding, target: str) -> dict[str, Any]:
    file, _, name = target.rpartition(":")
    place: dict[str, Any] = {
        "logicalLocations": [
            {"name": finding.module.rpartition(".")[2] or name or target, "kind": "module",
             "fullyQualifiedName": f"{name or target}.{finding.module}".rstrip(".")}
        ]
    }  # fmt: skip
    if file.endswith(".py"):
        place["physicalLocation"] = {
            "artifactLocation": {"uri": _uri(Path(file))},
            "region": {"startLine": 1},
        }
    return {
        "ruleId": finding.code,
        "ruleIndex": [check.code for check in CHECKS].index(finding.code),
        "level": finding.severity,
        "message": {"text": f"{finding.module or 'the model'}: {finding.message}. {finding.remedy}"},
        "locations": [place],
        "properties": {"evidence": evidence(finding.evidence), "fixable": finding.fixable},
    }


def _uri(file: Path) -> str:
    """Relative to where the command ran, as viewers want it, or absolute as it was given."""
    return file.as_uri() if file.is_absolute() else quote(file.as_posix())
