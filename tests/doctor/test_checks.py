"""Every check is documented, and its documented example has the illness that it is about."""

from __future__ import annotations

import inspect
import re

import pytest
import torch
from torch import nn

import normkit as nk
from normkit.doctor.checks import CHECKS, by_code, chosen
from normkit.doctor.checks.check import Check
from normkit.errors import InputError

SECTIONS = ["What it does", "Why is this bad", "Example", "Remedy", "Fix safety"]
every_check = pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.code)


@every_check
def test_it_is_documented(check: type[Check]) -> None:
    text = inspect.getdoc(check) or ""
    assert re.findall(r"^## (.*)$", text, flags=re.MULTILINE) == SECTIONS
    assert "\n" not in check.remedy
    safety = text.partition("## Fix safety\n")[2]
    assert safety.startswith("Safe" if check.fixable else "Not fixed")


@every_check
def test_its_example_is_ill(check: type[Check]) -> None:
    blocks = re.findall(r"```python\n(.*?)```", inspect.getdoc(check) or "", flags=re.DOTALL)
    if not blocks:
        assert "DistributedDataParallel" in (inspect.getdoc(check) or "")  # tests/doctor/test_processes.py
        return
    torch.manual_seed(0)
    names: dict[str, object] = {"torch": torch, "nn": nn, "nk": nk}
    exec(blocks[0], names)
    found = nk.diagnose(*(names.get(name) for name in ("model", "batches", "loss", "optimizer")))
    assert check.code in {finding.code for finding in found.findings}
    assert all("\n" not in finding.message for finding in found.findings)


def test_codes_are_unique_and_in_order() -> None:
    codes = [check.code for check in CHECKS]
    assert codes == sorted(set(codes))


def test_choice_by_prefix() -> None:
    assert {check.code[:3] for check in chosen(["NK2"])} == {"NK2"}
    assert "NK202" not in {check.code for check in chosen([], ["NK202"])}
    with pytest.raises(InputError, match="unknown code 'NK9'"):
        chosen(["NK9"])
    with pytest.raises(InputError, match="leave no check"):
        chosen(["NK2"], ["NK"])
    with pytest.raises(InputError, match="unknown code 'NK20': choose from NK101"):
        by_code("NK20")
