"""Writes this folder from the store of a run of all studies, which it does not measure:

    python docs/studies/write.py runs/study            # README.md, and a figure for each study
    python docs/studies/write.py runs/study --table    # prints the table that the README of the project has

With --quick the store is taken as that of `normkit study all --quick`. The same store gives the same files.
"""

from __future__ import annotations

import argparse
import re
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path

from normkit import page
from normkit.errors import InputError
from normkit.lab import drawing
from normkit.lab.studies import NAMES, find
from normkit.lab.studies.study import Effect, Study
from normkit.lab.sweep import text
from normkit.lab.sweep.sweep import VERSIONS, Plan, Report, judged, plan
from normkit.lab.sweep.trials import FILE, Trials

FOLDER = Path(__file__).parent
LARGEST = 100_000  # bytes of a figure

INTRODUCTION = """# What the articles claim, and what was measured

{summary} {size} Again:

```sh
normkit study all{quick}
python docs/studies/write.py runs/study{quick}  # writes this page and its figures
```

The claims are those of five public articles on batch normalization, numbered 000 to 004, and of the papers named.
An effect is that of the first contrast that says what the verdict says, of those that decide. Its interval is a
studentized bootstrap interval over paired seeds, of 95% unless the rule says otherwise; it is about other seeds, not
about other data or other networks. A verdict follows from a rule that stood in the study's file before its first
trial: supported or contradicted only where the interval leaves out no effect, else undecided. Each study answers for
itself: of twenty claims without any effect, one may be expected to look decided.
"""


def reports_of(store: Path, studies: Sequence[Study], *, quick: bool = False) -> tuple[list[Report], Plan]:
    """What a store says of studies, every trial of which it has.

    Raises:
        InputError: no store there, or one that lacks trials, of this version of normkit and torch.
    """
    if not (store / FILE).is_file():
        raise InputError(f"{store} must be the folder that `normkit study --out` wrote, and has no {FILE}")
    the_plan = plan(studies, "quick" if quick else "full")
    with Trials(store) as trials:
        measured = trials.results(the_plan.all)
    lacking = {task.study.name: None for task in the_plan.all if task.key not in measured}
    if lacking:
        again = shlex.join(
            ["normkit", "study", *lacking, *(["--quick"] if quick else []), "--out", str(store)]
        )
        raise InputError(
            f"{store} lacks {len(the_plan.all) - len(measured):,} of {len(the_plan.all):,} trials of this "
            f"version: run `{again}`"
        )
    return judged(the_plan, measured), the_plan


def files(reports: Sequence[Report], the_plan: Plan) -> dict[str, str]:
    """The text of each file by its name.

    Raises:
        InputError: a figure that is too large to be kept with the sources.
    """
    written = {"README.md": contents(reports, the_plan)}
    for report in reports:
        if report.draw is None:
            continue
        figure = drawing.svg_file(report.draw, report.study.name)
        if len(figure.encode()) > LARGEST:
            raise InputError(
                f"the figure of {report.study.name} must be at most {LARGEST:,} bytes, got "
                f"{len(figure.encode()):,}: draw fewer points in it"
            )
        written[f"{report.study.name}.svg"] = figure
    return written


def contents(reports: Sequence[Report], the_plan: Plan) -> str:
    """The page: the table of claims, then each study."""
    quick = the_plan.scale == "quick"
    trials, seconds = sum(len(r.results.measured) for r in reports), sum(r.seconds for r in reports)
    introduction = INTRODUCTION.format(
        summary=text.summary(reports),
        size=f"Measured by {VERSIONS}: {trials:,} trials, {seconds / 3600:.1f} hours of one core.",
        quick=" --quick" if quick else "",
    )
    parts = [introduction, table(reports, linked=True), *(section(report, quick) for report in reports)]
    return "\n".join(parts)


def table(reports: Iterable[Report], *, linked: bool = False) -> str:
    """The table of claims; linked, each claim leads to its section."""
    lines = ["| claim | what is claimed | verdict | effect |", "|---|---|---|---|"]
    for report in reports:
        study, claimed = report.study, plain(report.study.statement)
        claimed = f"[{claimed}](#{study.name})" if linked else claimed
        effect = plain(text.telling_effect(report))
        lines.append(f"| {study.claim} | {claimed} | {text.verdict(report)} | {effect} |")
    return "\n".join([*lines, ""])


def section(report: Report, quick: bool) -> str:
    """A study: question, figure, finding, effects, and how it was done."""
    study, finding = report.study, report.finding
    assert finding is not None, f"{study.name} has every trial and no finding"
    told = {
        "Design": study.design,
        "Rule": study.rule,
        "Claimed by": study.source,
        "Literature": study.literature,
    }
    again = f"normkit study {study.name}" + (" --quick" if quick else "")
    took = f"{len(report.results.measured):,} trials, {report.seconds:,.0f} seconds of one core"
    head = ["| effect | mean | interval | seeds | claimed | verdict |", "|---|---|---|---|---|---|"]
    parts = [
        f"## {study.name}",
        f"{study.claim}: {plain(study.statement)} **{text.verdict(report).capitalize()}.**",
        plain(study.question),
        f"![What {study.name} measured]({study.name}.svg)" if report.draw else "",
        plain(finding.sentence),
        "\n".join([*head, *map(row, finding.effects)]) if finding.effects else "",
        "\n".join(f"- **{name}.** {plain(words)}" for name, words in told.items()),
        f"`{again}`: {took}.\n",
    ]
    return "\n\n".join(filter(None, parts))


def row(effect: Effect) -> str:
    """An effect as a row of its study's table."""
    bounds = text.interval(effect), str(effect.estimate.count), f"{effect.claimed} {effect.no_effect:g}"
    return "| " + " | ".join([plain(effect.label), text.mean(effect), *bounds, effect.verdict]) + " |"


def plain(words: str) -> str:
    """Text as Markdown that shows it, code between backticks apart."""
    parts = re.split(r"(`[^`]*`)", words)
    return "".join(
        part if part.startswith("`") else re.sub(r"[\\*_<\[\]|~$]", r"\\\g<0>", part) for part in parts
    )


def main() -> None:
    """Write the folder, or print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition(":")[0])
    parser.add_argument("store", type=Path, help="the folder that `normkit study all --out` wrote")
    parser.add_argument("--quick", action="store_true", help="of `normkit study all --quick`")
    parser.add_argument("--table", action="store_true", help="print the table of claims instead")
    arguments = parser.parse_args()
    try:
        reports, the_plan = reports_of(arguments.store, [*map(find, NAMES)], quick=arguments.quick)
        if arguments.table:
            print(table(reports), end="")
            return
        for name, content in files(reports, the_plan).items():
            page.write(FOLDER / name, content)
    except InputError as error:
        parser.exit(2, f"write.py: {error}\n")


if __name__ == "__main__":
    main()
