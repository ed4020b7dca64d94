"""An activation that a forward applies to what another module returns, handed down to the norm at the end of it."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

from torch import fx, nn

from normkit.surgery import activations, handing
from normkit.surgery.dataflow import Flow, consumer, flows_of, owner_of
from normkit.surgery.ours import NORMS, has_known_forward
from normkit.surgery.outcome import Outcome
from normkit.surgery.passes import hooked
from normkit.surgery.rewrite import own_calls, own_graph, rewrite
from normkit.surgery.trace import UntraceableError

FAR = "its activation runs in the forward of another module, so not fused"


@dataclass(frozen=True)
class Above:
    """An activation in a forward above the one that calls the norm.

    Attributes:
        name: of the norm in the model.
        owner: the name of the module whose forward activates.
        way: the names, each within the one before, of the modules from there down to the norm.
        place: position of the activation among the calls of the owner's forward.
        activation: our name of it.
    """

    name: str
    owner: str
    way: tuple[str, ...]
    place: int
    activation: str


def fuse_above(outcome: Outcome) -> None:
    """Let norms do the activations above them, in a model in which all else is fused."""
    flows, _ = flows_of(outcome.model, NORMS, (False, True))
    plans: dict[str, list[Above]] = defaultdict(list)
    for name in [name for name, why in outcome.left.items() if why == FAR]:
        found = [_find(flow, name) for flow in flows if flow.times(outcome.model.get_submodule(name))]
        one = found[0] if found else FAR
        if isinstance(one, Above) and len({*found}) == 1:
            plans[one.owner].append(one)
        else:
            outcome.left[name] = next((why for why in found if isinstance(why, str)), FAR)
    for owner, ones in plans.items():
        module = outcome.model.get_submodule(owner)
        reasons = _in_list(module, ones) if handing.is_list(module) else _in_forward(module, ones, flows)
        for one in ones:
            why = reasons.get(one)
            outcome.left[one.name] = f"{FAR}: {why}"
            if why is None:
                _tell(outcome, one)


def _find(flow: Flow, name: str) -> Above | str:
    """The activation that follows a norm in a forward above; or why it stays there."""
    norm = flow.model.get_submodule(name)
    (node,) = (node for node in flow.calls((type(norm),)) if flow.module(node) is norm)
    following = consumer(node)
    activation = activation_of(flow, following)
    if following is None or activation is None:
        return FAR
    owner = owner_of(following)
    if owner and not name.startswith(f"{owner}."):
        return FAR
    if "activation" not in handing.takes(norm) or not has_known_forward(norm):
        return f"{type(norm).__name__} takes no activation from a forward above"
    activating = flow.module(following)
    if flow.hooks_between(node, following) or (activating is not None and hooked(activating)):
        return "hooks see what is activated, so not fused"
    way = handing.way_to(flow.model.get_submodule(owner), name.removeprefix(f"{owner}."))
    return Above(name, owner, way, flow.body(owner).index(following), activation)


def activation_of(flow: Flow, node: fx.Node | None) -> str | None:
    """Our name of the activation that a call is."""
    if node is None:
        return None
    return activations.of_module(flow.module(node)) or activations.of_call(node)


def _in_list(module: nn.Module, ones: list[Above]) -> dict[Above, str]:
    """In a list of modules, which goes on to be one, and holds the activation as before; why some stay."""
    left: dict[Above, str] = {}
    for one in ones:
        try:
            handing.check(module, one.way, "activation")
        except UntraceableError as why:
            left[one] = str(why)
            continue
        handing.hand_on(module, one.way, "activation")
        handing.as_handing(module)
    return left


def _in_forward(module: nn.Module, ones: list[Above], flows: list[Flow]) -> dict[Above, str]:
    """In a new forward; why some stay."""
    left: dict[Above, str] = {}
    try:
        graph = own_graph(module)
        calls = own_calls(graph, module, ones[0].owner, *flows)
    except UntraceableError as why:
        return dict.fromkeys(ones, str(why))
    for one in ones:
        node = calls[one.place]
        child: Any = node.args[0] if node.args else None
        try:
            if not isinstance(child, fx.Node) or child.target != one.way[0] or len(child.users) != 1:
                raise UntraceableError("its result goes through more than one forward")
            handing.check(module, one.way, "activation")
        except UntraceableError as why:
            left[one] = str(why)
            continue
        handing.hand_on(module, one.way, "activation")
        child.kwargs = {**child.kwargs, "activation": one.activation}
        node.replace_all_uses_with(child)
        graph.erase_node(node)
    if len(left) < len(ones):
        rewrite(module, graph)
    return left


def _tell(outcome: Outcome, one: Above) -> None:
    del outcome.left[one.name]
    before = outcome.done.get(one.name) or type(outcome.model.get_submodule(one.name)).__name__
    outcome.done[one.name] = f"{before} {'and' if ' with ' in before else 'with'} {one.activation}"
