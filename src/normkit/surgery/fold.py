"""Batch norms taken into the linear layers beside them: `fold`."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm  # pyright: ignore[reportPrivateUsage]

from normkit.kernels.composed import ACTIVATIONS
from normkit.norms import inputs
from normkit.norms.tracing import one_node
from normkit.surgery import folding
from normkit.surgery.beside import (
    LINEAR,
    TRANSPOSED,
    RefusalError,
    beside,
    check_called,
    check_norm,
    check_shift,
)
from normkit.surgery.dataflow import Flow, flows_of
from normkit.surgery.outcome import Outcome, checked, difference, tolerance_of
from normkit.surgery.trace import UntraceableError
from normkit.surgery.walk import become_like, layers_of


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
    def forward(
        self, input: Tensor, *, residual: Tensor | None = None, activation: str | None = None
    ) -> Tensor:
        """Add the residual, activate."""
        if input.dim() != self.ndim:
            raise ValueError(
                f"this batch norm was folded for input of {self.ndim} axes, got {list(input.shape)}: fold a model "
                "with an example= of this input"
            )
        y = input if residual is None else input + residual
        activation = self.activation if activation is None else activation
        return ACTIVATIONS[activation](y) if activation else y

    def extra_repr(self) -> str:
        """The axes of the input, the activation where there is one."""
        return f"ndim={self.ndim}{inputs.repr_activation(self.activation)}"


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
    not move, and into a transposed one only without stride and with the padding that cuts its borders off. Optional
    arguments of the forward are followed left out and given. It stays, for a reason that is told, where the layer is
    called more than once, shares its weight, computes it (parametrizations), has hooks, or is prepared for
    quantization; and where the batch norm trains, has no running statistics or does not evaluate by them.

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
    if not names:
        outcome.note = "the model has no batch norm"
        return
    try:
        flows, unknown = _flows(outcome.model)
    except UntraceableError as why:
        outcome.left.update(dict.fromkeys(names.values(), str(why)))
        return
    if example is not None:
        for flow in flows:
            flow.find_shapes(example)
    for norm, name in names.items():
        _fold_one(outcome, name, norm, flows, unknown)


def _flows(model: nn.Module) -> tuple[list[Flow], UntraceableError | None]:
    """With the linear layers inside of other modules too, where these can be followed."""
    try:
        return flows_of(model, (_BatchNorm, *LINEAR), (False,))
    except UntraceableError:
        return flows_of(model, (_BatchNorm,), (False,))


def _fold_one(
    outcome: Outcome, name: str, norm: _BatchNorm, flows: list[Flow], unknown: UntraceableError | None
) -> None:
    """Into the layer before it, else into the one after it, else tell why not."""
    calls = [
        (flow, node) for flow in flows for node in flow.calls((_BatchNorm,)) if flow.module(node) is norm
    ]
    reasons: list[str] = []
    try:
        check_called(norm, flows, calls)
        for call in calls:
            check_norm(call[0], norm, call[1])
    except RefusalError as why:
        outcome.left[name] = str(why)
        return
    for comes_first in (True, False):
        try:
            layer, told = beside(norm, flows, calls, unknown, comes_first=comes_first)
        except RefusalError as why:
            reasons.append(str(why))
            continue
        if layer is None:
            continue
        try:
            outcome.errors[name] = _take_in(layer, norm, comes_first=comes_first)
        except RefusalError as why:
            reasons.append(f"{told}: {why}")
        else:
            outcome.done[name] = f"folded into {told}"
            return
    outcome.left[name] = "; ".join(reasons) or "no convolution or linear layer beside it alone"


def _take_in(layer: Any, norm: Any, *, comes_first: bool) -> float:
    """Give a layer the map of a batch norm before or after it; the error, relative to the largest output."""
    scale, shift = folding.affine_of(norm.running_mean, norm.running_var, norm.weight, norm.bias, norm.eps)
    groups, bias = getattr(layer, "groups", 1), layer.bias
    if not comes_first and shift.any():
        check_shift(layer)
    way = folding.after if comes_first else folding.before
    transposed = isinstance(layer, TRANSPOSED)
    weight, bias = way(layer.weight, bias, scale, shift, groups=groups, transposed=transposed)
    weight, bias = (value.detach().to(layer.weight.dtype) for value in (weight, bias))
    if not (weight.isfinite().all() and bias.isfinite().all()):
        raise RefusalError(f"the new weight or bias would not be finite in {weight.dtype}")
    error = _error(layer, weight, bias, scale, shift, comes_first)
    if not error <= tolerance_of(layer.weight):
        raise RefusalError(f"outputs on random values differ by {error:.1e} in {layer.weight.dtype}")
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
        cut = 2 * max(padding) if isinstance(layer, TRANSPOSED) else 0  # which padding takes from its output
        sizes = [folding.example_size(*window) + cut for window in windows]
        x = folding.random_like([1, layer.in_channels, *sizes])
    scale, shift = (value.cpu().view(-1, *[1] * (x.dim() - 2)) for value in (scale, shift))
    expected = old(x) * scale + shift if comes_first else old(x * scale + shift)
    return difference(expected, new(x))
