"""`normkit doctor` and `normkit recalibrate`: commands whose target is a model of the user's."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from normkit.cli.terminal import check_writable, console, traced, words
from normkit.errors import InputError, optional

_MODEL = "FILE.py:NAME or PACKAGE.MODULE:NAME, a module or a function that returns one."


def recalibrate(
    target: Annotated[str, typer.Argument(help=_MODEL, show_default=False)],
    data: Annotated[str, typer.Option(help="Batches, or a function that returns them, named likewise.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="The new weights, .safetensors or .pt.")],
    weights: Annotated[Path | None, typer.Option(help="A checkpoint to load before.")] = None,
    estimator: Annotated[str, typer.Option(help="exact, cumulative, exponential or random.")] = "exact",
    tolerance: Annotated[float, typer.Option(help="The error that is small enough, in deviations.")] = 0.02,
    batches: Annotated[int | None, typer.Option(help="At most so many.", show_default="all")] = None,
    until: Annotated[
        str, typer.Option(help="all batches were seen, or they are enough by --tolerance.")
    ] = "all",
    forward: Annotated[
        str | None,
        typer.Option(
            help="A function of model and batch that gives the model's output, named likewise.",
            show_default="model(input), or by the names of forward's arguments",
        ),
    ] = None,
    verbose: Annotated[bool, typer.Option("--verbose", help="Show where an error comes from.")] = False,
) -> None:
    """Take the running statistics of a model's batch norms anew, from data.

    Shows how far each layer's were from the data and whether there were
    enough batches, and writes the weights with the new ones to --out.

    [bold]normkit recalibrate net.py:build --weights last.pt --data net.py:loader -o new.pt[/bold]
    """
    optional("safetensors", "lab")
    from normkit.doctor import recalibration
    from normkit.errors import printable

    check_writable(out)
    with traced(verbose):
        result = recalibration.run(target, data, out, weights, estimator, tolerance, batches, until, forward)
    show = console().print
    show(recalibration.table(result))
    for name, reason in result.left.items():
        show(printable(f"{name}: left alone, {reason}"))
    show(f"{result.batches} batches; {printable(result.verdict)}\n\nWeights: {out}")


def doctor(
    target: Annotated[str, typer.Argument(help=_MODEL + " Or a checkpoint.", show_default=False)] = "",
    data: Annotated[
        str | None, typer.Option(help="Batches, or a function that returns them, named likewise.")
    ] = None,
    weights: Annotated[Path | None, typer.Option(help="A checkpoint to load before.")] = None,
    loss: Annotated[
        str | None,
        typer.Option(
            help="Of torch.nn.functional, or a function of output and target, named likewise.",
            show_default="the output's own loss, cross_entropy or mse_loss, as far as it fits",
        ),
    ] = None,
    optimizer: Annotated[
        str | None, typer.Option(help="A function of the model that returns its optimizer, named likewise.")
    ] = None,
    forward: Annotated[
        str | None,
        typer.Option(
            help="A function of model and batch that gives the model's output, named likewise.",
            show_default="model(input), or by the names of forward's arguments",
        ),
    ] = None,
    reference: Annotated[
        str | None,
        typer.Option(
            help="What the model is a copy of (an average's source): named likewise, or a checkpoint."
        ),
    ] = None,
    batches: Annotated[int, typer.Option(help="How many of them to look at.")] = 8,
    fix: Annotated[
        bool, typer.Option("--fix", help="Repair what is safe to repair, and look again.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option("-o", "--out", help="The repaired weights.", show_default="beside --weights"),
    ] = None,
    select: Annotated[
        str, typer.Option(help="Codes, or how they begin, with commas.", show_default="all")
    ] = "",
    ignore: Annotated[str, typer.Option(help="Codes to leave out, likewise.", show_default="none")] = "",
    format: Annotated[str, typer.Option(help="Of the standard output: text, json, html or sarif.")] = "text",
    report: Annotated[
        list[Path] | None,
        typer.Option(
            help="Write the diagnosis here too, as .html, .json, .sarif or .txt; may be given again."
        ),
    ] = None,
    fail_on: Annotated[
        str, typer.Option(help="The least severity that makes the exit code 1: error, warning or note.")
    ] = "note",
    explain: Annotated[str | None, typer.Option(help="Tell about a code, and do nothing else.")] = None,
    verbose: Annotated[bool, typer.Option("--verbose", help="Show where an error comes from.")] = False,
) -> None:
    """Find what normalization does wrong in a model, and repair it.

    The model alone shows how norms stand in it and what their statistics
    hold; with --data also whether these fit, and which layer makes evaluation
    differ from training. Exits with 0 where nothing is found, 1 with findings
    (after --fix: with those that are left; --fail-on says of which severity),
    2 where it could not run.

    [bold]normkit doctor net.py:build --weights last.pt --data net.py:loader[/bold]

    [bold]normkit doctor net.py:build --data net.py:loader --fix --report doctor.html[/bold]

    [bold]normkit doctor --explain NK202[/bold]
    """
    from normkit.doctor import command
    from normkit.errors import unknown

    if explain is not None:
        print(command.explanation(explain))
        return
    if format not in command.FORMATS:
        raise unknown("format", format, command.FORMATS)
    command.rank(fail_on)
    for path in report or []:
        command.format_of(path)
    check_writable(*(report or []))
    if not target:
        raise InputError("doctor needs a model to look at: FILE.py:NAME, PACKAGE.MODULE:NAME or a checkpoint")
    from normkit.doctor.consultation import Request, consult

    chosen = tuple(words(select)), tuple(words(ignore))
    named = data, weights, loss, optimizer, forward, reference
    with traced(verbose):
        result = consult(Request(target, *named, batches, fix, out, *chosen))
    command.show(format, result, target, console())
    for path in report or []:
        command.write(path, result, target)
    if command.fails(result, fail_on):
        raise typer.Exit(1)
