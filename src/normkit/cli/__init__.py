"""The command line, a file per command. Errors become one line here and nowhere else.

Heavy imports wait until a command runs.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Sequence
from typing import cast

import typer

from normkit.cli.bench import bench
from normkit.cli.compare import compare
from normkit.cli.doctor import doctor, recalibrate
from normkit.cli.study import study
from normkit.errors import InputError, MissingExtraError

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
    if os.environ.get("RANK", "0") == "0":  # of the processes that torchrun starts, one tells for all
        print(f"normkit: {problem}", file=sys.stderr)
    return 2


@app.callback()
def normkit() -> None:
    """Normalization for deep networks: does it help, which one, and where?"""


def env() -> None:
    """Say what is installed, what is missing, and which kernels run and why."""
    from normkit.environment import describe

    print(describe())


app.command()(compare)
app.command()(study)
app.add_typer(bench, name="bench")
app.command()(recalibrate)
app.command()(doctor)
app.command()(env)
