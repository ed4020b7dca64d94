"""Norms of others, recognized by their structure: torch's norm with something around it."""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from normkit import functional
from normkit.errors import InputError
from normkit.norms import batch_norm, group_norm, instance_norm
from normkit.surgery import activations
from normkit.surgery.ours import OURS, become_ours, torch_class
from normkit.surgery.outcome import difference, tolerance_of
from normkit.surgery.passes import mode, without_hooks
from normkit.surgery.restore import Snapshot
from normkit.surgery.rewrite import own_graph, rewrite
from normkit.surgery.walk import joined

_FUNCTIONS: dict[Any, Any] = {
    F.batch_norm: functional.batch_norm,
    F.instance_norm: functional.instance_norm,
    F.group_norm: functional.group_norm,
    F.layer_norm: functional.layer_norm,
    F.rms_norm: functional.rms_norm,
}
_ACTIVATING = (batch_norm._BatchNorm, instance_norm._InstanceNorm, group_norm.GroupNorm)  # pyright: ignore[reportPrivateUsage]


def imitate(name: str, layer: nn.Module) -> None:
    """Let a norm with a forward of its own normalize by ours, in place; its values are compared on random ones.

    It may be batch, instance or group norm with children `drop` and `act`, as timm's have them, or have any forward
    that torch.fx can follow and that calls one of torch's functions.

    Raises:
        InputError: it is neither, or its values differ; it is as it was.
        UntraceableError: torch.fx cannot follow its forward.
    """
    before, old = Snapshot(layer), copy.deepcopy(layer)
    if {child for child, _ in layer.named_children()} == {"drop", "act"}:
        _activated(name, layer)
    else:
        _by_our_functions(layer)
    if not _same(old, layer):
        before.restore()
        raise InputError(f"{type(layer).__name__} does something else than torch's norm in its forward")


def is_imitated(layer: nn.Module) -> bool:
    """Whether a norm with a forward of its own calls ours."""
    code = getattr(type(layer).forward, "__code__", None)
    return code is not None and any(name.startswith("normkit_") for name in code.co_names)


def _activated(name: str, layer: Any) -> None:
    of_torch = torch_class(type(layer))
    ours = None if of_torch in (None, nn.SyncBatchNorm) else OURS[of_torch]
    if ours is None or not issubclass(ours, _ACTIVATING):
        raise InputError(f"{type(layer).__name__} has a forward of its own")
    if type(layer.drop) is not nn.Identity:
        raise InputError(f"{type(layer).__name__} has dropout between its norm and its activation")
    activation = activations.of_module(layer.act)
    if activation is None and type(layer.act) is not nn.Identity:
        raise InputError(f"its activation {type(layer.act).__name__} is none of ours")
    become_ours(name, layer, joined(type(layer), ours, type(layer)))
    layer.activation = activation


def _by_our_functions(layer: nn.Module) -> None:
    graph = own_graph(layer)
    calls = [node for node in graph.nodes if node.op == "call_function" and node.target in _FUNCTIONS]
    if not calls:
        raise InputError(
            f"{type(layer).__name__} has a forward of its own, which calls none of torch's norms"
        )
    for node in calls:
        node.target = _FUNCTIONS[node.target]
    rewrite(layer, graph)


def _same(old: nn.Module, new: nn.Module) -> bool:
    """Whether two layers agree on random values of every shape that the first one takes, in both modes."""
    tensor = next(iter((*old.parameters(), *old.buffers())), torch.empty(0))
    agreed: list[bool] = []
    with torch.random.fork_rng(devices=[]):
        for shape in _shapes(old):
            x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(tensor.device, tensor.dtype)
            for training in (False, True):
                expected, got = (_values(layer, x, training) for layer in (old, new))
                if expected is not None:
                    agreed.append(difference(expected, got) <= tolerance_of(x))
    return bool(agreed) and all(agreed)


def _values(layer: nn.Module, x: Tensor, training: bool) -> Any:
    """The output, and the buffers afterwards, of a copy; None where it does not take such a shape."""
    layer = copy.deepcopy(layer)
    with torch.no_grad(), mode(layer, training=training), without_hooks(layer):
        try:
            return layer(x.clone()), dict(layer.named_buffers())
        except Exception:  # whatever a layer says of it
            return None


def _shapes(layer: Any) -> list[list[int]]:
    """Shapes that a norm of so many features may take."""
    sizes = getattr(layer, "normalized_shape", None) or (
        getattr(layer, "num_features", 0) or getattr(layer, "num_channels", 0),
    )
    features = list(sizes)
    return [
        [6, *features],
        [6, 5, *features],
        [6, 5, 5, *features],
        *([6, *features, *[5] * n] for n in (1, 2, 3)),
    ]
