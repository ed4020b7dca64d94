"""Batch norms taken into the linear layers beside them: `fold`."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm  # pyright: ignore[reportPrivateUsage]
from torch.nn.utils import parametrize

from normkit.kernels.composed import ACTIVATIONS
from normkit.norms import inputs
from normkit.norms.tracing import one_node
from normkit.norms.tracking import Tracked
from normkit.surgery import folding
from normkit.surgery.dataflow import Flow, UntraceableError, consumer, first_input
from normkit.surgery.ours import BatchNorm, has_known_forward
from normkit.surgery.outcome import Outcome, checked, difference, tolerance_of
from normkit.surgery.passes import hooked
from normkit.surgery.walk import become_like, layers_of

_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, *_TRANSPOSED)
_LINEAR = (*_CONVOLUTIONS, nn.Linear)


class Folded(nn.Module):
    """What remains of a batch norm whose map is in another layer: the sum with a residual, the activation.

    Args:
        ndim: of the input, for which folding was right.
        activation: as in `BatchNorm1d`.
    """

    def __init__(self, ndim: int, activation: str | None = None) -> None:
        super().__init__()
        self.ndim = ndim
        self.activation = activation

    @one_node
    def forward(self, input: Tensor, *, residual: Tensor | None = None) -> Tensor:
        """Add the residual, activate."""
        if input.dim() != self.ndim:
            raise ValueError(
                f"this batch norm was folded for input of {self.ndim} axes, got {list(input.shape)}: fold a model "
                "with an example= of this input"
            )
        y = input if residual is None else input + residual
        return ACTIVATIONS[self.activation](y) if self.activation else y

    def extra_repr(self) -> str:
        """The axes of the input, the activation where there is one."""
        return f"ndim={self.ndim}{inputs.repr_activation(self.activation)}"


class _RefusalError(Exception):
    """Why a pair is left."""


def fold(model: nn.Module, example: Any = None) -> Outcome:
    r"""Take each batch norm's map by running statistics into the convolution or linear layer before or after it.

    .. math::
        s = \frac{\gamma}{\sqrt{\sigma^2 + \epsilon}}, \quad
        W' = s W, \quad b' = s (b - \mu) + \beta

    For a model in evaluation mode that will not be trained again. In place: the layer keeps its Parameter objects,
    with new values, and gets a bias where it had none; the batch norm becomes what remains of it, a residual and an
    activation if there are any. Which layer is beside which is read from torch.fx's graph of the forward. Weights
    are computed in float64 and rounded once, and each pair is compared on random values.

    A batch norm goes into a convolution (1-d to 3-d, grouped, transposed) or linear layer whose output it alone
    takes, or else into one that alone takes its output; this if nothing is padded with zeros, which the map would
    not move. It stays, for a reason that is told, where the layer is called more than once, shares its weight,
    computes it (parametrizations), has hooks, or is prepared for quantization; and where the batch norm trains, has
    no running statistics or does not evaluate by them.

    Args:
        model: any module in evaluation mode.
        example: a batch, on which outputs are compared: a tensor, a tuple of arguments, or a dict of named ones.
            Where they differ by more than half of the digits, the model is as it was.

    Returns:
        What was folded into which layer; what was left, and why; in `errors`, the largest error of each pair relative
        to its largest output. The same outputs, up to rounding, for input with as many axes.

    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU()).eval()
    >>> fold(model).done
    {'1': 'folded into 0'}
    >>> model[0].bias.shape, model[1]
    (torch.Size([8]), Folded(ndim=4))
    """
    outcome = Outcome("fold", model)
    return checked(outcome, example, lambda: _fold_all(outcome, example))


def _fold_all(outcome: Outcome, example: Any) -> None:
    names = {norm: name for name, norm in layers_of(outcome.model, _BatchNorm)}
    try:
        flow = _flow(outcome.model)
    except UntraceableError as why:
        outcome.left.update(dict.fromkeys(names.values(), str(why)))
        return
    if example is not None:
        flow.find_shapes(example)
    nodes = {flow.module(node): node for node in flow.calls((_BatchNorm,))}
    for norm, name in names.items():
        if norm in nodes:
            _fold_one(outcome, name, flow, norm, nodes[norm])
        else:
            outcome.left[name] = "the forward does not call it"


def _flow(model: nn.Module) -> Flow:
    """With the linear layers inside of other modules too, where these can be followed."""
    try:
        return Flow(model, (_BatchNorm, *_LINEAR), training=False)
    except UntraceableError:
        return Flow(model, (_BatchNorm,), training=False)


def _fold_one(outcome: Outcome, name: str, flow: Flow, norm: _BatchNorm, node: fx.Node) -> None:
    """Into the layer before it, else into the one after it, else tell why not."""
    reasons: list[str] = []
    try:
        _check_norm(flow, norm, node)
    except _RefusalError as why:
        outcome.left[name] = str(why)
        return
    for step in (first_input, consumer):
        neighbour = _neighbour(flow, node, step)
        layer = flow.module(neighbour)
        if neighbour is None or not isinstance(layer, _LINEAR):
            continue
        try:
            _check_pair(flow, norm, node, layer, neighbour, comes_first=step is first_input)
            outcome.errors[name] = _take_in(layer, norm, comes_first=step is first_input)
        except _RefusalError as why:
            reasons.append(f"{neighbour.target}: {why}")
        else:
            outcome.done[name] = f"folded into {neighbour.target}"
            return
    outcome.left[name] = "; ".join(reasons) or "no convolution or linear layer beside it alone"


def _neighbour(flow: Flow, node: fx.Node, step: Any) -> fx.Node | None:
    """The call before or after one, beyond modules that do nothing."""
    found = step(node)
    while type(module := flow.module(found)) is nn.Identity and not hooked(module) and len(found.users) == 1:
        found = step(found)
    return found


def _check_norm(flow: Flow, norm: _BatchNorm, node: fx.Node) -> None:
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
        "it is called with more than a residual": len(node.args) > 1
        or not {*node.kwargs} <= {"input", "residual"},
    }
    _refuse(refusals)


def _check_layer(flow: Flow, layer: nn.Module) -> None:
    own = {id(p) for p in layer.parameters()}
    shared = sum(id(p) in own for m in flow.model.modules() for p in vars(m)["_parameters"].values())
    refusals = {
        "it is prepared for quantization": layer in flow.for_quantization,
        "it is in training mode": layer.training,
        f"it is called {flow.times(layer)} times": flow.times(layer) > 1,
        "it has hooks": hooked(layer),
        f"{type(layer).__name__} has a forward of its own": not any(
            type(layer).forward is kind.forward for kind in _LINEAR
        ),
        "its weight is computed": "weight" not in vars(layer)["_parameters"],
        "its parameters are shared with another layer": shared > len(own) or flow.reads(layer),
    }
    _refuse(refusals)


def _check_pair(
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
    pads = isinstance(layer, _CONVOLUTIONS) and layer.padding_mode == "zeros" and _pads(layer)
    refusals = {
        "an activation or a residual is between them": "residual" in node.kwargs
        or getattr(norm, "activation", None) is not None,
        "a transposed convolution gives positions different shares of its input": isinstance(
            layer, _TRANSPOSED
        ),
        "it pads with zeros, which the batch norm does not move": pads,
        "what goes into the batch norm may change between them": any(
            type(flow.module(between)) is not nn.Identity for between in flow.between(node, neighbour)
        ),
    }
    _refuse(refusals)


def _pads(layer: Any) -> bool:
    if isinstance(layer.padding, str):
        return layer.padding != "valid" and any(k > 1 for k in layer.kernel_size)
    return any(layer.padding)


def _refuse(refusals: dict[str, Any]) -> None:
    for why, holds in refusals.items():
        if holds:
            raise _RefusalError(why)


def _take_in(layer: Any, norm: Any, *, comes_first: bool) -> float:
    """Give a layer the map of a batch norm before or after it; the error, relative to the largest output."""
    scale, shift = folding.affine_of(norm.running_mean, norm.running_var, norm.weight, norm.bias, norm.eps)
    groups, bias = getattr(layer, "groups", 1), layer.bias
    if comes_first:
        transposed = isinstance(layer, _TRANSPOSED)
        weight, bias = folding.after(layer.weight, bias, scale, shift, groups=groups, transposed=transposed)
    else:
        weight, bias = folding.before(layer.weight, bias, scale, shift, groups=groups)
    weight, bias = (value.detach().to(layer.weight.dtype) for value in (weight, bias))
    if not (weight.isfinite().all() and bias.isfinite().all()):
        raise _RefusalError(f"the new weight or bias would not be finite in {weight.dtype}")
    error = _error(layer, weight, bias, scale, shift, comes_first)
    if not error <= tolerance_of(layer.weight):
        raise _RefusalError(f"outputs on random values differ by {error:.1e} in {layer.weight.dtype}")
    layer.weight.data = weight
    if layer.bias is None:
        layer.bias = nn.Parameter(bias, requires_grad=layer.weight.requires_grad)
    else:
        layer.bias.data = bias
    ndim = layer.weight.dim()
    become_like(norm, Folded(ndim, getattr(norm, "activation", None)))
    return error


@torch.no_grad()
def _error(
    layer: Any, weight: Tensor, bias: Tensor, scale: Tensor, shift: Tensor, comes_first: bool
) -> float:
    """How far a layer with a new weight and bias is from the layer and the map, in float64, on random values."""
    old, new = (copy.deepcopy(layer).to("cpu", torch.float64) for _ in range(2))
    new.weight.data = weight.to("cpu", torch.float64)
    new.bias = nn.Parameter(bias.to("cpu", torch.float64))
    if isinstance(layer, nn.Linear):
        x = folding.random_like([4, layer.in_features])
    else:
        padding = [0] * 3 if isinstance(layer.padding, str) else layer.padding
        windows = zip(layer.kernel_size, layer.stride, padding, layer.dilation, strict=False)
        x = folding.random_like(
            [1, layer.in_channels, *(folding.example_size(*window) for window in windows)]
        )
    scale, shift = (value.cpu().view(-1, *[1] * (x.dim() - 2)) for value in (scale, shift))
    expected = old(x) * scale + shift if comes_first else old(x * scale + shift)
    return difference(expected, new(x))
