"""Whether a batch norm and the linear layer beside it can be one layer, in every way in which a model runs."""

from __future__ import annotations

from typing import Any

from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm  # pyright: ignore[reportPrivateUsage]
from torch.nn.utils import parametrize

from normkit.norms.tracking import Tracked
from normkit.surgery.dataflow import Flow, consumer, first_input, owner_of
from normkit.surgery.ours import BatchNorm, has_known_forward
from normkit.surgery.passes import hooked
from normkit.surgery.rewrite import own_graph
from normkit.surgery.trace import UntraceableError

TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
LINEAR = (nn.Conv1d, nn.Conv2d, nn.Conv3d, *TRANSPOSED, nn.Linear)


class RefusalError(Exception):
    """Why a pair is left."""


def _neighbour(flow: Flow, node: fx.Node, step: Any) -> fx.Node | None:
    """The call before or after one, beyond modules that do nothing."""
    found = step(node)
    while type(module := flow.module(found)) is nn.Identity and not hooked(module) and len(found.users) == 1:
        found = step(found)
    return found


def check_norm(flow: Flow, norm: _BatchNorm, node: fx.Node) -> None:
    """Whether a batch norm is a map of each channel by running statistics, and nothing else.

    Raises:
        RefusalError: it is not.
    """
    tracked = isinstance(norm, Tracked)
    by_running = type(norm).forward in (BatchNorm.forward, _BatchNorm.forward, nn.SyncBatchNorm.forward)
    if tracked:
        by_running &= norm.tracking.statistics(False) == "running"
    refusals = {
        "it is prepared for quantization": norm in flow.for_quantization,
        "it is in training mode: model.eval() first": norm.training,
        "it has no running statistics": norm.running_mean is None or norm.running_var is None,
        f"it is called {flow.times(norm)} times": flow.times(norm) > 1,
        "it has hooks": hooked(norm),
        "its parameters are computed": parametrize.is_parametrized(norm),
        "its parameters or statistics are used elsewhere too": flow.reads(norm),
        f"{type(norm).__name__} has a forward of its own: nk.accelerate(model) first": not has_known_forward(
            norm
        ),
        "it does not evaluate by running statistics": not by_running,
        "it has statistics of several domains": tracked and bool(norm.domains),
        "it is called with more than a residual and an activation": len(node.args) > 1
        or not {*node.kwargs} <= {"input", "residual", "activation"},
    }
    _refuse(refusals)


def check_called(norm: _BatchNorm, flows: list[Flow], calls: list[tuple[Flow, fx.Node]]) -> None:
    """Whether all calls of a batch norm are seen.

    Raises:
        RefusalError: it is called out of sight, or not at all.
    """
    if len(calls) < sum(flow.times(norm) > 0 for flow in flows) or not calls:
        raise RefusalError("the forward does not call it")


def beside(
    norm: _BatchNorm,
    flows: list[Flow],
    calls: list[tuple[Flow, fx.Node]],
    unknown: UntraceableError | None,
    *,
    comes_first: bool,
) -> tuple[Any, str]:
    """The linear layer that comes first, or next, in every way to call a model, and its name; None if there is none.

    Raises:
        RefusalError: it and the batch norm cannot be one; the reason begins with its name.
    """
    step = first_input if comes_first else consumer
    pairs = [(flow, node, _neighbour(flow, node, step)) for flow, node in calls]
    layers = {flow.module(neighbour) for flow, _, neighbour in pairs}
    layer = layers.pop()
    if layers or not isinstance(layer, LINEAR):
        return None, ""
    name = ""
    for flow, node, neighbour in pairs:
        assert neighbour is not None
        name = str(neighbour.target)
        try:
            check_pair(flow, norm, node, layer, neighbour, comes_first=comes_first)
            _refuse({
                "it is called without the batch norm where other arguments are given": any(
                    other.times(layer) and not other.times(norm) for other in flows
                ),
                str(unknown): unknown is not None and not _in_one_forward(flow, node, neighbour),
            })  # fmt: skip
        except RefusalError as why:
            raise RefusalError(f"{name}: {why}") from why
    return layer, name


def _in_one_forward(flow: Flow, a: fx.Node, b: fx.Node) -> bool:
    """Whether two calls are in one forward that is known in full, below that of the model."""
    owner = owner_of(a)
    try:
        own_graph(flow.model.get_submodule(owner))
    except UntraceableError:
        return False
    return owner == owner_of(b) != ""


def _check_layer(flow: Flow, layer: nn.Module) -> None:
    own = {id(p) for p in layer.parameters()}
    shared = sum(id(p) in own for m in flow.model.modules() for p in vars(m)["_parameters"].values())
    refusals = {
        "it is prepared for quantization": layer in flow.for_quantization,
        "it is in training mode": layer.training,
        f"it is called {flow.times(layer)} times": flow.times(layer) > 1,
        "it has hooks": hooked(layer),
        f"{type(layer).__name__} has a forward of its own": not any(
            type(layer).forward is kind.forward for kind in LINEAR
        ),
        "its weight is computed": "weight" not in vars(layer)["_parameters"],
        "its parameters are shared with another layer": shared > len(own) or flow.reads(layer),
    }
    _refuse(refusals)


def check_pair(
    flow: Flow, norm: _BatchNorm, node: fx.Node, layer: Any, neighbour: fx.Node, *, comes_first: bool
) -> None:
    """Whether what a batch norm does can as well be done by the layer before it, or after it."""
    _check_layer(flow, layer)
    axes = len(node.meta.get("shape", layer.weight.shape))
    _refuse({
        "hooks see what passes between them": flow.hooks_between(node, neighbour),
        f"its output has {axes} axes, of which batch norm takes another one for channels": axes != layer.weight.dim(),
    })  # fmt: skip
    if comes_first:
        _refuse({"its output is used elsewhere too": _neighbour(flow, neighbour, consumer) is not node})
        return
    refusals = {
        "an activation or a residual is between them": getattr(norm, "activation", None) is not None
        or any(node.kwargs.get(name) is not None for name in ("residual", "activation")),
        "what goes into the batch norm may change between them": any(
            type(flow.module(between)) is not nn.Identity for between in flow.between(node, neighbour)
        ),
    }
    _refuse(refusals)


def check_shift(layer: Any) -> None:
    """Whether every position of a layer's output takes as much of what is added to all of its input.

    A transposed convolution adds up to k weights at a position, of which steps leave out some and borders others:
    only without steps, and where its padding cuts the borders off, has each position all of them.

    Raises:
        RefusalError: it does not.
    """
    if isinstance(layer, nn.Linear):
        return
    if isinstance(layer, TRANSPOSED):
        held: Any = layer  # whose tuples have an entry for each axis
        windows = zip(
            held.kernel_size, held.stride, held.padding, held.dilation, held.output_padding, strict=True
        )
        for kernel, stride, padding, dilation, output_padding in windows:
            if stride > 1 or padding < dilation * (kernel - 1) or output_padding:
                raise RefusalError(
                    f"a transposed convolution with kernel {kernel}, stride {stride} and padding {padding} gives "
                    "positions different shares of its input, so of what the batch norm adds"
                )
    elif layer.padding_mode == "zeros" and _pads(layer):
        raise RefusalError("it pads with zeros, which the batch norm does not move")


def _pads(layer: Any) -> bool:
    if isinstance(layer.padding, str):
        return layer.padding != "valid" and any(k > 1 for k in layer.kernel_size)
    return any(layer.padding)


def _refuse(refusals: dict[str, Any]) -> None:
    for why, holds in refusals.items():
        if holds:
            raise RefusalError(why)
