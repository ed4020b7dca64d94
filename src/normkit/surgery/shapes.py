"""Which tensors of a model have one shape and dtype, whatever its input: from the arguments of its layers alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import fx, nn
from torch.nn.modules import activation, dropout
from torch.nn.modules.batchnorm import _NormBase  # pyright: ignore[reportPrivateUsage]

from normkit.surgery import activations
from normkit.surgery.dataflow import Flow, first_input
from normkit.surgery.ours import has_known_forward
from normkit.surgery.passes import hooked

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_POOLS = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)
_ALIKE = (
    nn.Identity,
    *(getattr(activation, name) for name in activation.__all__ if name not in ("GLU", "MultiheadAttention")),
)  # fmt: skip
_NORMS = (_NormBase, nn.GroupNorm, nn.LayerNorm)
_ALIKE_FUNCTIONS = (F.dropout, F.dropout2d, F.mish, F.hardtanh)


@dataclass(frozen=True)
class Form:
    r"""The shape of one tensor in terms of another's, with its dtype.

    Attributes:
        of: the tensor of unknown shape (N, C, *) that it comes from.
        channels: those that it has instead of C; None for C itself.
        windows: :math:`(a, s)` for each axis in space, whose length is :math:`\lfloor (L + a) / s \rfloor`; none where
            all are L.
    """

    of: fx.Node
    channels: int | None = None
    windows: tuple[tuple[int, int], ...] = ()


class Forms:
    """The form of every tensor between the calls of a model.

    Convolutions and pools by their arguments; what works element by element, and norms, keep it; a sum has it where
    both summands do. Anything else is a tensor of unknown shape.
    """

    def __init__(self, flow: Flow) -> None:
        self._flow = flow
        self._channels: dict[fx.Node, int] = {}  # of tensors of unknown shape, as layers ask for it
        self._forms: dict[fx.Node, Form] = {}
        for node in flow.graph.nodes:
            self._forms[node] = self._form(node)

    def same(self, a: fx.Node, b: fx.Node) -> bool:
        """Whether two tensors have one shape and dtype."""
        return self._known(self._forms[a]) == self._known(self._forms[b])

    def _known(self, form: Form) -> Form:
        channels = self._channels.get(form.of) if form.channels is None else form.channels
        return Form(form.of, channels, form.windows)

    def _form(self, node: fx.Node) -> Form:
        module, source = self._flow.module(node), first_input(node)
        if source is None or (module is not None and hooked(module)):  # a hook may return something else
            return Form(node)
        form = self._forms[source]
        if type(module) in _CONVOLUTIONS:
            return self._convolved(form, module) or Form(node)
        if type(module) in _POOLS:
            return _pooled(form, module) or Form(node)
        if isinstance(module, _NormBase):
            self._asked(form, module.num_features)
        if type(module) in _ALIKE or isinstance(module, dropout._DropoutNd) or _is_alike(node):  # pyright: ignore[reportPrivateUsage]
            return form
        if (
            isinstance(module, _NORMS)
            and has_known_forward(module)
            and {*node.kwargs} <= {"residual", "activation"}
        ):
            return form
        summands = activations.summands(node)
        return form if summands is not None and self.same(*summands) else Form(node)

    def _asked(self, form: Form, channels: int) -> None:
        if form.channels is None:
            self._channels[form.of] = channels

    def _convolved(self, form: Form, layer: Any) -> Form | None:
        self._asked(form, layer.in_channels)
        if isinstance(layer.padding, str) and layer.padding != "valid" and any(s > 1 for s in layer.stride):
            return None
        same = layer.padding == "same"
        padding = [0] * len(layer.kernel_size) if isinstance(layer.padding, str) else layer.padding
        windows = [
            (0, 1) if same else _window(*one)
            for one in zip(layer.kernel_size, layer.stride, padding, layer.dilation, strict=True)
        ]
        return Form(form.of, layer.out_channels, _composed(form.windows, windows))


def _pooled(form: Form, layer: Any) -> Form | None:
    if layer.ceil_mode:
        return None
    axes = int(type(layer).__name__[-2])
    kernel, stride, padding, dilation = (
        [value] * axes if isinstance(value, int) else list(value)
        for value in (layer.kernel_size, layer.stride, layer.padding, getattr(layer, "dilation", 1))
    )
    windows = [_window(*one) for one in zip(kernel, stride, padding, dilation, strict=True)]
    return Form(form.of, form.channels, _composed(form.windows, windows))


def _window(kernel: int, stride: int, padding: int, dilation: int) -> tuple[int, int]:
    r""":math:`\lfloor (L + 2p - d (k - 1) - 1) / s \rfloor + 1`."""
    return 2 * padding - dilation * (kernel - 1) - 1 + stride, stride


def _composed(
    first: Sequence[tuple[int, int]], then: Sequence[tuple[int, int]]
) -> tuple[tuple[int, int], ...]:
    r""":math:`\lfloor (\lfloor (L + a) / s \rfloor + b) / t \rfloor = \lfloor (L + a + b s) / (s t) \rfloor`."""
    before = first or [(0, 1)] * len(then)
    if len(before) != len(then):
        return (*before, *then)  # which no input takes
    windows = tuple((a + b * s, s * t) for (a, s), (b, t) in zip(before, then, strict=True))
    return () if all(window == (0, 1) for window in windows) else windows


def _is_alike(node: fx.Node) -> bool:
    if node.op == "call_function" and node.target in _ALIKE_FUNCTIONS:
        return True
    return activations.of_call(node) is not None
