"""What a model is, without running it: its norms, its weights, their places in the optimizer, its copies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from normkit.doctor.graph import Graph
from normkit.doctor.kinds import CONVOLUTIONS, WEIGHTED, norm_kind
from normkit.doctor.readings import (
    Group,
    Norm,
    Optimizer,
    Others,
    Parameter,
    Readings,
    Run,
    Running,
    Traffic,
    Weight,
)
from normkit.surgery.freeze import is_frozen


@dataclass(frozen=True)
class Seen:
    """What batches showed: of the run as a whole, and of each norm and layer by its name."""

    run: Run | None = None
    traffic: Mapping[str, Traffic | None] = field(default_factory=dict[str, "Traffic | None"])
    effects: Mapping[str, float] = field(default_factory=dict[str, float])
    gradients: Mapping[str, float] = field(default_factory=dict[str, float])


def readings(
    model: nn.Module, optimizer: torch.optim.Optimizer | None, graph: Graph | None, others: Others, seen: Seen
) -> Readings:
    """All readings of a model; what others it was compared with and what batches showed are handed in."""
    groups = _groups(optimizer)
    trains = flags_after_train(model)
    norms = tuple(
        _norm(name, layer, kind, groups, trains[name], seen)
        for name, layer in model.named_modules()
        if (kind := norm_kind(layer)) is not None
    )
    weights = tuple(
        _weight(name, model.get_submodule(name), weight, seen.gradients.get(name), groups)
        for name, weight in weights_of(model).items()
    )
    return Readings(
        norms,
        weights,
        graph,
        _optimizer(optimizer),
        model.training,
        not any(module.training for module in model.modules()),
        seen.run,
        others,
    )


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """The weights of convolutions and linear layers, each once, by the name of the layer."""
    return {
        name: layer.weight
        for name, layer in model.named_modules()
        if isinstance(layer, WEIGHTED) and not isinstance(layer.weight, nn.UninitializedParameter)
    }


def flags_after_train(model: nn.Module) -> dict[str, bool]:
    """The flag that each norm has after `model.train()`, which is undone."""
    # A frozen norm shows False; what it remembers is its own entry.
    modes = {module: module.__dict__.get("training", module.training) for module in model.modules()}
    try:
        model.train()
        return {name: layer.training for name, layer in model.named_modules() if norm_kind(layer) is not None}
    finally:
        for module, mode in modes.items():
            module.training = mode


def is_synchronized(layer: nn.Module) -> bool:
    """Whether a norm shares its statistics with other processes, where there are any."""
    return isinstance(layer, nn.SyncBatchNorm) or getattr(layer, "process_group", None) is not None


def _norm(
    name: str,
    layer: Any,
    kind: str,
    groups: Mapping[int, Group],
    trains: bool,
    seen: Seen,
) -> Norm:
    weight = _parameter(getattr(layer, "weight", None), groups)
    bias = _parameter(getattr(layer, "bias", None), groups)
    running = _running(layer)
    channels = getattr(layer, "num_features", getattr(layer, "num_channels", None))
    return Norm(
        module=name,
        type=type(layer).__name__,
        kind=kind,
        channels=channels if isinstance(channels, int) else None,
        groups=layer.num_groups if kind == "group" else None,
        shape=tuple(layer.normalized_shape) if kind in ("layer", "rms") else (),
        eps=_eps(layer),
        momentum=getattr(layer, "momentum", None),
        training=layer.training,
        trains=trains,
        frozen=is_frozen(layer),
        tracks=bool(getattr(layer, "track_running_stats", False)),
        synchronized=is_synchronized(layer),
        weight=weight,
        bias=bias,
        running=running,
        dtype=next((p.dtype for p in layer.parameters()), None),
        traffic=seen.traffic.get(name),
        effect=seen.effects.get(name),
    )


def _eps(layer: Any) -> float:
    """RMS norm without one takes that of the dtype."""
    eps = getattr(layer, "eps", None)
    return torch.finfo(torch.float32).eps if eps is None else float(eps)


def _running(layer: Any) -> Running | None:
    mean, var = getattr(layer, "running_mean", None), getattr(layer, "running_var", None)
    if not isinstance(mean, Tensor) or not isinstance(var, Tensor) or mean.dim() != 1 or mean.is_meta:
        return None
    batches = getattr(layer, "num_batches_tracked", None)
    count = int(batches) if isinstance(batches, Tensor) and batches.numel() == 1 else None
    return Running(_copied(mean), _copied(var), var.dtype, count)


def _parameter(value: Any, groups: Mapping[int, Group]) -> Parameter | None:
    if not isinstance(value, nn.Parameter) or isinstance(value, nn.UninitializedParameter):
        return None
    return Parameter(_copied(value), value.requires_grad, groups.get(id(value)))


def _copied(value: Tensor) -> Tensor:
    return value.detach().double().cpu().clone()


def _weight(
    name: str, layer: Any, weight: Tensor, gradient: float | None, groups: Mapping[int, Group]
) -> Weight:
    held = layer.parametrizations.weight.original if hasattr(layer, "parametrizations") else weight
    return Weight(
        module=name,
        convolves=isinstance(layer, CONVOLUTIONS),
        biased=layer.bias is not None,
        outputs=getattr(layer, "out_channels", None) or layer.out_features,
        size=weight.numel(),
        norm=float(weight.detach().norm(dtype=torch.float64)),
        gradient=gradient,
        group=groups.get(id(held)),
    )


def _groups(optimizer: torch.optim.Optimizer | None) -> dict[int, Group]:
    """The settings of each parameter, by its identity."""
    found: dict[int, Group] = {}
    for group in optimizer.param_groups if optimizer else []:
        betas = group.get("betas")
        momentum = betas[0] if betas else group.get("momentum", 0.0)
        settings = Group(float(group["lr"]), float(group.get("weight_decay", 0.0)), float(momentum))
        found.update(dict.fromkeys(map(id, group["params"]), settings))
    return found


def _optimizer(optimizer: torch.optim.Optimizer | None) -> Optimizer | None:
    if optimizer is None:
        return None
    steps = [int(state["step"]) for state in optimizer.state.values() if "step" in state]
    adaptive = isinstance(optimizer, (torch.optim.Adam, torch.optim.NAdam, torch.optim.RAdam, torch.optim.Adamax,
                                      torch.optim.Adagrad, torch.optim.RMSprop))  # fmt: skip
    decoupled = isinstance(optimizer, torch.optim.AdamW) or any(
        group.get("decoupled_weight_decay") for group in optimizer.param_groups
    )
    return Optimizer(type(optimizer).__name__, adaptive and not decoupled, adaptive, max(steps, default=None))
