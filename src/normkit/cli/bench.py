"""`normkit bench` and its commands."""

from __future__ import annotations

import io
import tempfile
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from normkit.cli.terminal import bar, check_writable, words, write

bench = typer.Typer(invoke_without_command=True)


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
    device: Annotated[str, typer.Option(help="cpu, or cuda: the rows and peers of a GPU.")] = "cpu",
) -> None:
    """Measure the layers beside torch, torch.compile, JAX and the memory bus.

    All take turns within one run, so that noise of the machine hits them
    alike; where the quartiles in brackets lie far apart, it was too much.
    Rows are met where ours reach the ratio that stands behind "of".
    [bold]normkit bench accuracy[/bold] measures errors instead of times.
    """
    if context.invoked_subcommand is not None:
        return None
    check_writable(json, markdown)
    if device != "cpu":
        only_cpu = {"--networks": networks, "--threads": threads, "--markdown": markdown}
        return _on_gpu(
            device, rows, quick, repeats, json, [name for name, value in only_cpu.items() if value]
        )
    from normkit.bench import speed as measure
    from normkit.bench import table
    from normkit.bench.result import to_json

    with bar("measurements") as move:
        result = measure.run(
            words(rows) or measure.KEYS,
            words(networks) or measure.SHAPES_OF,
            threads,
            repeats,
            quick,
            move,
        )
    table.print_table(result)
    write(json, to_json(result))
    write(markdown, table.family_markdown(result))
    return None


def _on_gpu(
    device: str, rows: str, quick: bool, repeats: int | None, json: Path | None, others: list[str]
) -> None:
    """The benchmark of GPUs, whose rows and peers are others."""
    from normkit.bench import cuda as measure
    from normkit.bench import cuda_table
    from normkit.bench.result import to_json
    from normkit.errors import InputError, unknown

    if device != "cuda":
        raise unknown("device", device, ("cpu", "cuda"))
    if others:
        raise InputError(f"{', '.join(others)} belong to --device cpu: leave them out with --device cuda")
    with bar("measurements") as move:
        result = measure.run(words(rows) or measure.KEYS, repeats, quick, move)
    cuda_table.print_table(result)
    write(json, to_json(result))


@bench.command()
def accuracy(
    markdown: Annotated[Path | None, typer.Option(help="Write the tables here as Markdown.")] = None,
    json: Annotated[Path | None, typer.Option(help="Write every figure here.")] = None,
) -> None:
    """Measure errors against float64, beside torch in both layouts and Keras."""
    check_writable(markdown, json)
    from normkit.bench import accuracy as measure
    from normkit.bench import accuracy_table

    with bar("inputs") as move:
        result = measure.run(on_progress=move)
    accuracy_table.print_table(result)
    write(markdown, accuracy_table.to_markdown(result))
    write(json, measure.to_json(result))


@bench.command()
def sync(
    rounds: Annotated[int, typer.Option(help="Turns of each.")] = 21,
    json: Annotated[Path | None, typer.Option(help="Write every time of every round here.")] = None,
) -> None:
    """Measure batch norm over two processes, beside local batch norm and the bare collectives."""
    check_writable(json)
    from normkit.bench import sync as measure

    result = measure.run(rounds=rounds)
    measure.print_table(result)
    write(json, measure.to_json(result))


@bench.command("doctor")
def doctor_cost(
    rounds: Annotated[int, typer.Option(help="Turns of each.")] = 5,
    json: Annotated[Path | None, typer.Option(help="Write every time of every round here.")] = None,
) -> None:
    """Measure what a diagnosis of ResNet-18 costs, beside forward and backward passes over the same batches."""
    check_writable(json)
    from normkit.bench import doctor as measure

    result = measure.run(rounds=rounds)
    measure.print_table(result)
    write(json, measure.to_json(result))


@bench.command("store")
def store_cost(
    rounds: Annotated[int, typer.Option(help="Turns of each.")] = 11,
    json: Annotated[Path | None, typer.Option(help="Write every time of every round here.")] = None,
) -> None:
    """Measure what store and progress cost runs and trials, beside the same ones without them."""
    check_writable(json)
    from normkit.bench import store as measure

    with tempfile.TemporaryDirectory(prefix="normkit-") as folder:
        result = measure.run(
            Path(folder), lambda: bar("", console=Console(file=io.StringIO(), force_terminal=True)), rounds
        )
    measure.print_table(result)
    write(json, measure.to_json(result))
