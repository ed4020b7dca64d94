"""Batch norms over one process's batch, and over that of all processes: `synchronize` and back."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm  # pyright: ignore[reportPrivateUsage]

from normkit import processes
from normkit.norms.sharing import Sharing
from normkit.surgery.ours import become_ours, our_class
from normkit.surgery.walk import layers_of


def synchronize(model: nn.Module, process_group: processes.Group = None) -> nn.Module:
    """Let all batch norms of a model, and their relatives, take training statistics over all processes' batches.

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
    _become_ours(model, _BatchNorm)
    for name, layer in layers_of(model, Sharing):
        layer.identity = processes.new_layer(name or type(layer).__name__)
        layer.process_group = process_group or layer.process_group or "world"
    return model


def desynchronize(model: nn.Module) -> nn.Module:
    """Let all batch norms of a model, and their relatives, take statistics over the batch of their own process.

    In place, as `synchronize`, whose layers stay ours. torch's synchronized layers become ours.

    Args:
        model: any module, a batch norm included.

    Returns:
        The model.

    Raises:
        InputError: a subclass of `torch.nn.SyncBatchNorm`; the model is as it was.
    """
    _become_ours(model, nn.SyncBatchNorm)
    for _, layer in layers_of(model, Sharing):
        layer.process_group = None
    return model


def _become_ours(model: nn.Module, kind: type[nn.Module]) -> None:
    """Make the layers of a kind ours, once all of them are known to allow it."""
    found = [(name, layer, our_class(name, layer)) for name, layer in layers_of(model, kind)]
    for name, layer, target in found:
        become_ours(name, layer, target)
