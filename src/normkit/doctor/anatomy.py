"""What a model is, without running it: its norms, its weights, their places in the optimizer, its copies."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from normkit.doctor.graph import Graph
from normkit.doctor.kinds import CONVOLUTIONS, WEIGHTED, norm_kind
from normkit.doctor.readings import (
    Copy,
    Group,
    Norm,
    Optimizer,
    Parameter,
    Readings,
    Run,
    Running,
    Traffic,
    Weight,
)
from normkit.surgery.freeze import is_frozen

_ALIKE = 0.5  # distance of two parts' parameters, over their length, below which one may follow the other


def readings(
    model: nn.Module,
    optimizer: torch.optim.Optimizer | None,
    graph: Graph | None,
    run: Run | None = None,
    traffic: Mapping[str, Traffic | None] | None = None,
    effects: Mapping[str, float] | None = None,
    gradients: Mapping[str, float] | None = None,
) -> Readings:
    """All readings of a model; those of batches are handed in."""
    traffic, effects, gradients = traffic or {}, effects or {}, gradients or {}
    groups = _groups(optimizer)
    trains = flags_after_train(model)
    norms = [
        _norm(name, layer, kind, groups, trains[name], traffic.get(name), effects.get(name))
        for name, layer in model.named_modules()
        if (kind := norm_kind(layer)) is not None
    ]
    weights = [
        _weight(name, model.get_submodule(name), weight, gradients.get(name), groups)
        for name, weight in weights_of(model).items()
    ]
    return Readings(
        tuple(norms), tuple(weights), graph, _optimizer(optimizer), model.training,
        not any(module.training for module in model.modules()), run, tuple(_copies(model)), *_processes(model, norms),
    )  # fmt: skip


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


def _norm(
    name: str,
    layer: Any,
    kind: str,
    groups: Mapping[int, Group],
    trains: bool,
    traffic: Traffic | None,
    effect: float | None,
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
        synchronized=isinstance(layer, nn.SyncBatchNorm) or getattr(layer, "process_group", None) is not None,
        weight=weight,
        bias=bias,
        running=running,
        dtype=next((p.dtype for p in layer.parameters()), None),
        traffic=traffic,
        effect=effect,
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


def _copies(model: nn.Module) -> Iterator[Copy]:
    """Pairs of children of one module that are built alike, where gradients reach one and the other is near it."""
    for name, module in model.named_modules():
        parts = [(f"{name}.{key}" if name else key, child) for key, child in module.named_children()]
        parts = [(key, child) for key, child in parts if any("running_mean" in k for k in child.state_dict())]
        followers = [part for part in parts if not any(p.requires_grad for p in part[1].parameters())]
        sources = [part for part in parts if any(p.requires_grad for p in part[1].parameters())]
        for copy, follower in followers:
            for source, leader in sources:
                known, other = leader.state_dict(), follower.state_dict()
                if {k: v.shape for k, v in known.items()} == {k: v.shape for k, v in other.items()}:
                    weights = _distance(dict(leader.named_parameters()), dict(follower.named_parameters()))
                    if weights < _ALIKE:
                        yield Copy(source, copy, weights, _statistics_apart(known, other))


def _distance(known: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    apart = sum(float((known[k].detach() - other[k].detach()).double().square().sum()) for k in known)
    length = sum(float(value.detach().double().square().sum()) for value in known.values())
    return (apart / max(length, 1e-300)) ** 0.5


def _statistics_apart(known: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    """Of the layer where they are furthest apart."""
    return max(
        float(((known[k] - other[k]).double().square() / (known[_var(k)].double() + 1e-12)).mean().sqrt())
        + float(
            (other[_var(k)].double() + 1e-12)
            .div(known[_var(k)].double() + 1e-12)
            .clamp(min=1e-12)
            .log()
            .abs()
            .mean()
        )
        for k in known
        if k.endswith("running_mean")
    )


def _var(key: str) -> str:
    return key.removesuffix("running_mean") + "running_var"


def _processes(model: nn.Module, norms: list[Norm]) -> tuple[int, tuple[tuple[str, float], ...]]:
    """How many processes there are, and for a wrapped model, which all of them call, where they differ."""
    if not dist.is_available() or not dist.is_initialized():
        return 1, ()
    if not isinstance(model, DistributedDataParallel):
        return dist.get_world_size(), ()
    group: Any = model.process_group
    disagree: list[tuple[str, float]] = []
    for norm in norms:
        if norm.running is not None:
            ours = torch.stack((norm.running.mean, norm.running.var))
            all_of_them = [torch.empty_like(ours) for _ in range(dist.get_world_size(group))]
            dist.all_gather(all_of_them, ours, group=group)
            means = torch.stack([theirs[0] for theirs in all_of_them])
            apart = (means.amax(0) - means.amin(0)) / (ours[1] + norm.eps).sqrt()
            if float(apart.max()) > 0:
                disagree.append((norm.module, float(apart.max())))
    return dist.get_world_size(group), tuple(disagree)
