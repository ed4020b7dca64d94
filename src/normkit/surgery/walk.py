"""The one walk over the modules of a model, and the one way in which a layer becomes another."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any, TypeAlias, TypeVar

from torch import nn
from torch.nn.modules.batchnorm import _NormBase  # pyright: ignore[reportPrivateUsage]
from torch.nn.modules.lazy import LazyModuleMixin

from normkit.errors import InputError
from normkit.norms.recurrent_batch_norm import RecurrentBatchNorm

_Module = TypeVar("_Module", bound=nn.Module)


def layers_of(
    model: nn.Module, kind: type[_Module] | tuple[type[_Module], ...]
) -> Iterator[tuple[str, _Module]]:
    """Each layer of a kind, or of several, once, by its first name; the model itself, named "", if it is one.

    Raises:
        InputError: no module.
    """
    check_module(model)
    for name, module in model.named_modules():
        if isinstance(module, kind):
            yield name, module


def check_module(model: object) -> None:
    """Whether this is a model at all.

    Raises:
        InputError: it is none.
    """
    if not isinstance(model, nn.Module):
        held = f"got {'the class ' + model.__name__ if isinstance(model, type) else type(model).__name__}"
        remedy = ": load it into the model" if isinstance(model, dict) else ""
        raise InputError(f"model must be a torch.nn.Module, {held}{remedy}")


RunningNorm: TypeAlias = _NormBase | RecurrentBatchNorm  # a norm with running statistics, or places for them


def tracking_layers(model: nn.Module) -> list[tuple[str, RunningNorm]]:
    """The norms that are of a kind that keeps running statistics, torch's and ours, also those that keep none.

    Raises:
        InputError: one that does not know its channels yet.
    """
    layers = list(layers_of(model, (_NormBase, RecurrentBatchNorm)))
    for name, layer in layers:
        check_initialized(name, layer)
    return layers


def check_initialized(name: str, layer: nn.Module) -> None:
    """A lazy layer is none of its kind before its first batch."""
    if isinstance(layer, LazyModuleMixin):
        kind = type(layer).__name__
        raise InputError(f"layer {name!r} must know its channels, but is a {kind}: run a batch first")


def become(layer: nn.Module, kind: type[nn.Module]) -> None:
    """Make a layer one of another class, in place.

    It stays the same object: everywhere it stands in the model, with its parameters, buffers, hooks and flags, and
    for everybody who refers to it. So `kind` takes the attributes of the class before it, and defaults to the rest.
    """
    if type(layer) is not kind:
        layer.__class__ = kind


def become_like(layer: nn.Module, new: nn.Module) -> None:
    """Make a layer what a new one is, in place: its class, parameters, buffers and attributes.

    It stays the same object, with its hooks and its training flag.
    """
    kept = {key: vars(layer)[key] for key in vars(layer) if "_hooks" in key or key == "training"}
    become(layer, type(new))
    layer.__dict__ = {**vars(new), **kept}


@cache
def joined(kind: type[nn.Module], *bases: type[nn.Module]) -> type[nn.Module]:
    """A class of these bases that goes by the name of `kind`, one of them; its layers can be copied and pickled."""
    body: dict[str, Any] = {
        "__doc__": kind.__doc__,
        "__module__": kind.__module__,
        "__qualname__": kind.__qualname__,
        "__reduce__": lambda self: (_blank, (kind, *bases), self.__dict__),  # the name would find `kind`
    }
    return type(kind.__name__, bases, body)  # pyright: ignore[reportGeneralTypeIssues]


def _blank(*classes: type[nn.Module]) -> nn.Module:
    """A layer of the joined class without attributes, for copies and pickles to fill."""
    kind = joined(*classes)
    return kind.__new__(kind)


def for_quantization(model: nn.Module) -> set[nn.Module]:
    """The modules of a model that are prepared for quantization, or inside of such."""
    marks = ("weight_fake_quant", "activation_post_process")
    prepared = [
        module
        for module in model.modules()
        if type(module).__module__.startswith("torch.ao.")
        or any(getattr(module, mark, None) is not None for mark in marks)
    ]
    return {inner for module in prepared for inner in module.modules()}
