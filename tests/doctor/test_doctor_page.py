"""The page of a diagnosis in a real browser."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import normkit as nk
from browser import browse, contrast, needs_browser, of_hex, screenshot
from normkit.doctor.diagnosis import Diagnosis
from normkit.doctor.report.page import page

GROUND = {1: "#ffffff", 0: "#14171c"}  # in light, in dark


@pytest.fixture(scope="module")
def diagnosis() -> Diagnosis:
    """Of a network whose statistics are of other data, under names that would be markup."""
    generator = torch.Generator().manual_seed(0)
    names = ["<b>first</b>", "norm", "relu", "second", "norm & last"]
    layers = [
        nn.Linear(4, 8),
        nn.BatchNorm1d(8),
        nn.ReLU(),
        nn.Linear(8, 8),
        nn.BatchNorm1d(8, momentum=0.99),
    ]
    model = nn.Sequential()
    for name, layer in zip(names, layers, strict=True):
        model.add_module(name, layer)
    for parameter in model.parameters():
        nn.init.normal_(parameter, generator=generator)
    model(torch.randn(64, 4, generator=generator))
    return nk.diagnose(model, [3 + torch.randn(64, 4, generator=generator) for _ in range(4)])


@needs_browser
def test_the_browser_finds_every_finding_and_strip(diagnosis: Diagnosis, tmp_path: Path) -> None:
    path = tmp_path / "doctor.html"
    path.write_text(page(diagnosis, "net.py:<i>model</i>", "0"), encoding="utf-8")
    dom = browse(path, tmp_path / "profile", "--dump-dom")
    assert len(diagnosis.findings) >= 3
    findings = dom.split('id="findings"')[1].split("</table>")[0]
    assert findings.count("<tr>") == len(diagnosis.findings) + 1
    assert all(finding.code in findings for finding in diagnosis.findings)
    assert dom.count('<svg class="strip"') == 2  # a strip for each norm
    assert "<i>" not in dom
    assert "<b>" not in dom


@needs_browser
@pytest.mark.parametrize("preferred", [1, 0], ids=["light", "dark"])
def test_the_page_is_legible_as_rendered(diagnosis: Diagnosis, tmp_path: Path, preferred: int) -> None:
    """Each strip of the page that shows anything has text that stands out from its ground."""
    path = tmp_path / "doctor.html"
    path.write_text(page(diagnosis, "net.py:model", "0"), encoding="utf-8")
    pixels = screenshot(path, tmp_path, preferred, height=1200)
    assert pixels[0, 0] == pytest.approx(of_hex(GROUND[preferred]), abs=1e-6)
    strips = contrast(pixels, pixels[0, 0]).reshape(12, -1)
    shown = strips.max(axis=1) > 1.5
    assert shown.sum() >= 6
    assert (strips.max(axis=1)[shown] >= 4.5).all()
    assert np.isfinite(strips).all()
