"""The one walk over the modules of a model, and the one way in which a layer becomes another."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeVar

from torch import nn

_Module = TypeVar("_Module", bound=nn.Module)


def layers_of(model: nn.Module, kind: type[_Module]) -> Iterator[tuple[str, _Module]]:
    """Each layer of a kind once, by its first name in the model; the model itself, named "", if it is one."""
    for name, module in model.named_modules():
        if isinstance(module, kind):
            yield name, module


def become(layer: nn.Module, kind: type[nn.Module]) -> None:
    """Make a layer one of another class, in place.

    It stays the same object: everywhere it stands in the model, with its parameters, buffers, hooks and flags, and
    for everybody who refers to it. So `kind` takes the attributes of the class before it, and defaults to the rest.
    """
    if type(layer) is not kind:
        layer.__class__ = kind
