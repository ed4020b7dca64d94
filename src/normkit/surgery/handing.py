"""What a forward gives to the norm at the end of a module below it, handed on by the modules between."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

from torch import Tensor, fx, nn

from normkit.kernels.composed import ACTIVATIONS
from normkit.surgery import activations
from normkit.surgery.passes import hooked
from normkit.surgery.rewrite import is_written, own_graph, rewrite
from normkit.surgery.trace import HANDED, UntraceableError
from normkit.surgery.walk import become, joined

_TAKES = "takes_what_is_handed_on"  # attribute of modules


class HandsOn(nn.Module):
    """What a list of modules becomes that hands on what it is given to its last, and to any the activation after it.

    As long as that module is one that surgery prepared, and its activation has no hooks; modules may come and go.
    """

    takes_handed = True

    def forward(
        self, input: Tensor, *, residual: Tensor | None = None, activation: str | None = None
    ) -> Tensor:
        """Each module in turn."""
        members: list[nn.Module] = [*vars(self)["_modules"].values()]
        x, done = input, False
        for module, following in zip(members, (*members[1:], None), strict=True):
            prepared = _TAKES in vars(module)
            if done:
                done = False
            elif prepared and following is None:
                given = {"residual": residual, "activation": activation}
                return module(x, **{name: value for name, value in given.items() if value is not None})
            elif prepared and following is not None and not hooked(following):
                fused = activations.of_module(following)
                x, done = module(x, activation=fused) if fused else module(x), fused is not None
            else:
                x = module(x)
        x = x if residual is None else x + residual  # for a last module that does not take it
        return ACTIVATIONS[activation](x) if activation else x


def takes(norm: nn.Module) -> tuple[str, ...]:
    """What a norm takes beside its input of that which can be handed on."""
    given = inspect.signature(type(norm).forward).parameters
    return tuple(name for name in HANDED if name in given)


def way_to(module: nn.Module, path: str) -> tuple[str, ...]:
    """The names down to a module, without what is only a container on the way, and no step of the call."""
    way: list[str] = []
    at: nn.Module = module
    pending: list[str] = []
    for part in path.split("."):
        at = at.get_submodule(part)
        pending.append(part)
        if not isinstance(at, (nn.ModuleList, nn.ModuleDict)):
            way.append(".".join(pending))
            pending = []
    return tuple(way)


def is_list(module: nn.Module) -> bool:
    """Whether a module only calls one module after the other."""
    return type(module).forward in (nn.Sequential.forward, HandsOn.forward)


def check(owner: nn.Module, way: tuple[str, ...], what: str) -> None:
    """Whether the modules on a way can hand on to the norm at its end.

    Args:
        owner: whose forward is to give it.
        way: names, each within the one before, from there down to the norm.
        what: a residual or an activation.

    Raises:
        UntraceableError: one does more than return what the norm does.
    """
    for at, inner in _between(owner, way):
        if not is_list(at) and not _hands_on(at, what):
            call = _last_call(own_graph(at), inner)
            if what in call.kwargs:
                raise UntraceableError(f"its module has a {what} already")
        elif is_list(at) and next(reversed(vars(at)["_modules"])) != inner:
            raise UntraceableError("its norm is not the last of its list")


def hand_on(owner: nn.Module, way: tuple[str, ...], what: str) -> None:
    """Let the modules on a way, which was checked, hand on all that the norm at its end takes."""
    norm = owner
    for name in way:
        norm = norm.get_submodule(name)
        vars(norm)[_TAKES] = True
    for at, inner in _between(owner, way):
        if is_list(at):
            as_handing(at)
        elif not _hands_on(at, what):
            graph = own_graph(at)
            call, inputs = _last_call(graph, inner), graph.find_nodes(op="placeholder")
            last = [node for node in inputs if not str(node.target).startswith("**")][-1]
            more: dict[str, Any] = {}
            for name in takes(norm):
                if name not in call.kwargs:
                    with graph.inserting_after(last):
                        last = more[name] = graph.placeholder(name, default_value=None)
            call.kwargs = {**call.kwargs, **more}
            rewrite(at, graph)


def as_handing(module: nn.Module) -> None:
    """Let a list of modules be one that hands on."""
    if not isinstance(module, HandsOn):
        become(module, joined(type(module), HandsOn, type(module)))


def _between(owner: nn.Module, way: tuple[str, ...]) -> Iterator[tuple[nn.Module, str]]:
    """The modules between an owner and the norm, each with the name of the next one inside."""
    at = owner
    for name, inner in pairwise(way):
        at = at.get_submodule(name)
        yield at, inner


def _hands_on(module: nn.Module, what: str) -> bool:
    """Whether a forward that was written anew takes this already; what others do with it nobody knows."""
    return is_written(module) and what in inspect.signature(type(module).forward).parameters


def _last_call(graph: fx.Graph, inner: str) -> fx.Node:
    """The call of a module inside, whose result is what the forward returns."""
    (output,) = graph.find_nodes(op="output")
    call = output.args[0]
    if (
        not isinstance(call, fx.Node)
        or call.op != "call_module"
        or call.target != inner
        or len(call.users) != 1
    ):
        raise UntraceableError("its module does more than return what it gives")
    if any(node.target in HANDED for node in graph.find_nodes(op="placeholder")):
        raise UntraceableError("its module has a residual or an activation already")
    return call
