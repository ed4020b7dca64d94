"""A diagnosis as one HTML file that opens offline; every name and value in it is escaped."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from normkit.doctor.checks import by_code
from normkit.doctor.diagnosis import SEVERITIES, Diagnosis, Finding
from normkit.doctor.readings import Norm
from normkit.doctor.repair import Treatment
from normkit.doctor.report import words
from normkit.page import render

_TEMPLATE = Path(__file__).parent / "templates" / "doctor.html.j2"
_REACH = 4.0  # deviations on either side of a strip
_TICKS = (-4, -2, 0, 2, 4)
_LEFT, _WIDTH, _RIGHT = 64.0, 320.0, 14.0  # pixels: of the words, of the scale, of what sticks out
_ROW = 18
_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
_NORMAL = (-1.645, -0.674, 0.0, 0.674, 1.645)


@dataclass(frozen=True)
class Row:
    """A distribution as a line: its quantiles as pixels, and whether they reach beyond the scale."""

    label: str
    color: str
    marks: tuple[float, ...]
    y: int
    below: bool = False
    above: bool = False


@dataclass(frozen=True)
class Strip:
    """A norm's input, normalized by running statistics: what these predict, and what was seen; before and after."""

    module: str
    type: str
    worst: str  # severity of its findings
    rows: tuple[Row, ...]
    effects: tuple[str, ...]
    gradient: str

    @property
    def height(self) -> int:
        """In pixels."""
        return _ROW * len(self.rows) + 4


def page(
    diagnosis: Diagnosis,
    target: str,
    version: str,
    treatment: Treatment | None = None,
    hints: Iterable[str] = (),
) -> str:
    """The page as text; the same diagnosis gives the same text."""
    before = diagnosis if treatment is None else treatment.before
    states = (before,) if treatment is None else (before, treatment.after)
    return render(
        _TEMPLATE,
        target=target,
        version=version,
        summaries=[words.summary(state.findings) for state in states],
        findings=_findings(before, None if treatment is None else treatment.after),
        strips=[_strip(norm, states) for norm in before.readings.norms if _drawn(norm)],
        run=before.readings.run,
        treatment=treatment,
        hints=list(hints),
        words=words,
        worse=words.WORSE[0].upper() + words.WORSE[1:] if treatment is not None and treatment.worse else "",
        axis=[(_pixel(tick), f"{tick:+d}".replace("-", "−") if tick else "0") for tick in _TICKS],
        width=_LEFT + _WIDTH + _RIGHT,
        ends=(_LEFT, _LEFT + _WIDTH),
    )


def _findings(before: Diagnosis, after: Diagnosis | None) -> list[tuple[Finding, str, str]]:
    """Each with the title of its code and what became of it: nothing, gone, still there, or new."""
    if after is None:
        return [(finding, by_code(finding.code).title(), "") for finding in before.findings]
    known, left = ({(f.code, f.module) for f in state.findings} for state in (before, after))
    rows = [(f, "still there" if (f.code, f.module) in left else "gone") for f in before.findings]
    rows += [(f, "new") for f in after.findings if (f.code, f.module) not in known]
    return [(finding, by_code(finding.code).title(), state) for finding, state in rows]


def _drawn(norm: Norm) -> bool:
    return norm.running is not None and norm.traffic is not None and norm.traffic.predicted.total > 0


def _strip(norm: Norm, states: tuple[Diagnosis, ...]) -> Strip:
    rows = [Row("predicted", "quiet", tuple(map(_pixel, _NORMAL)), _ROW // 2 + 2)]
    effects: list[str] = []
    worst = "none"
    for label, state in zip(("actual",) if len(states) == 1 else ("before", "after"), states, strict=True):
        severities = [finding.severity for finding in state.findings if finding.module == norm.module]
        color = min(severities, key=SEVERITIES.index, default="none")
        worst = color if label != "after" else worst
        seen = state.readings.norm(norm.module)
        if seen is not None and seen.traffic is not None and _drawn(seen):
            found = [seen.traffic.predicted.quantile(q) for q in _QUANTILES]
            y = _ROW // 2 + 2 + _ROW * len(rows)
            rows.append(
                Row(label, color, tuple(map(_pixel, found)), y, found[0] < -_REACH, found[-1] > _REACH)
            )
        effects.append(_effect(seen))
    traffic = norm.traffic
    gradient = "" if traffic is None or traffic.gradient is None else f"{traffic.gradient:.2g}"
    return Strip(norm.module or "the model", norm.type, worst, tuple(rows), tuple(effects), gradient)


def _effect(norm: Norm | None) -> str:
    """In deviations of the output."""
    return "–" if norm is None or norm.effect is None else f"{norm.effect:.2g}"


def _pixel(deviations: float) -> float:
    clipped = min(_REACH, max(-_REACH, deviations))
    return round(_LEFT + (clipped + _REACH) / (2 * _REACH) * _WIDTH, 1)
