"""What `normkit recalibrate` does: a model and batches by name in, a file of weights and a table out."""

from __future__ import annotations

import functools
import itertools
from pathlib import Path

import torch
from rich.box import SIMPLE
from rich.table import Table

from normkit.doctor.checkpoint import check_output, write_weights
from normkit.doctor.target import blaming, load_batches, load_function, load_model
from normkit.errors import InputError, printable
from normkit.surgery.recalibrate import Recalibration, recalibrate

DRAW = 0  # the seed of the batch that "random" draws, so that a command can be repeated


def run(
    target: str,
    data: str,
    out: Path,
    weights: Path | None,
    estimator: str,
    tolerance: float,
    batches: int | None,
    until: str = "all",
    forward: str | None = None,
) -> Recalibration:
    """Recalibrate the model, of these weights where there are any, and write its state_dict.

    Raises:
        InputError: targets, weights or an output that are wrong; what the user's code raises.
    """
    check_output(out, weights)
    if batches is not None and batches < 1:
        raise InputError(f"--batches must be 1 or more, got {batches}")
    model = load_model(target, weights)
    way = None if forward is None else functools.partial(load_function(forward), model)
    with blaming(f"{target} failed on {data}"):
        result = recalibrate(
            model,
            itertools.islice(load_batches(data), batches),
            forward=way,
            until=until,  # pyright: ignore[reportArgumentType]
            estimator=estimator,  # pyright: ignore[reportArgumentType]
            tolerance=tolerance,
            generator=torch.Generator().manual_seed(DRAW),
        )
    write_weights(model.state_dict(), out)
    return result


def table(result: Recalibration) -> Table:
    """The same table as in the result's repr, as rich draws it; names cannot write to the terminal."""
    header, *rows = result.table()
    drawn = Table(*header[:1], box=SIMPLE)
    for name in header[1:]:
        drawn.add_column(name, justify="right")
    for row in rows:
        drawn.add_row(*map(printable, row))
    return drawn
