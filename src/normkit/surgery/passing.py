"""A residual that a forward adds to what another module returns, handed down to the norm at the end of that module."""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx, nn
from torch.fx.node import Argument

from normkit.surgery import activations, handing
from normkit.surgery.dataflow import Flow, owner_of
from normkit.surgery.passes import hooked
from normkit.surgery.trace import UntraceableError


@dataclass(frozen=True)
class Passing:
    """A norm that takes a residual from a forward above the one that calls it.

    Attributes:
        name: of the norm in the model.
        owner: the name of the module whose forward adds.
        way: the names, each within the one before, of the modules from there down to the norm.
        sum: position of the addition among the calls of the owner's forward.
        place: of the norm's result among the two summands.
    """

    name: str
    owner: str
    way: tuple[str, ...]
    sum: int
    place: int


def find(flow: Flow, norm: fx.Node, sum: fx.Node) -> Passing | str:
    """How a norm gets a residual that a forward above adds; or why it does not."""
    name, owner = str(norm.target), owner_of(sum)
    if owner and not name.startswith(f"{owner}."):
        return "its residual is added in the forward of another module, so not fused"
    if flow.hooks_between(norm, sum):
        return "hooks of a module see what is added, so not fused"
    summands = activations.summands(sum)
    assert summands is not None
    way = handing.way_to(flow.model.get_submodule(owner), name.removeprefix(f"{owner}."))
    return Passing(name, owner, way, flow.body(owner).index(sum), int(summands[1] is norm))


def check(owner: nn.Module, graph: fx.Graph, calls: list[fx.Node], one: Passing) -> None:
    """Whether the residual is there when the owner calls the module with the norm.

    Raises:
        UntraceableError: it is not, or this module does more than return what the norm does.
    """
    summed = calls[one.sum]
    child, other = _child_and_other(summed, one)
    if child.op != "call_module" or child.target != one.way[0] or len(child.users) != 1:
        raise UntraceableError("its result goes through more than one forward")
    order = list(graph.nodes)
    for node in order[order.index(child) + 1 : order.index(summed)]:
        module = owner.get_submodule(str(node.target)) if node.op == "call_module" else None
        if not (type(module) is nn.Identity and not hooked(module)) and node.op not in (
            "placeholder",
            "get_attr",
        ):
            raise UntraceableError("its residual is made after it, or changes until it is added")
    assert isinstance(other, fx.Node)
    handing.check(owner, one.way, "residual")


def merge(graph: fx.Graph, one: Passing, calls: list[fx.Node]) -> None:
    """Let the owner's forward give the residual away instead of adding it."""
    summed = calls[one.sum]
    child, residual = _child_and_other(summed, one)
    given: dict[str, Argument] = {**child.kwargs, "residual": residual}
    with graph.inserting_before(summed):
        merged = graph.call_module(str(child.target), child.args, given)
    summed.replace_all_uses_with(merged)
    graph.erase_node(summed)
    graph.erase_node(child)


def _child_and_other(summed: fx.Node, one: Passing) -> tuple[fx.Node, fx.Node]:
    summands = activations.summands(summed)
    assert summands is not None
    return summands[one.place], summands[1 - one.place]
