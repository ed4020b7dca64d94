"""What follows a norm and can be part of it: an addition, an activation; where a model's dataflow proves it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx, nn
from torch.fx.node import Argument

from normkit.surgery import activations, passing
from normkit.surgery.activating import FAR, activation_of
from normkit.surgery.dataflow import Flow, consumer, first_input, owner_of
from normkit.surgery.ours import BatchNorm, has_known_forward
from normkit.surgery.passes import hooked
from normkit.surgery.passing import Passing
from normkit.surgery.shapes import Forms

_FRESH = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
    nn.Linear,
)


@dataclass(frozen=True)
class Fusion:
    """A norm and what goes into it, as positions among the calls of the forward that makes them.

    Attributes:
        name: of the norm in the model.
        owner: the name of the module whose forward makes these calls.
        norm: position of the call of the norm.
        sum: position of the addition, if there is one.
        activation: our name of the activation, if there is one.
        last: position of the last of these calls, whose result is the norm's from now on.
    """

    name: str
    owner: str
    norm: int
    sum: int | None
    activation: str | None
    last: int


class Found:
    """What can be fused in one mode and one way to call a model, what else follows a norm, and why it stays.

    Attributes:
        fusions: by the name of the norm, as are the following.
        passings: where a forward above adds a residual.
        left: the reasons.
    """

    def __init__(self, flow: Flow, kinds: tuple[type[nn.Module], ...]) -> None:
        self.fusions: dict[str, Fusion] = {}
        self.passings: dict[str, Passing] = {}
        self.left: dict[str, str] = {}
        forms, taken = Forms(flow), set[fx.Node]()
        for node in reversed(flow.calls(kinds)):  # of two norms that are added, the later one has the sum
            if consumer(node) in taken:
                continue
            chain, why = _chain(flow, forms, node)
            taken |= set(chain)
            if isinstance(why, Passing):
                self.passings = {why.name: why, **self.passings}
                taken |= set(node.users)
                why = FAR if activation_of(flow, consumer(*node.users)) else None
            if why:
                self.left = {str(node.target): why, **self.left}
            if len(chain) > 1:
                one = _fusion(flow, chain)
                self.fusions = {one.name: one, **self.fusions}


def _fusion(flow: Flow, chain: list[fx.Node]) -> Fusion:
    body = flow.body(owner_of(chain[0]))
    summed = next((body.index(node) for node in chain if activations.summands(node)), None)
    activation = activation_of(flow, chain[-1])
    norm, last = (body.index(node) for node in (chain[0], chain[-1]))
    return Fusion(str(chain[0].target), owner_of(chain[0]), norm, summed, activation, last)


def _chain(flow: Flow, forms: Forms, node: fx.Node) -> tuple[list[fx.Node], str | Passing | None]:
    """The norm's call and those that go into it; and why those after them do not, or how a sum far from it does."""
    chain, norm = [node], flow.module(node)
    following = consumer(node)
    if norm is None or following is None or getattr(norm, "activation", "") is not None or node.kwargs:
        return chain, None
    if activations.summands(following) is None and activation_of(flow, following) is None:
        other = flow.module(following)
        foreign = f"{type(other).__name__} is not one of our activations"
        return chain, foreign if activations.is_foreign(other) else None
    if not has_known_forward(norm):
        return chain, f"{type(norm).__name__} does more in its forward than normalize"
    if flow.times(norm) > 1:
        return chain, f"called {flow.times(norm)} times, so not fused"
    if hooked(norm):
        return chain, "its hooks see what it returns, so not fused"
    why = None
    if activations.summands(following):
        why = _why_not_sum(flow, forms, node, following)
        if why:
            return chain, why
        if owner_of(following) != owner_of(node):
            return chain, passing.find(flow, node, following)
        if not _can_wait(flow, node, following):
            return chain, "its input may change before its residual is there, so not fused"
        chain.append(following)
        following = consumer(following)
    if following is not None and activation_of(flow, following):
        why = _why_not_activation(flow, node, following)
        if why is None:
            chain.append(following)
    return chain, why


def _why_not_activation(flow: Flow, norm: fx.Node, node: fx.Node) -> str | None:
    if owner_of(node) != owner_of(norm):
        return FAR
    module = flow.module(node)
    if module is not None and hooked(module):
        return f"hooks of {node.target} see what is activated, so not fused"
    return None


def _why_not_sum(flow: Flow, forms: Forms, norm: fx.Node, node: fx.Node) -> str | None:
    first, second = activations.summands(node) or (norm, norm)
    other = second if first is norm else first
    if not isinstance(flow.module(norm), BatchNorm):
        return "only batch norm takes a residual"
    if first is not norm and activations.changes_first(node):
        return "its residual is changed in place by the addition, so not fused"
    if forms.same(norm, other):
        return None
    if "shape" not in norm.meta or "shape" not in other.meta:
        return "whether the residual has its shape is not known: pass an example= to fuse it"
    if any(norm.meta[key] != other.meta[key] for key in ("shape", "dtype")):
        return "the other summand has another shape or dtype, so not fused"
    return None


def _can_wait(flow: Flow, norm: fx.Node, until: fx.Node) -> bool:
    """Whether a norm gives the same when it runs only just before a later call.

    Nothing else runs between them, or its input is new memory that nothing else knows.
    """
    source = first_input(norm)
    alone = source is not None and isinstance(flow.module(source), _FRESH) and consumer(source) is norm
    return alone or not flow.between(norm, until)


def merge(graph: fx.Graph, fusion: Fusion, calls: list[fx.Node]) -> None:
    """Let the norm in a graph do what goes into it.

    Args:
        graph: of the forward that makes these calls.
        fusion: what to merge.
        calls: in the graph, to which the positions refer.
    """
    norm, last = calls[fusion.norm], calls[fusion.last]
    place = (
        norm if fusion.sum is None else calls[fusion.sum]
    )  # where the residual is there, and not yet changed
    chain = [calls[i] for i in sorted({fusion.norm, fusion.sum or fusion.norm, fusion.last}, reverse=True)]
    residual: dict[str, Argument] = {}
    if fusion.sum is not None:
        summands = activations.summands(calls[fusion.sum])
        assert summands is not None
        residual = {"residual": summands[summands[0] is norm]}
    with graph.inserting_before(place):
        merged = graph.call_module(str(norm.target), norm.args, residual)
    last.replace_all_uses_with(merged)
    for node in chain:
        graph.erase_node(node)
