"""What a command is pointed at: a model or batches, by a name in a Python file or in a package.

The code behind a name is the user's. Whatever it raises becomes one line, with the exception as its cause.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from operator import attrgetter
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn
from torch.utils.data import Dataset

from normkit.doctor.checkpoint import SUFFIXES, is_checkpoint, read_weights
from normkit.errors import InputError, one_line, unknown

FORMS = "FILE.py:NAME or PACKAGE.MODULE:NAME"


def load_model(target: str, weights: Path | None = None) -> nn.Module:
    """The model behind a name, a module or what a function without arguments returns.

    Args:
        target: `FILE.py:NAME` or `PACKAGE.MODULE:NAME`; packages are looked for in the current folder too.
        weights: a checkpoint that is loaded into the model, every key of it.

    Raises:
        InputError: a name that is not there or gives no module; code that raises; weights of another model.
    """
    if is_checkpoint(target):
        raise InputError(
            f"{target} has weights and no model: name the model, {FORMS}, and give the file as --weights"
        )
    model = _called(target, _named(target), nn.Module)
    if not isinstance(model, nn.Module):
        raise InputError(f"{target} must be a module or a function that returns one, got {_kind(model)}")
    if weights is not None:
        state = read_weights(weights)
        with blaming(f"{weights} does not fit {target}"):
            model.load_state_dict(state)
    return model


def load_batches(target: str) -> Iterable[object]:
    """The batches behind a name, something that can be iterated over or what a function without arguments returns.

    Args:
        target: as of `load_model`. A generator gives its batches once; a function that returns one is called once.

    Raises:
        InputError: a name that is not there or gives nothing to iterate over; code that raises.
    """
    found = _called(target, _named(target), Iterable)
    if isinstance(found, Dataset) and not hasattr(found, "__iter__"):
        raise InputError(
            f"{target} must give batches, but a {_kind(found)} gives samples: wrap it in a DataLoader"
        )
    if not isinstance(found, Iterable) or isinstance(found, (str, bytes, nn.Module)):
        raise InputError(f"{target} must be batches or a function that returns them, got {_kind(found)}")
    return found


def load_function(target: str) -> Callable[..., Any]:
    """The function behind a name.

    Raises:
        InputError: a name that is not there or can not be called; code that raises.
    """
    found = _named(target)
    if not callable(found):
        raise InputError(f"{target} must be a function, got {_kind(found)}")
    return found


@contextmanager
def blaming(what: str) -> Generator[None, None, None]:
    """Turn what the user's code raises inside into an `InputError` that begins with `what`.

    >>> with blaming("net.py:net cannot be loaded"):
    ...     1 / 0
    Traceback (most recent call last):
    normkit.errors.InputError: net.py:net cannot be loaded: ZeroDivisionError: division by zero
    """
    try:
        yield
    except InputError:
        raise
    except (Exception, SystemExit) as error:
        raise InputError(f"{what}: {one_line(error)}") from error


def _named(target: str) -> object:
    """What the name stands for."""
    where, _, name = target.rpartition(":")
    if (not where or not name) and Path(target).is_file():
        raise InputError(
            f"{target} is a file of a kind that is refused: a pickle can run code when it is loaded; save "
            f"model.state_dict() as {' or '.join(SUFFIXES[:2])}, or name the model, {FORMS}"
        )
    if not where or not name:
        raise InputError(f"a target is {FORMS}, got {target!r}")
    if not where.endswith(".py"):
        _search(Path.cwd())
        with blaming(f"{target} cannot be imported"):
            module = importlib.import_module(where)
    elif not Path(where).is_file():
        raise InputError(f"{target}: there is no file {where}")
    else:
        with blaming(f"{target} cannot be imported"):
            module = _imported(Path(where).resolve())
    try:
        return attrgetter(name)(module)
    except AttributeError:
        own = (n for n, value in vars(module).items() if n[0] != "_" and not isinstance(value, ModuleType))
        raise InputError(f"{where}: {unknown('name', name, own)}") from None


def _imported(path: Path) -> ModuleType:
    """A file as a module, run once. It finds its neighbours, as a script does, and they and workers find it."""
    _search(path.parent)
    for name in (path.stem, str(path)):  # a stem may be taken: by a library, or by a file elsewhere
        known = sys.modules.get(name)
        if known is None:
            break
        if getattr(known, "__file__", None) == str(path):
            return known
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _search(folder: Path) -> None:
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))


def _called(target: str, found: Any, wanted: type) -> object:
    """What a function returns; anything else, and an object that is wanted itself, as it is."""
    if not callable(found) or (isinstance(found, wanted) and not isinstance(found, type)):
        return found
    needed = _required(found)
    if needed:
        raise InputError(
            f"{target} must take no arguments, but needs {', '.join(needed)}: give them defaults, or name a function "
            "that gives them"
        )
    with blaming(f"{target}() raised"):
        return found()


def _required(function: Callable[..., object]) -> list[str]:
    """The arguments without defaults."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # a builtin without a signature
        return []
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [p.name for p in parameters if p.default is p.empty and p.kind not in variable]


def _kind(value: object) -> str:
    return "nothing" if value is None else type(value).__name__
