"""The page of studies: a table of claims, then each study. It opens offline, in light and in dark."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from markupsafe import Markup

from normkit import page
from normkit.lab import drawing, palette
from normkit.lab.studies.study import Effect
from normkit.lab.sweep import text
from normkit.lab.sweep.sweep import VERSIONS, Plan, Report

_TEMPLATE = Path(__file__).parent.parent / "templates" / "studies.html.j2"


def command(names: Sequence[str], plan: Plan, out: Path) -> str:
    """The command line that takes the same measurements."""
    words = ["normkit", "study", *names, *(["--quick"] if plan.scale == "quick" else [])]
    if plan.subject.data != "digits":
        words += ["--data", plan.subject.data]
    if plan.subject.model is not None:
        words += ["--model", plan.subject.model]
    return shlex.join([*words, "--out", str(out)])


def render(
    reports: Sequence[Report], plan: Plan, out: Path, names: Sequence[str], left: Sequence[str] = ()
) -> str:
    """The page as text; the same reports give the same text. Every value is escaped but our own SVG.

    Args:
        reports: of the studies, in the order of the page.
        plan: what was measured.
        out: the folder of the store, for the command lines.
        names: of studies, as the user gave them.
        left: why studies were left out, a line each.
    """
    one = reports[0].study if len(reports) == 1 else None
    return page.render(
        _TEMPLATE,
        colors=Markup(palette.variables()),
        title=one.question if one else "What the articles claim, and what was measured",
        summary=text.summary(reports),
        left=left,
        studies=[_study(report, plan, out) for report in reports],
        settings=[
            ("data", f"{plan.subject.data}, where a study does not make its own"),
            ("networks", plan.subject.model or "those of each study’s design"),
            ("scale", plan.scale),
            ("versions", VERSIONS),
        ],
        command=command(names, plan, out),
    )


def _study(report: Report, plan: Plan, out: Path) -> dict[str, object]:
    study, finding = report.study, report.finding
    trials = len(report.results.measured)
    drawn = report.draw and drawing.svg(report.draw, study.name)
    return {
        "name": study.name,
        "claim": study.claim,
        "statement": study.statement,
        "question": study.question,
        "design": study.design,
        "rule": study.rule,
        "source": study.source,
        "literature": study.literature,
        "verdict": text.verdict(report),
        "effect": text.telling_effect(report),
        "sentence": finding.sentence if finding else text.telling_effect(report),
        "problems": text.problems(report),
        "figure": Markup(drawn) if drawn else "",
        "effects": [_effect(effect) for effect in finding.effects] if finding else [],
        "took": f"{report.seconds:,.0f} seconds for {trials:,} trials, on one core each",
        "command": command([study.name], plan, out),
    }


def _effect(effect: Effect) -> dict[str, object]:
    return {
        "label": effect.label,
        "mean": text.mean(effect),
        "interval": text.interval(effect),
        "count": effect.estimate.count,
        "claimed": f"{effect.claimed} {effect.no_effect:g}",
        "verdict": effect.verdict,
    }
