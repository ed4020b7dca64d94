"""Fusing all over a model: what every way through it proves, in the forwards that it concerns."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

from torch import fx, nn

from normkit.surgery import fusion, handing, passing
from normkit.surgery.activating import FAR, fuse_above
from normkit.surgery.dataflow import Flow, calls_in, flows_of
from normkit.surgery.fusion import Found, Fusion
from normkit.surgery.ours import NORMS
from normkit.surgery.outcome import Outcome
from normkit.surgery.passing import Passing
from normkit.surgery.rewrite import own_calls, own_graph, rewrite
from normkit.surgery.trace import UntraceableError


@dataclass
class _Plan:
    """What is to be fused in the forward of one module."""

    alone: dict[str, nn.Module] = field(
        default_factory=lambda: {}
    )  # activations that will do nothing, by norm
    fusions: list[Fusion] = field(default_factory=lambda: [])
    passings: list[Passing] = field(default_factory=lambda: [])


def fuse(outcome: Outcome, example: Any) -> None:
    """Let the norms of a model do the additions and activations after them that they can."""
    try:
        flows, unknown = flows_of(outcome.model, NORMS, (False, True))
    except UntraceableError as why:
        outcome.left[""] = f"nothing is fused: {why}"
        return
    if unknown is not None:
        outcome.left[""] = f"only what modules below it do is fused: {unknown}"
    if example is not None:
        for evaluating, training in zip(flows[::2], flows[1::2], strict=True):
            evaluating.find_shapes(example)
            training.take_shapes(evaluating)
    found = [Found(flow, NORMS) for flow in flows]
    for one in found:
        outcome.left.update({name: why for name, why in one.left.items() if name not in outcome.left})
    plans = _plans(flows, found)
    for owner, plan in sorted(plans.items(), key=_depth, reverse=True):  # inner ones may yet be handed things
        incomplete = None if unknown is None else _incomplete(outcome.model, owner)
        if incomplete is not None:
            _leave(outcome, [*plan.alone, *(one.name for one in (*plan.fusions, *plan.passings))], incomplete)
        else:
            _carry_out(outcome, owner, plan, flows, found[0])
    if FAR in outcome.left.values():
        fuse_above(outcome)


def _depth(plan: tuple[str, _Plan]) -> int:
    return len(plan[0].split(".")) if plan[0] else 0


def _incomplete(model: nn.Module, owner: str) -> UntraceableError | None:
    """Why a module's own forward is not known in full, whoever calls it."""
    try:
        own_graph(model.get_submodule(owner))
    except UntraceableError as why:
        return why
    return None


def _plans(flows: list[Flow], found: list[Found]) -> dict[str, _Plan]:
    """What holds in all flows, by the module whose forward it is in."""
    plans: dict[str, _Plan] = defaultdict(_Plan)
    for name in dict.fromkeys(name for one in found for name in (*one.fusions, *one.passings)):
        calling = [(flow, one) for flow, one in zip(flows, found, strict=True) if _calls(flow, name)]
        fusions = [one.fusions.get(name) for _, one in calling]
        passings = [one.passings.get(name) for _, one in calling]
        if None not in passings and len({*passings}) == 1:
            assert passings[0] is not None
            plans[passings[0].owner].passings.append(passings[0])
            continue
        if None in fusions:
            continue
        alone = {_module_alone(flow, one.fusions[name]) for flow, one in calling}
        first = fusions[0]
        assert first is not None
        if len(alone) == 1 and (activation := alone.pop()) is not None:
            if all(flow.times(activation) == _calls(flow, name) for flow in flows):
                plans[first.owner].alone[name] = activation
        elif len({*fusions}) == 1:
            plans[first.owner].fusions.append(first)
    return plans


def _calls(flow: Flow, name: str) -> int:
    return flow.times(flow.model.get_submodule(name))


def _module_alone(flow: Flow, one: Fusion) -> nn.Module | None:
    """The activation, where it is all that is fused, and a module that serves nobody else."""
    activation = flow.module(flow.body(one.owner)[one.last])
    alone = one.sum is None and activation is not None and flow.times(activation) == 1
    return activation if alone else None


def _carry_out(outcome: Outcome, owner: str, plan: _Plan, flows: list[Flow], found: Found) -> None:
    """Fuse what is in one forward: by a module that does nothing now where that will do, else by a new forward."""
    module = outcome.model.get_submodule(owner)
    for name, activation in plan.alone.items():
        _replace(outcome.model, activation)
        _tell(outcome, name, residual=False, activation=found.fusions[name].activation)
    if not plan.fusions and not plan.passings:
        return
    try:
        graph = own_graph(module)
        calls = own_calls(graph, module, owner, *flows)
    except UntraceableError as why:
        _leave(outcome, [one.name for one in (*plan.fusions, *plan.passings)], why)
        return
    if type(module).forward is nn.Sequential.forward:
        _fuse_in_list(module, graph, calls, plan.fusions)
    else:
        _rewrite(outcome, module, graph, calls, plan)
    for one in plan.fusions:
        _tell(outcome, one.name, residual=one.sum is not None, activation=one.activation)


def _fuse_in_list(module: nn.Module, graph: fx.Graph, calls: list[fx.Node], fusions: list[Fusion]) -> None:
    """In a Sequential, which goes on to be a list of modules, by other members."""
    names = dict(zip(calls_in(graph), vars(module)["_modules"], strict=True))  # each is called once, in order
    for one in fusions:
        setattr(module, names[calls[one.last]], nn.Identity())


def _rewrite(outcome: Outcome, module: nn.Module, graph: fx.Graph, calls: list[fx.Node], plan: _Plan) -> None:
    """By a new forward."""
    for one in plan.passings:
        try:
            passing.check(module, graph, calls, one)
        except UntraceableError as why:
            _leave(outcome, [one.name], why)
            continue
        handing.hand_on(module, one.way, "residual")
        passing.merge(graph, one, calls)
        _tell(outcome, one.name, residual=True, activation=None)
    for one in plan.fusions:
        fusion.merge(graph, one, calls)
    rewrite(module, graph)


def _leave(outcome: Outcome, names: list[str], why: UntraceableError) -> None:
    outcome.left.update(dict.fromkeys(names, f"not fused with what follows: {why}"))


def _tell(outcome: Outcome, name: str, *, residual: bool, activation: str | None) -> None:
    """Let the norm activate, and say what it does now."""
    layer: Any = outcome.model.get_submodule(name)
    layer.activation = activation
    parts = ["residual"] * residual + ([activation] if activation else [])
    outcome.done[name] = f"{type(layer).__name__} with {' and '.join(parts)}"


def _replace(model: nn.Module, activation: nn.Module) -> None:
    """Put a module that does nothing wherever an activation stands."""
    identity = nn.Identity().train(activation.training)
    for module in model.modules():
        for name, child in vars(module)["_modules"].items():
            if child is activation:
                setattr(module, name, identity)
