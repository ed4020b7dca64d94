"""`normkit study`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from normkit.cli.terminal import bar, console, traced, words
from normkit.errors import InputError, optional, unknown

if TYPE_CHECKING:
    from normkit.lab.studies.study import Study, Subject
    from normkit.lab.sweep.sweep import Plan, Report, Runner

OUT = Path("runs/study")


def study(
    names: Annotated[
        list[str],
        typer.Argument(help="Of studies; or all; or list, which tells what there is.", show_default=False),
    ],
    quick: Annotated[
        bool, typer.Option("--quick", help="Fewer seeds and shorter trials; a full run has these and more.")
    ] = False,
    data: Annotated[
        str, typer.Option(help="digits, mnist, fashion-mnist, cifar10, or FILE.npz with arrays x and y.")
    ] = "digits",
    model: Annotated[
        str | None,
        typer.Option(
            help="FILE.py:NAME, a function that returns a network with norms.",
            show_default="each study's own",
        ),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(help="Processes of one thread each.", show_default="as many as cores")
    ] = None,
    ray: Annotated[
        str | None,
        typer.Option(help="HOST:PORT of a Ray cluster that takes the trials.", show_default="none"),
    ] = None,
    format: Annotated[
        str,
        typer.Option(help="Of png, svg, csv, with commas: figures and tables as files.", show_default="none"),
    ] = "",
    export: Annotated[
        str | None, typer.Option(help="csv or parquet: every number in one table.", show_default="none")
    ] = None,
    tensorboard: Annotated[
        Path | None, typer.Option(help="Folder for TensorBoard event files.", show_default="none")
    ] = None,
    out: Annotated[
        Path, typer.Option(help="Folder of trials and report; a trial in it is not repeated.")
    ] = OUT,
    verbose: Annotated[bool, typer.Option("--verbose", help="Show where an error comes from.")] = False,
) -> None:
    """Measure what the literature claims of normalization, on your data.

    Each study puts a claim to trials with paired seeds, and gives its effect
    with an interval and a verdict by a rule that was fixed beforehand. All of
    it is written to report.html in --out. Exits with 1 where a trial failed.

    Stop it whenever you like: the same command goes on, to the same result.

    [bold]normkit study list[/bold]

    [bold]normkit study all --quick[/bold]
    """
    for module in ("jinja2", "matplotlib", "sklearn"):
        optional(module, "lab")
    from normkit.lab.studies.study import Subject

    if names == ["list"]:
        _list()
        return
    if workers is not None and workers < 1:
        raise InputError(f"--workers must be 1 or more, got {workers}")
    files = _Files(words(format), export, tensorboard)
    with traced(verbose):
        reports = _study(names, quick, Subject(data, model), workers, ray, out, files)
    if _tell_problems(reports, verbose):
        raise typer.Exit(1)


class _Files:
    """What is written beside the page; unknown names and missing extras are refused before anything runs."""

    def __init__(self, formats: list[str], export: str | None, tensorboard: Path | None) -> None:
        from normkit.lab.export import check
        from normkit.lab.sweep import files

        for kind in formats:
            if kind not in files.FORMATS:
                raise unknown("format", kind, files.FORMATS)
        check(export, tensorboard)
        self._formats, self._export, self._tensorboard = formats, export, tensorboard

    def write(self, reports: list[Report], out: Path) -> list[Path]:
        """Write them, and return where they are."""
        from normkit.lab.export import write_events, write_table
        from normkit.lab.sweep import files

        written: list[Path] = []
        if self._formats:
            files.write_formats(reports, out / "files", self._formats)
            written.append(out / "files")
        if self._export is not None:
            write_table(files.rows(reports), out / f"trials.{self._export}")
            written.append(out / f"trials.{self._export}")
        if self._tensorboard is not None:
            write_events(files.runs(reports), self._tensorboard)
            written.append(self._tensorboard)
        return written


def _study(
    names: list[str],
    quick: bool,
    subject: Subject,
    workers: int | None,
    ray: str | None,
    out: Path,
    files: _Files,
) -> list[Report]:
    from normkit import page
    from normkit.lab.compare import check_out
    from normkit.lab.sweep import page as studies_page
    from normkit.lab.sweep import text
    from normkit.lab.sweep.sweep import plan

    check_out(out)
    studies, left = _chosen(names, subject)
    the_plan = plan(studies, "quick" if quick else "full", subject)
    try:
        reports = _carry_out(the_plan, out, workers, ray)
    except KeyboardInterrupt:
        print("normkit: interrupted; finished trials are kept, the same command goes on", file=sys.stderr)
        raise typer.Exit(130) from None
    page.write(out / "report.html", studies_page.render(reports, the_plan, out, names, left))
    written = files.write(reports, out)
    show = console().print
    show(text.terminal(reports))
    for line in left:
        show(f"Left out: {line}")
    show("\n".join(["", f"Report: {out / 'report.html'}", *(f"Files: {path}" for path in written)]))
    return reports


def _carry_out(plan: Plan, out: Path, workers: int | None, ray: str | None) -> list[Report]:
    from normkit.lab.sweep.sweep import carry_out

    runner: Runner | None = None
    if ray is not None:
        from normkit.lab.workers.cluster import connect

        runner = connect(ray)
    with bar("trials") as move:
        return carry_out(plan, out, workers=workers, runner=runner, on_progress=move)


def _chosen(names: list[str], subject: Subject) -> tuple[list[Study], list[str]]:
    """The studies asked for; of all, those that the subject fits, and why the others are left out."""
    from normkit.lab.studies import NAMES, find

    if names != ["all"]:
        return [find(name) for name in dict.fromkeys(names)], []
    refusals = {study: _refusal(study, subject) for study in map(find, NAMES)}
    studies = [study for study, refusal in refusals.items() if refusal is None]
    left = [refusal for refusal in refusals.values() if refusal is not None]
    if not studies:
        raise InputError(f"no study takes this data and model: {left[0]}" if left else "there is no study")
    return studies, left


def _refusal(study: Study, subject: Subject) -> str | None:
    try:
        study.check(subject)
    except InputError as refusal:
        return str(refusal)
    return None


def _list() -> None:
    from rich.box import SIMPLE
    from rich.table import Table

    from normkit.lab.studies import NAMES, find

    table = Table(box=SIMPLE, padding=(0, 1, 0, 0))
    for name in ("claim", "study", "--data", "--model", "what is claimed"):
        table.add_column(name, no_wrap=name != "what is claimed")
    for study in map(find, NAMES):
        takes = ("yes" if taken else "" for taken in (study.takes_data, study.takes_model))
        table.add_row(study.claim, study.name, *takes, study.statement)
    console().print(table)


def _tell_problems(reports: list[Report], verbose: bool) -> bool:
    """A line on stderr for each trial that failed; whether there is one."""
    from normkit.lab.sweep import text

    for report in reports:
        for line in text.problems(report):
            print(f"normkit: {line}", file=sys.stderr)
        if verbose and report.problems:
            print(report.problems[0].trace, file=sys.stderr)
    return any(report.problems for report in reports)
