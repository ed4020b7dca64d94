"""The tensors of a batch, and a line for one whose dtype is none of the model's."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from normkit.errors import InputError, one_line


def tensors_in(output: Any) -> Iterator[Tensor]:
    """The tensors of an output or a batch, in order, whatever holds them."""
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, dict):
        for value in output.values():
            yield from tensors_in(value)
    elif isinstance(output, (tuple, list)):
        for value in output:
            yield from tensors_in(value)


@contextmanager
def telling_dtypes(model: nn.Module, inputs: Any, name: str) -> Generator[None, None, None]:
    """Run the model on inputs; where it fails over a dtype, and none of the model's is theirs, say so.

    Raises:
        InputError: of such inputs, instead of what the model raised, which is its cause.
    """
    try:
        yield
    except (RuntimeError, TypeError) as error:
        given, held = _dtypes(inputs), _dtypes([*model.parameters(), *model.buffers()])
        if "type" not in str(error) or not given or not held or given & held:
            raise
        raise InputError(
            f"inputs must have the model's dtype, {_names(held)}, but {name} has {_names(given)}: convert one with "
            f".to(dtype) ({one_line(error, 120)})"
        ) from error


def _dtypes(values: Any) -> set[torch.dtype]:
    return {tensor.dtype for tensor in tensors_in(values) if tensor.is_floating_point()}


def _names(dtypes: set[torch.dtype]) -> str:
    return ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes))
