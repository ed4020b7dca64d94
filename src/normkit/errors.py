"""What goes wrong by the user's hand: one line with the invariant, what was received, and the remedy."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable, Mapping
from types import ModuleType


class InputError(ValueError):
    """An input breaks an invariant; the message is one line, fit for a terminal. The commands exit with 2."""


class MissingExtraError(ImportError):
    """A feature needs an optional dependency that is not installed; the message names the install line."""


class ProcessError(RuntimeError):
    """Processes that share statistics cannot go on together; the message names group, layer and ranks."""


def unknown(
    kind: str, received: object, valid: Iterable[str], also: Mapping[str, str] | None = None
) -> InputError:
    """The error for a name outside a fixed set: the valid names, and the nearest one where one is near.

    also: other names of valid ones, for the hint alone.

    >>> print(unknown("norm", "bacth", ["none", "batch"]))
    unknown norm 'bacth': choose from none, batch; did you mean 'batch'?
    """
    names = list(valid)
    name = str(received).lower()
    near = [also[name]] if also and name in also else difflib.get_close_matches(name, names, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return InputError(f"unknown {kind} {received!r}: choose from {', '.join(names)}{hint}")


def one_line(error: BaseException, limit: int = 300) -> str:
    r"""An exception of the user's code fit for a terminal: its type and message, on one line, not too long.

    >>> one_line(ValueError("a\n  b"))
    'ValueError: a b'
    """
    line = printable(" ".join(f"{type(error).__name__}: {error}".split()))
    return line if len(line) <= limit else line[: limit - 1] + "…"


def printable(text: str) -> str:
    r"""A text of the user's whose control characters do nothing to a terminal.

    >>> print(printable("layer\x1b[31m"))
    layer\x1b[31m
    """
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def optional(module: str, extra: str) -> ModuleType:
    """Import an optional dependency, or say which extra brings it."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as missing:
        raise MissingExtraError(
            f'{missing.name} is not installed, and this needs it: pip install "normkit[{extra}]"'
        ) from missing
