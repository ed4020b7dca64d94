"""A diagnosis as one HTML file that opens offline; every name and value in it is escaped."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from normkit.doctor.checks import by_code
from normkit.doctor.diagnosis import SEVERITIES, Diagnosis
from normkit.doctor.readings import Norm
from normkit.doctor.repair import Treatment
from normkit.doctor.report.terminal import summary
from normkit.page import render

_TEMPLATE = Path(__file__).parent / "templates" / "doctor.html.j2"
_REACH = 4.0  # deviations on either side of a strip
_WIDTH = 320.0
_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
_NORMAL = (-1.645, -0.674, 0.0, 0.674, 1.645)


@dataclass(frozen=True)
class Strip:
    """A norm's input, normalized by running statistics: quantiles that they predict, and that were seen, as pixels."""

    module: str
    type: str
    worst: str  # severity of its findings
    predicted: tuple[float, ...]
    actual: tuple[float, ...]
    effect: float | None


def page(diagnosis: Diagnosis, target: str, version: str, treatment: Treatment | None = None) -> str:
    """The page as text; the same diagnosis gives the same text."""
    return render(
        _TEMPLATE,
        target=target,
        version=version,
        summary=summary(diagnosis.findings),
        findings=[(finding, by_code(finding.code).title()) for finding in diagnosis.findings],
        strips=[_strip(norm, diagnosis) for norm in diagnosis.readings.norms if _drawn(norm)],
        run=diagnosis.readings.run,
        treatment=treatment,
        width=_WIDTH,
        middle=_WIDTH / 2,
    )


def _drawn(norm: Norm) -> bool:
    return norm.running is not None and norm.traffic is not None and norm.traffic.predicted.total > 0


def _strip(norm: Norm, diagnosis: Diagnosis) -> Strip:
    assert norm.traffic is not None
    severities = [finding.severity for finding in diagnosis.findings if finding.module == norm.module]
    return Strip(
        module=norm.module or "the model",
        type=norm.type,
        worst=min(severities, key=SEVERITIES.index, default="none"),
        predicted=tuple(map(_pixel, _NORMAL)),
        actual=tuple(_pixel(norm.traffic.predicted.quantile(q)) for q in _QUANTILES),
        effect=norm.effect,
    )


def _pixel(deviations: float) -> float:
    clipped = min(_REACH, max(-_REACH, deviations))
    return round((clipped + _REACH) / (2 * _REACH) * _WIDTH, 1)
