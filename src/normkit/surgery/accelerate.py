"""torch's norms as ours, with what follows them: `accelerate`."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from torch import fx, nn

from normkit.errors import InputError
from normkit.surgery import fusion
from normkit.surgery.dataflow import Flow, UntraceableError, calls_in
from normkit.surgery.fusion import Fusion
from normkit.surgery.imitate import imitate, is_imitated
from normkit.surgery.ours import NORMS, become_ours, has_known_forward, is_ours, our_class
from normkit.surgery.outcome import Outcome, checked
from normkit.surgery.rewrite import own_calls, own_graph, rewrite
from normkit.surgery.walk import for_quantization, layers_of


def accelerate(model: nn.Module, example: Any = None) -> Outcome:
    r"""Let all norms of a model be ours, and let batch norm do the addition and the activation that follow it.

    .. math:: f(\mathrm{norm}(x) + r) \text{ in one pass}

    In place: layers remain the objects that they are, with their parameters (which an optimizer may hold), buffers,
    hooks, flags, names and state_dict keys; so do all modules above them, each of which computes what it did.
    Batch, instance, group, layer and RMS norm of torch become ours, and so does a subclass that leaves normalizing to
    its base, or whose forward is torch's norm with something around it, as those of timm: dropout that is none and an
    activation, other axes.

    An activation of ours (also in place) and, with an example, an addition are fused where torch.fx's graph of the
    forward, in training and in evaluation, proves that they are all that takes the norm's output and that one forward
    makes these calls. A module that was the activation becomes `torch.nn.Identity`; where it serves others too, or
    where a function activates or adds, the forward around it is written anew. Numbers that such a forward takes from
    attributes are those of now. Layers shared by several calls, or with hooks, are not fused; nor is anything in a
    model that torch.fx cannot follow.

    Args:
        model: any module.
        example: a batch, on which outputs in evaluation are compared: a tensor, a tuple of arguments, or a dict of
            named ones. Where they differ by more than half of the digits, the model is as it was. It shows the
            shapes of what is added as well; without it, additions stay.

    Returns:
        What each layer is now; what was left, and why.

    Raises:
        Exception: what the model raises on the example; the model is as it was.

    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
    >>> accelerate(model)
    accelerate: 1 changed, 0 left
      1  BatchNorm2d with relu
    """
    outcome = Outcome("accelerate", model)
    return checked(outcome, example, lambda: _accelerate(outcome, example))


def _accelerate(outcome: Outcome, example: Any) -> None:
    quantized = for_quantization(outcome.model)
    for name, layer in list(layers_of(outcome.model, NORMS)):
        if layer in quantized:
            outcome.left[name] = "it is prepared for quantization"
            continue
        if is_ours(type(layer)) or is_imitated(layer):
            continue
        try:
            _become_ours(name, layer)
        except (InputError, UntraceableError) as why:
            outcome.left[name] = str(why)
        else:
            outcome.done[name] = type(layer).__name__
    if isinstance(outcome.model, NORMS):
        return
    try:
        flows = [Flow(outcome.model, NORMS, training=training) for training in (False, True)]
    except UntraceableError as why:
        outcome.left[""] = f"nothing is fused: {why}"
        return
    for owner, fusions in _proved(outcome, flows, example).items():
        _fuse(outcome, owner, fusions, flows)


def _become_ours(name: str, layer: nn.Module) -> None:
    try:
        target = our_class(name, layer)
    except InputError:
        if has_known_forward(layer):
            raise
        imitate(name, layer)
    else:
        become_ours(name, layer, target)


def _proved(outcome: Outcome, flows: list[Flow], example: Any) -> dict[str, list[Fusion]]:
    """The fusions that hold in all modes, by the module whose forward they are in."""
    found: list[list[Fusion]] = []
    if example is not None:
        flows[0].find_shapes(example)
        flows[1].take_shapes(flows[0])
    for flow in flows:
        fusions, left = fusion.find(flow, NORMS)
        found.append(fusions)
        outcome.left.update({name: why for name, why in left.items() if name not in outcome.left})
    by_owner: dict[str, list[Fusion]] = defaultdict(list)
    for one in found[0]:
        if all(one in others for others in found):
            by_owner[one.owner].append(one)
    return by_owner


def _fuse(outcome: Outcome, owner: str, fusions: list[Fusion], flows: list[Flow]) -> None:
    """Fuse what is in one forward: by a module that does nothing now where that will do, else by a new forward."""
    body = flows[0].body(owner)
    alone = {one: activation for one in fusions if (activation := _module_alone(flows[0], body, one))}
    rest = [one for one in fusions if one not in alone]
    try:
        _fuse_inside(outcome.model.get_submodule(owner), owner, rest, flows)
    except UntraceableError as why:
        outcome.left.update({one.name: f"not fused with what follows: {why}" for one in rest})
        rest = []
    for activation in alone.values():
        _replace(outcome.model, activation)
    for one in (*alone, *rest):
        layer: Any = outcome.model.get_submodule(one.name)
        layer.activation = one.activation
        parts = [
            *(["residual"] if one.sum is not None else []),
            *([one.activation] if one.activation else []),
        ]
        outcome.done[one.name] = f"{type(layer).__name__} with {' and '.join(parts)}"


def _module_alone(flow: Flow, body: list[fx.Node], one: Fusion) -> nn.Module | None:
    """The activation, where it is all that is fused, and a module that serves nobody else."""
    activation = flow.module(body[one.last])
    alone = one.sum is None and activation is not None and flow.times(activation) == 1
    return activation if alone else None


def _fuse_inside(module: nn.Module, owner: str, fusions: list[Fusion], flows: list[Flow]) -> None:
    """Fuse by another forward, or, in a Sequential, which goes on to be a list of modules, by other members."""
    if not fusions:
        return
    graph = own_graph(module)
    calls = own_calls(graph, module, owner, *flows)
    if type(module).forward is nn.Sequential.forward:
        names = dict(
            zip(calls_in(graph), vars(module)["_modules"], strict=True)
        )  # each is called once, in order
        for one in fusions:
            setattr(module, names[calls[one.last]], nn.Identity())
        return
    for one in fusions:
        fusion.merge(graph, one, calls)
    rewrite(module, graph)


def _replace(model: nn.Module, activation: nn.Module) -> None:
    """Put a module that does nothing wherever an activation stands."""
    identity = nn.Identity().train(activation.training)
    for module in model.modules():
        for name, child in vars(module)["_modules"].items():
            if child is activation:
                setattr(module, name, identity)
