"""What every command does with a terminal and with files: a console, a bar, lists of words, checks, tracebacks."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from normkit.errors import InputError


def console() -> Console:
    """Where results go, as they are: nothing in them is markup."""
    console = Console(markup=False, highlight=False)
    if console.is_terminal:
        return console
    # A file has no width: rows and sentences stay whole.
    return Console(markup=False, highlight=False, width=120, soft_wrap=True)


@contextmanager
def bar(
    unit: str, *, shown: bool = True, console: Console | None = None
) -> Generator[Callable[[int, int, str], None]]:
    """A bar on stderr or a console, moved by (done, total, what is under way); nothing where that is no terminal."""
    console = console or Console(stderr=True)
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        TimeRemainingColumn(),
    )
    with Progress(
        *columns,
        console=console,
        transient=True,
        disable=not (shown and console.is_terminal),
        refresh_per_second=4,  # 10, as it comes, take 1% of a core
    ) as progress:
        task = progress.add_task("", total=None)

        def move(done: int, total: int, what: str) -> None:
            progress.update(task, completed=done, total=total, description=what)

        yield move


def check_writable(*paths: Path | None) -> None:
    """Refuse a file that can not be written, before minutes are spent on what goes there."""
    for path in paths:
        if path is None:
            continue
        if path.is_dir() or not path.absolute().parent.is_dir():
            raise InputError(f"{path} must be a file in a folder that exists")
        if not os.access(path if path.exists() else path.absolute().parent, os.W_OK):
            raise InputError(f"{path} cannot be written: no permission")


def write(path: Path | None, text: str) -> None:
    """Write a text where a file was asked for."""
    if path is not None:
        path.write_text(text)


@contextmanager
def traced(verbose: bool) -> Generator[None]:
    """Before an error becomes a line, the traceback of it and of its cause, where that is wanted."""
    try:
        yield
    except InputError:
        if verbose:
            traceback.print_exc()
        raise


def words(text: str) -> list[str]:
    """What stands between commas."""
    return [word.strip() for word in text.split(",") if word.strip()]
