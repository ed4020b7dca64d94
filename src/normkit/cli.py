"""The command line. Errors become one line here and nowhere else; heavy imports wait until a command runs."""

from __future__ import annotations

import os
import sys
import traceback
import warnings
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from normkit.errors import InputError, MissingExtraError, optional
from normkit.lab.grid import OUT, Grid

if TYPE_CHECKING:
    from normkit.lab.compare import OnProgress, Plan
    from normkit.lab.records import Epoch, Settings

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="rich")
# click's UsageError: typer depends on click or carries it within itself, by version.
UsageError = cast("type[typer.BadParameter]", typer.BadParameter.__mro__[1])


def run(arguments: Sequence[str]) -> int:
    """Run a command and return its exit code: 0, 2 where the input is to blame, 130 when interrupted."""
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_, **__: _complain(message)
        try:
            return app(list(arguments) or ["--help"], prog_name="normkit", standalone_mode=False) or 0
        except UsageError as error:
            return _complain(error.format_message())
        except (InputError, MissingExtraError) as error:
            return _complain(error)


def _complain(problem: object) -> int:
    print(f"normkit: {problem}", file=sys.stderr)
    return 2


@app.callback()
def normkit() -> None:
    """Normalization for deep networks: does it help, which one, and where?"""


def _question(help: str, show_default: bool | str = True) -> Any:
    return typer.Option(help=help, show_default=show_default, rich_help_panel="Question")


def _training(help: str) -> Any:
    return typer.Option(help=help, rich_help_panel="Training, the same for every norm")


def _machine(help: str) -> Any:
    return typer.Option(help=help, rich_help_panel="Machine and output")


_RATES = ",".join(map(str, Grid.lr))
_TARGET = "95% of the way from chance to the best"


@app.command()
def compare(
    data: Annotated[
        str, _question("digits, mnist, fashion-mnist, cifar10, or FILE.npz with arrays x and y.")
    ] = Grid.data,
    model: Annotated[str, _question("mlp, cnn or sigmoid.")] = Grid.model,
    norms: Annotated[
        str,
        _question(
            "With commas, of none, batch, layer, group, instance, rms, ghost, renorm, virtual, adaptive, sync, "
            "switch, batch_instance, frn, dynamic_tanh, weight_norm, weight_standardization, spectral_norm.",
            "the first six, as far as the model takes them",
        ),
    ] = ",".join(Grid.norms),
    placement: Annotated[str, _question("pre or post: before the activation or after it.")] = Grid.placement,
    lr: Annotated[
        list[str] | None,
        _question("Learning rate; of several, with commas, each norm is compared at its best.", _RATES),
    ] = None,
    seeds: Annotated[int, _question("Runs of each; more give narrower intervals.")] = Grid.seeds,
    target: Annotated[
        float | None, _question("Validation accuracy, 0 to 1, that steps are counted to.", _TARGET)
    ] = Grid.target,
    epochs: Annotated[int, _training("Passes over the training split.")] = Grid.epochs,
    batch_size: Annotated[int, _training("Samples per step.")] = Grid.batch_size,
    optimizer: Annotated[str, _training("adam, or sgd with momentum 0.9.")] = Grid.optimizer,
    input_scaling: Annotated[
        str, _training("none, minmax, standard or log, fitted on the training split alone.")
    ] = Grid.input_scaling,
    dropout: Annotated[float, _training("Probability, after each hidden layer.")] = Grid.dropout,
    weight_decay: Annotated[float, _training("L2 term in the gradient.")] = Grid.weight_decay,
    device: Annotated[str, _machine("cpu or cuda.")] = Grid.device,
    threads: Annotated[
        int, _machine("Threads of torch; with one, results do not depend on how many cores there are.")
    ] = Grid.threads,
    out: Annotated[Path, _machine("Folder of runs and report; a run that is in it is not repeated.")] = OUT,
) -> None:
    """Measure whether and how much normalization helps a network on your data.

    Trains the network with each norm, over several seeds, and shows: steps to
    a common accuracy, final accuracy and loss, the gap between training and
    validation, time per step. Each has a 95% interval, and one sentence says
    what was found. All of it is written to report.html in --out.

    Stop it whenever you like: the same command goes on, to the same result.

    [bold]normkit compare[/bold]
    The usual norms on handwritten digits; a minute or two.

    [bold]normkit compare --norms none,batch --lr 0.001,0.003,0.01[/bold]
    Each norm at its best learning rate.

    [bold]normkit compare --data FILE.npz --model mlp --batch-size 16[/bold]
    Your own data.
    """
    grid = Grid(
        data=data,
        model=model,
        norms=_norms(norms),
        placement=placement,
        input_scaling=input_scaling,
        batch_size=batch_size,
        lr=Grid.lr if lr is None else tuple(_number(word) for part in lr for word in _words(part)),
        optimizer=optimizer,
        dropout=dropout,
        weight_decay=weight_decay,
        epochs=epochs,
        seeds=seeds,
        target=target,
        device=device,
        threads=threads,
    )
    _compare(grid, out)


def _compare(grid: Grid, out: Path) -> None:
    for module in ("jinja2", "matplotlib", "safetensors", "sklearn"):
        optional(module, "lab")
    from normkit.lab import report, table
    from normkit.lab.compare import carry_out, check_out, plan
    from normkit.lab.sentence import sentence

    check_out(out)
    the_plan = plan(grid)
    try:
        with _progress(the_plan) as on_progress:
            comparison = carry_out(the_plan, out, on_progress)
    except KeyboardInterrupt:
        print("normkit: interrupted; finished epochs are kept, the same command goes on", file=sys.stderr)
        raise typer.Exit(130) from None
    page = out / "report.html"
    report.write(comparison, page, command=grid.command(out))
    console = _console()
    console.print(table.terminal(comparison))
    console.print(sentence(comparison))
    console.print(f"\nReport: {page}")


def _console() -> Console:
    """Where results go, as they are: nothing in them is markup."""
    console = Console(markup=False, highlight=False)
    if console.is_terminal:
        return console
    # A file has no width: rows and sentences stay whole.
    return Console(markup=False, highlight=False, width=120, soft_wrap=True)


@contextmanager
def _progress(plan: Plan) -> Generator[OnProgress]:
    """A bar over all epochs of all runs."""
    with _bar("epochs") as move:

        def on_progress(done: int, settings: Settings, epoch: Epoch | None) -> None:
            words = f"seed {settings.seed + 1}/{plan.grid.seeds}  {settings.norm:<8}  lr {settings.lr:g}"
            if epoch is not None and epoch.measurements:
                words += f"  {epoch.measurements[-1].val_accuracy:6.1%}"
            move(done, plan.epochs, words)

        yield on_progress


@contextmanager
def _bar(unit: str) -> Generator[Callable[[int, int, str], None]]:
    """A bar on stderr, moved by (done, total, what is under way); nothing where that is no terminal."""
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=None)

        def move(done: int, total: int, what: str) -> None:
            progress.update(task, completed=done, total=total, description=what)

        yield move


bench = typer.Typer(invoke_without_command=True)
app.add_typer(bench, name="bench")


@bench.callback()
def speed(
    context: typer.Context,
    rows: Annotated[str, typer.Option(help="Rows, with commas.", show_default="all")] = "",
    networks: Annotated[
        str, typer.Option(help="Networks whose layers are measured, with commas.", show_default="all")
    ] = "",
    quick: Annotated[bool, typer.Option("--quick", help="Few shapes per row.")] = False,
    threads: Annotated[int | None, typer.Option(help="Of torch.", show_default="torch's own")] = None,
    repeats: Annotated[int | None, typer.Option(help="Rounds.", show_default="11, quick 5")] = None,
    json: Annotated[Path | None, typer.Option(help="Write every time of every round here.")] = None,
    markdown: Annotated[
        Path | None, typer.Option(help="Write the costs of the family, beside batch norm, here as Markdown.")
    ] = None,
) -> None:
    """Measure the layers beside torch, torch.compile, JAX and the memory bus.

    All take turns within one run, so that noise of the machine hits them
    alike; where the quartiles in brackets lie far apart, it was too much.
    Rows are met where ours reach the ratio that stands behind "of".
    [bold]normkit bench accuracy[/bold] measures errors instead of times.
    """
    if context.invoked_subcommand is not None:
        return
    _check_writable(json, markdown)
    from normkit.bench import speed as measure
    from normkit.bench import table
    from normkit.bench.result import to_json

    with _bar("measurements") as move:
        result = measure.run(
            _words(rows) or measure.KEYS,
            _words(networks) or measure.SHAPES_OF,
            threads,
            repeats,
            quick,
            move,
        )
    table.print_table(result)
    _write(json, to_json(result))
    _write(markdown, table.family_markdown(result))


@bench.command()
def accuracy(
    markdown: Annotated[Path | None, typer.Option(help="Write the tables here as Markdown.")] = None,
    json: Annotated[Path | None, typer.Option(help="Write every figure here.")] = None,
) -> None:
    """Measure errors against float64, beside torch in both layouts and Keras."""
    _check_writable(markdown, json)
    from normkit.bench import accuracy as measure
    from normkit.bench import accuracy_table

    with _bar("inputs") as move:
        result = measure.run(on_progress=move)
    accuracy_table.print_table(result)
    _write(markdown, accuracy_table.to_markdown(result))
    _write(json, measure.to_json(result))


@bench.command()
def sync(
    rounds: Annotated[int, typer.Option(help="Turns of each.")] = 21,
    json: Annotated[Path | None, typer.Option(help="Write every time of every round here.")] = None,
) -> None:
    """Measure batch norm over two processes, beside local batch norm and the bare collectives."""
    _check_writable(json)
    from normkit.bench import sync as measure

    result = measure.run(rounds=rounds)
    measure.print_table(result)
    _write(json, measure.to_json(result))


@bench.command("doctor")
def doctor_cost(
    rounds: Annotated[int, typer.Option(help="Turns of each.")] = 5,
    json: Annotated[Path | None, typer.Option(help="Write every time of every round here.")] = None,
) -> None:
    """Measure what a diagnosis of ResNet-18 costs, beside forward and backward passes over the same batches."""
    _check_writable(json)
    from normkit.bench import doctor as measure

    result = measure.run(rounds=rounds)
    measure.print_table(result)
    _write(json, measure.to_json(result))


def _check_writable(*paths: Path | None) -> None:
    """Before minutes are spent on what goes there."""
    for path in paths:
        if path is None:
            continue
        if path.is_dir() or not path.absolute().parent.is_dir():
            raise InputError(f"{path} must be a file in a folder that exists")
        if not os.access(path if path.exists() else path.absolute().parent, os.W_OK):
            raise InputError(f"{path} cannot be written: no permission")


def _write(path: Path | None, text: str) -> None:
    if path is not None:
        path.write_text(text)


_MODEL = "FILE.py:NAME or PACKAGE.MODULE:NAME, a module or a function that returns one."


@app.command()
def recalibrate(
    target: Annotated[str, typer.Argument(help=_MODEL, show_default=False)],
    data: Annotated[str, typer.Option(help="Batches, or a function that returns them, named likewise.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="The new weights, .safetensors or .pt.")],
    weights: Annotated[Path | None, typer.Option(help="A checkpoint to load before.")] = None,
    estimator: Annotated[str, typer.Option(help="exact, cumulative, exponential or random.")] = "exact",
    tolerance: Annotated[float, typer.Option(help="The error that is small enough, in deviations.")] = 0.02,
    batches: Annotated[int | None, typer.Option(help="At most so many.", show_default="all")] = None,
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

    _check_writable(out)
    with _traced(verbose):
        result = recalibration.run(target, data, out, weights, estimator, tolerance, batches)
    console = _console()
    console.print(recalibration.table(result))
    for name, reason in result.left.items():
        console.print(printable(f"{name}: left alone, {reason}"))
    console.print(f"{result.batches} batches; {printable(result.verdict)}\n\nWeights: {out}")


@app.command()
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
            show_default="cross_entropy or mse_loss, as far as the target fits",
        ),
    ] = None,
    optimizer: Annotated[
        str | None, typer.Option(help="A function of the model that returns its optimizer, named likewise.")
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
    format: Annotated[str, typer.Option(help="text, json, html or sarif.")] = "text",
    explain: Annotated[str | None, typer.Option(help="Tell about a code, and do nothing else.")] = None,
    verbose: Annotated[bool, typer.Option("--verbose", help="Show where an error comes from.")] = False,
) -> None:
    """Find what normalization does wrong in a model, and repair it.

    The model alone shows how norms stand in it and what their statistics
    hold; with --data also whether these fit, and which layer makes evaluation
    differ from training. Exits with 0 where nothing is found, 1 with findings
    (after --fix: with those that are left), 2 where it could not run.

    [bold]normkit doctor net.py:build --weights last.pt --data net.py:loader[/bold]

    [bold]normkit doctor --explain NK202[/bold]
    """
    from normkit.doctor.command import FORMATS, explanation
    from normkit.errors import unknown

    if explain is not None:
        print(explanation(explain))
        return
    if format not in FORMATS:
        raise unknown("format", format, FORMATS)
    if not target:
        raise InputError("doctor needs a model to look at: FILE.py:NAME, PACKAGE.MODULE:NAME or a checkpoint")
    from normkit.doctor.consultation import Request, consult

    chosen = tuple(_words(select)), tuple(_words(ignore))
    with _traced(verbose):
        result = consult(Request(target, data, weights, loss, optimizer, batches, fix, out, *chosen))
    FORMATS[format](result, target, _console())
    if result.diagnosis:
        raise typer.Exit(1)


@contextmanager
def _traced(verbose: bool) -> Generator[None]:
    """Before an error becomes a line, the traceback of it and of its cause, where that is wanted."""
    try:
        yield
    except InputError:
        if verbose:
            traceback.print_exc()
        raise


@app.command()
def env() -> None:
    """Say what is installed, what is missing, and which kernels run and why."""
    from normkit.environment import describe

    print(describe())


def _norms(text: str) -> tuple[str, ...]:
    if text and not _words(text):
        raise InputError(f"--norms must be names with commas between them, got {text!r}")
    return tuple(_words(text))


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _number(word: str) -> float:
    try:
        return float(word)
    except ValueError:
        raise InputError(f"--lr must be numbers with commas between them, got {word!r}") from None
