"""Batch norms over one process's batch, and over that of all processes: `synchronize` and back."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm  # pyright: ignore[reportPrivateUsage]

from normkit import processes
from normkit.errors import InputError
from normkit.norms import batch_norm
from normkit.norms.sync_batch_norm import SyncBatchNorm
from normkit.surgery.freeze import Frozen
from normkit.surgery.walk import become, check_initialized, joined, layers_of

_Ours = batch_norm._BatchNorm  # pyright: ignore[reportPrivateUsage]
_OURS: dict[type[nn.Module], type[_Ours]] = {
    nn.BatchNorm1d: batch_norm.BatchNorm1d,
    nn.BatchNorm2d: batch_norm.BatchNorm2d,
    nn.BatchNorm3d: batch_norm.BatchNorm3d,
    nn.SyncBatchNorm: SyncBatchNorm,
}


def synchronize(model: nn.Module, process_group: processes.Group = None) -> nn.Module:
    """Let all batch norms of a model take their training statistics over the batches of all processes.

    In place: layers remain the objects that they are, with their parameters, buffers, hooks, training flags and all
    places in the model. torch's batch norms become ours; a subclass remains one, of ours beside torch's. What
    `torch.nn.SyncBatchNorm.convert_sync_batchnorm` is for, on any device and backend.

    Call it in every process, before the model is wrapped in DistributedDataParallel; torch.distributed need not be
    initialized yet. Errors name layers by their names in this model.

    Args:
        model: any module, a batch norm included.
        process_group: whose batches count together; None for the group that a layer already has, else for all
            processes.

    Returns:
        The model.

    Raises:
        InputError: a layer that is not yet initialized, or a subclass that does not leave normalizing to its base;
            the model is as it was.
        TypeError: a process group that is none.

    >>> print(synchronize(nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)))[1])
    BatchNorm1d(3, eps=1e-05, momentum=0.1, affine=True, bias=True, track_running_stats=True, process_group='world')
    """
    processes.check_group(process_group)
    for layer in _become_ours(model, _BatchNorm):
        layer.process_group = process_group or layer.process_group or "world"
    return model


def desynchronize(model: nn.Module) -> nn.Module:
    """Let all batch norms of a model take their statistics over the batch of their own process.

    In place, as `synchronize`, whose layers stay ours. torch's synchronized layers become ours.

    Args:
        model: any module, a batch norm included.

    Returns:
        The model.

    Raises:
        InputError: a subclass of `torch.nn.SyncBatchNorm`; the model is as it was.
    """
    for kind in (nn.SyncBatchNorm, _Ours):
        for layer in _become_ours(model, kind):
            layer.process_group = None
    return model


def _become_ours(model: nn.Module, kind: type[nn.Module]) -> list[_Ours]:
    """The layers of a kind, ours from now on, known to other processes by their names in the model."""
    found = [(name, layer, _ours(name, layer)) for name, layer in layers_of(model, kind)]
    layers: list[_Ours] = []
    for name, layer, target in found:
        become(layer, target)
        assert isinstance(layer, _Ours)
        layer.identity = processes.new_layer(name or target.__name__)
        layers.append(layer)
    return layers


def _ours(name: str, layer: nn.Module) -> type[nn.Module]:
    """Our class for a layer: its own where that is one of ours, else that of its dimension."""
    kind = type(layer)
    if kind in _OURS:
        return _OURS[kind]
    check_initialized(name, layer)
    if isinstance(layer, Frozen):
        raise InputError(
            f"layer {name!r} must train, but is frozen: unfreeze(model) first, freeze(model) after"
        )
    of_torch = next((base for base in (*_OURS, _Ours) if issubclass(kind, base)), nn.Module)
    if of_torch in (nn.Module, nn.SyncBatchNorm) or not _leaves_normalizing(kind):
        raise InputError(
            f"layer {name!r} must normalize by super().forward(), but {kind.__name__} has a forward of its own: "
            "call super().forward() there, or convert the layer before"
        )
    return kind if issubclass(kind, _Ours) else joined(kind, kind, _OURS[of_torch])


def _leaves_normalizing(kind: type[nn.Module]) -> bool:
    """Whether the first forward on the way to torch's own, or ours, goes on to it."""
    for base in kind.__mro__:
        forward: Any = vars(base).get("forward")
        if forward is not None:
            known = base.__module__.startswith(("torch.nn.modules.", "normkit."))
            return known or "super" in getattr(forward, "__code__", _leaves_normalizing.__code__).co_names
    return False
