"""`normkit compare`."""

from __future__ import annotations

import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from normkit.cli.terminal import bar, console, words
from normkit.errors import InputError, optional
from normkit.lab.grid import OUT, Grid

if TYPE_CHECKING:
    from normkit.lab.compare import OnProgress, Plan
    from normkit.lab.comparison import Comparison
    from normkit.lab.crew import Crew
    from normkit.lab.records import Epoch, Settings
    from normkit.lab.remote import Workers


def _question(help: str, show_default: bool | str = True) -> Any:
    return typer.Option(help=help, show_default=show_default, rich_help_panel="Question")


def _training(help: str) -> Any:
    return typer.Option(help=help, rich_help_panel="Training, the same for every norm")


def _machine(help: str) -> Any:
    return typer.Option(help=help, rich_help_panel="Machine and output")


def _output(help: str, show_default: str = "none") -> Any:
    return typer.Option(help=help, rich_help_panel="Machine and output", show_default=show_default)


_RATES = ",".join(map(str, Grid.lr))
_TARGET = "95% of the way from chance to the best"


def compare(
    data: Annotated[
        str, _question("digits, mnist, fashion-mnist, cifar10, or FILE.npz with arrays x and y.")
    ] = Grid.data,
    model: Annotated[
        str, _question("mlp, cnn, sigmoid or residual; lstm, whose time steps are the rows of an image.")
    ] = Grid.model,
    norms: Annotated[
        str,
        _question(
            "With commas, of none, batch, layer, group, instance, rms, ghost, renorm, virtual, adaptive, sync, "
            "switch, batch_instance, frn, dynamic_tanh, weight_norm, weight_standardization, spectral_norm; of lstm "
            "none, batch, layer, group, rms, dynamic_tanh, and recurrent, which it alone takes.",
            "the first six, as far as the model takes them; of lstm recurrent too",
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
    workers: Annotated[
        int | None,
        _output("Processes that train runs beside each other; time per step is then left out.", "this one"),
    ] = None,
    ray: Annotated[str | None, _output("HOST:PORT of a Ray cluster that trains the runs.")] = None,
    out: Annotated[Path, _machine("Folder of runs and report; a run that is in it is not repeated.")] = OUT,
    export: Annotated[str | None, _output("csv or parquet: every measurement in one table.")] = None,
    tensorboard: Annotated[Path | None, _output("Folder for TensorBoard event files.")] = None,
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

    [bold]normkit compare --seeds 30 --workers 8[/bold]
    Eight runs at a time.

    [bold]torchrun --nproc-per-node 2 -m normkit compare[/bold]
    Each run by two processes, with batch statistics over both.
    """
    grid = Grid(
        data=data,
        model=model,
        norms=_norms(norms),
        placement=placement,
        input_scaling=input_scaling,
        batch_size=batch_size,
        lr=Grid.lr if lr is None else tuple(_number(word) for part in lr for word in words(part)),
        optimizer=optimizer,
        dropout=dropout,
        weight_decay=weight_decay,
        epochs=epochs,
        seeds=seeds,
        target=target,
        device=device,
        threads=threads,
    )
    _compare(grid, out, workers, ray, export, tensorboard)


def _compare(
    grid: Grid, out: Path, workers: int | None, ray: str | None, export: str | None, tensorboard: Path | None
) -> None:
    for module in ("jinja2", "matplotlib", "safetensors", "sklearn"):
        optional(module, "lab")
    from normkit.lab import report
    from normkit.lab.compare import check_out, plan
    from normkit.lab.crew import assembled
    from normkit.lab.export import check

    check_out(out)
    check(export, tensorboard)
    with assembled(grid.device) as crew:
        _check_workers(grid, workers, ray, crew.size)
        the_plan = plan(grid, crew.size)
        comparison = _carry_out(the_plan, out, crew, _workers(grid, workers, ray))
    if not crew.leads:
        return
    page = out / "report.html"
    report.write(comparison, page, command=grid.command(out, crew.size))
    _show(comparison, page)
    for path in _files(comparison, out, export, tensorboard):
        console().print(f"Files: {path}")


def _carry_out(plan: Plan, out: Path, crew: Crew, workers: Workers | None) -> Comparison:
    from normkit.lab.compare import UnfinishedError, carry_out

    try:
        with _progress(plan, crew.leads) as on_progress:
            return carry_out(plan, out, on_progress, crew, workers)
    except UnfinishedError as error:
        print("\n".join(f"normkit: {line}" for line in error.lines), file=sys.stderr)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        if crew.leads:
            kept = "all but the last second is kept" if workers is None else workers.kept
            print(f"normkit: interrupted; {kept}, the same command goes on", file=sys.stderr)
        raise typer.Exit(130) from None


def _show(comparison: Comparison, page: Path) -> None:
    from normkit.lab import table
    from normkit.lab.sentence import sentence

    show = console().print
    show(table.terminal(comparison))
    show(sentence(comparison))
    show(f"\nReport: {page}")


def _files(
    comparison: Comparison, out: Path, export: str | None, tensorboard: Path | None
) -> Generator[Path]:
    """Write what is asked for beside the page, and tell where."""
    from normkit.lab.export import write_events, write_table
    from normkit.lab.measurements import rows, runs

    if export is not None:
        write_table(rows(comparison), out / f"runs.{export}")
        yield out / f"runs.{export}"
    if tensorboard is not None:
        write_events(runs(comparison), tensorboard)
        yield tensorboard


def _check_workers(grid: Grid, workers: int | None, ray: str | None, processes: int) -> None:
    """Refuse what does not go together with workers, before any data is loaded."""
    if workers is None and ray is None:
        return
    option = "--ray" if workers is None else "--workers"
    if workers is not None and workers < 1:
        raise InputError(f"--workers must be 1 or more, got {workers}")
    if workers is not None and ray is not None:
        raise InputError("--workers are processes of this machine, --ray has its own: give one of the two")
    if processes > 1:
        raise InputError(
            f"{option} trains each run in one process, torchrun in {processes}: start without torchrun, "
            f"or leave {option} out"
        )
    if grid.device.startswith("cuda"):
        raise InputError(
            f"{option} trains on the cores of CPUs, got --device {grid.device}: use --device cpu, "
            f"or leave {option} out"
        )


def _workers(grid: Grid, workers: int | None, ray: str | None) -> Workers | None:
    from normkit.lab.remote import Workers

    if ray is not None:
        return Workers.on_cluster(ray, grid.threads)
    return None if workers is None else Workers.here(workers)


@contextmanager
def _progress(plan: Plan, shown: bool) -> Generator[OnProgress]:
    """A bar over all epochs of all runs."""
    with bar("epochs", shown=shown) as move:

        def on_progress(done: int, settings: Settings, epoch: Epoch | None) -> None:
            words = f"seed {settings.seed + 1}/{plan.grid.seeds}  {settings.norm:<8}  lr {settings.lr:g}"
            if epoch is not None and epoch.measurements:
                words += f"  {epoch.measurements[-1].val_accuracy:6.1%}"
            move(done, plan.epochs, words)

        yield on_progress


def _norms(text: str) -> tuple[str, ...]:
    if text and not words(text):
        raise InputError(f"--norms must be names with commas between them, got {text!r}")
    return tuple(words(text))


def _number(word: str) -> float:
    try:
        return float(word)
    except ValueError:
        raise InputError(f"--lr must be numbers with commas between them, got {word!r}") from None
