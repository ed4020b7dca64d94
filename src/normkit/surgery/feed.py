"""How a batch goes into a model, where nobody says."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils.rnn import PackedSequence

from normkit.errors import InputError

Forward = Callable[[Any], Any]
_REMEDY = (
    "give forward=, a function that runs the model on a batch (in commands --forward, of model and batch)"
)


def each(batches: Iterable[object]) -> Iterator[object]:
    """The batches, one after another.

    Raises:
        InputError: one batch, or nothing that batches come out of.
    """
    if isinstance(batches, (Tensor, PackedSequence, Mapping)):
        what = (
            f"one tensor, {list(batches.shape)}"
            if isinstance(batches, Tensor)
            else f"one {type(batches).__name__}"
        )
        raise InputError(
            f"batches must be several, as a data loader gives them, got {what}: put it in a list"
        )
    if isinstance(batches, (str, nn.Module)) or not isinstance(batches, Iterable):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InputError(
            f"batches must be a data loader, or a list of batches, got {type(batches).__name__}: see forward= for "
            "how each goes into the model"
        )
    return iter(batches)


def feeder(model: nn.Module, forward: Forward | None) -> Forward:
    """What runs the model on a batch: the user's function, or `feed`.

    DistributedDataParallel is passed by: its forward waits for all processes, which may have other numbers of batches.
    """
    if isinstance(model, DistributedDataParallel):
        model = model.module
    if forward is None:
        return lambda batch: feed(model, batch)
    if not takes(forward, 1):
        raise InputError(
            f"forward must be a function of one batch, got one of {inspect.signature(forward)}: close over the model, "
            "lambda batch: model(...); the command's --forward alone is of model and batch"
        )
    return forward


def takes(function: Callable[..., Any], count: int) -> bool:
    """Whether a function can be called with so many arguments, as far as it says; what is no function cannot.

    >>> takes(len, 1), takes(len, 2)
    (True, False)
    """
    if not callable(function):  # pyright: ignore[reportUnnecessaryComparison]
        return False
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # a builtin that tells nothing
        return True
    try:
        signature.bind(*range(count))
    except TypeError:
        return False
    return True


def first_of(batch: Any) -> Any:
    """What goes into the model, of a batch as `feed` takes it: not the labels behind it."""
    return batch[:1] if isinstance(batch, (tuple, list)) else batch


def feed(model: nn.Module, batch: object) -> Any:
    """The model's output for a batch as data loaders give it, on the device of the model's first tensor.

    Args:
        model: any module.
        batch: a tensor or packed sequences; a mapping, of which the model gets what its forward has names for; a tuple
            or list, whose first is the input, one of these or the tuple of several tensors.

    Raises:
        InputError: anything else; a mapping without what forward needs.

    >>> feed(nn.Identity(), (Tensor([1.0, 1.0]), "label"))
    tensor([1., 1.])
    """
    if isinstance(batch, (tuple, list)) and batch and not isinstance(batch, PackedSequence):
        inputs = batch[0]
        if isinstance(inputs, (tuple, list)) and inputs and all(isinstance(x, Tensor) for x in inputs):
            return model(*(_moved(x, model) for x in inputs))
    else:
        inputs = batch
    if isinstance(inputs, (Tensor, PackedSequence)):
        return model(_moved(inputs, model))
    if isinstance(inputs, Mapping):
        return model(**{name: _moved(value, model) for name, value in named(model, inputs).items()})
    kind = (
        f"{type(batch).__name__} of {type(inputs).__name__}" if inputs is not batch else type(batch).__name__
    )
    raise InputError(
        f"a batch is a tensor, a mapping, or a tuple whose first is one of these, got a {kind}: {_REMEDY}"
    )


def named(model: nn.Module, batch: Mapping[str, Any]) -> dict[str, Any]:
    """The entries that the model's forward takes.

    Raises:
        InputError: one that it needs is not there.
    """
    parameters = inspect.signature(_innermost(model).forward).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return dict(batch)
    absent = [
        name
        for name, p in parameters.items()
        if p.default is p.empty and p.kind is not p.VAR_POSITIONAL and name not in batch
    ]
    if absent:
        raise InputError(
            f"forward needs {', '.join(absent)}, and the batch has {', '.join(map(str, batch)) or 'nothing'}: "
            f"{_REMEDY}"
        )
    return {name: value for name, value in batch.items() if name in parameters}


def _innermost(model: nn.Module) -> nn.Module:
    """The model within what wraps it: torch.compile, DataParallel, DistributedDataParallel."""
    for name in ("_orig_mod", "module"):
        inner = getattr(model, name, None)
        if isinstance(inner, nn.Module):
            return _innermost(inner)
    return model


def _moved(value: Any, model: nn.Module) -> Any:
    first = next(itertools.chain(model.parameters(), model.buffers()), None)
    if first is None or first.is_meta or not hasattr(value, "to"):
        return value
    return value.to(first.device)
