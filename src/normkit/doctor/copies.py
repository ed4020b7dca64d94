"""A model beside others: its own parts, a reference that it is a copy of, itself in other processes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from normkit import processes
from normkit.doctor.readings import Copy, Others
from normkit.errors import InputError

_ALIKE = 0.5  # distance of two parts' parameters, over their length, below which one may follow the other
_MEAN, _VAR = "running_mean", "running_var"
_WRAPPER = "module."  # of what AveragedModel, DataParallel and DistributedDataParallel hold
State = Mapping[str, Tensor]


def compare(model: nn.Module, reference: nn.Module | State | None, group: processes.Group) -> Others:
    """Find a model's copies within it, and hold it against a reference and against the other processes.

    Args:
        model: any module.
        reference: what it is a copy of.
        group: processes that all call this; those of a model in DistributedDataParallel do.

    Raises:
        InputError: a reference that the model is no copy of.
    """
    if reference is model:
        raise InputError("reference must be another model than the one that is looked at, got the same")
    copies = list(_within(model))
    if reference is not None:
        copies.append(_of_reference(reference, model))
    known = dist.is_available() and dist.is_initialized()
    if isinstance(model, DistributedDataParallel) and group is None:
        held: Any = model.process_group
        group = held
    several = processes.several(group)
    count = dist.get_world_size() if known else 1
    return Others(tuple(copies), count, tuple(_disagree(model, group)) if several else ())


def _disagree(model: nn.Module, group: processes.Group) -> Iterator[tuple[str, float]]:
    """The layers whose running means differ between processes, and how far."""
    state = model.state_dict()
    ours = {key: state[key].detach().double().cpu() for key in state if key.endswith((_MEAN, _VAR))}
    theirs = processes.exchange(group, ours)
    for key in ours:
        if key.endswith(_MEAN) and all(
            key in other and other[key].shape == ours[key].shape for other in theirs
        ):
            var = ours.get(key.removesuffix(_MEAN) + _VAR, torch.ones(()))
            means = torch.stack([other[key] for other in theirs])
            apart = float(((means.amax(0) - means.amin(0)) / (var + 1e-12).sqrt()).max())
            if apart > 0:
                yield key.removesuffix(_MEAN).rstrip("."), apart


def _within(model: nn.Module) -> Iterator[Copy]:
    """Pairs of children of one module that are built alike, where gradients reach one and the other is near it."""
    for name, module in model.named_modules():
        parts = [(f"{name}.{key}" if name else key, child) for key, child in module.named_children()]
        parts = [(key, child) for key, child in parts if any(_MEAN in k for k in child.state_dict())]
        followers = [part for part in parts if not any(p.requires_grad for p in part[1].parameters())]
        sources = [part for part in parts if any(p.requires_grad for p in part[1].parameters())]
        for copy, follower in followers:
            for source, leader in sources:
                known, other = leader.state_dict(), follower.state_dict()
                if {k: v.shape for k, v in known.items()} == {k: v.shape for k, v in other.items()}:
                    found = _compared(source, copy, known, other)
                    if found.weights < _ALIKE:
                        yield found


def _of_reference(reference: nn.Module | State, model: nn.Module) -> Copy:
    """The model as a copy of a reference, which is a model or its state_dict.

    Raises:
        InputError: no running statistics under the same name, or of another size.
    """
    state = reference.state_dict() if isinstance(reference, nn.Module) else dict(reference)
    prefix = _prefix(model.state_dict())
    known, other = _unwrapped(state), _unwrapped(model.state_dict())
    shared = [key for key in other if key in known and key.endswith(_MEAN)]
    if not shared:
        raise InputError(
            "reference must be a model that this one is a copy of, and they have no running statistics under the same "
            "name: give the model that it was copied or averaged from"
        )
    for key in shared:
        if known[key].shape != other[key].shape:
            raise InputError(
                f"reference must be a model that this one is a copy of, but its {key} is of shape "
                f"{list(known[key].shape)}, not {list(other[key].shape)}"
            )
    found = _compared("", "", known, other)
    return Copy("", "", found.weights, {prefix + layer: apart for layer, apart in found.layers.items()})


def _prefix(state: State) -> str:
    """The wrapper's, where everything is in it but a counter."""
    keys = [key for key in state if "." in key]
    return _WRAPPER if keys and all(key.startswith(_WRAPPER) for key in keys) else ""


def _unwrapped(state: State) -> dict[str, Tensor]:
    prefix = _prefix(state)
    return {key.removeprefix(prefix): value.detach().double().cpu() for key, value in state.items()}


def _compared(source: str, copy: str, known: State, other: State) -> Copy:
    """What both have under the same name and in the same shape."""
    keys = [key for key in known if key in other and known[key].shape == other[key].shape]
    weights = [key for key in keys if not key.endswith((_MEAN, _VAR, "num_batches_tracked"))]
    layers = [
        key.removesuffix(_MEAN)
        for key in keys
        if key.endswith(_MEAN) and key.removesuffix(_MEAN) + _VAR in keys
    ]
    apart = {layer.rstrip("."): _apart(layer, known, other) for layer in layers}
    return Copy(source, copy, _distance([(known[key], other[key]) for key in weights]), apart)


def _distance(pairs: list[tuple[Tensor, Tensor]]) -> float:
    """Of the second of each, over the length of the first."""
    apart = sum(
        float((a.detach().double().cpu() - b.detach().double().cpu()).square().sum()) for a, b in pairs
    )
    length = sum(float(a.detach().double().square().sum()) for a, _ in pairs)
    return (apart / max(length, 1e-300)) ** 0.5


def _apart(layer: str, known: State, other: State) -> float:
    """Root mean square distance of the means in deviations, and the mean log ratio of the variances."""
    (mean, var), (their_mean, their_var) = (
        [state[layer + name].detach().double().cpu() for name in (_MEAN, _VAR)] for state in (known, other)
    )
    ratio = ((their_var + 1e-12) / (var + 1e-12)).clamp(min=1e-12).log().abs()
    return float(((mean - their_mean).square() / (var + 1e-12)).mean().sqrt() + ratio.mean())
