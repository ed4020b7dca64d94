"""What `convert` converts to: which layer of a kind stands for a norm, and which norms the kind makes no sense for."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from inspect import signature
from typing import Any

from torch import Tensor, nn

from normkit.errors import InputError, unknown
from normkit.kernels.composed import ACTIVATIONS
from normkit.norms import (
    adaptive_batch_norm,
    batch_instance_norm,
    batch_norm,
    batch_renorm,
    ghost_batch_norm,
    inputs,
    virtual_batch_norm,
)
from normkit.norms import instance_norm as instance
from normkit.norms import switch_norm as switch
from normkit.norms.dynamic_tanh import DynamicTanh
from normkit.norms.filter_response_norm import FilterResponseNorm
from normkit.norms.group_norm import GroupNorm
from normkit.norms.layer_norm import LayerNorm
from normkit.norms.rms_norm import RMSNorm
from normkit.norms.sync_batch_norm import SyncBatchNorm
from normkit.norms.tracing import one_node

# One class for each number of axes in space, 1 to 3.
_Kinds = tuple[type[nn.Module], type[nn.Module], type[nn.Module]]
# In evaluation a map of each channel by running statistics.
BATCH: dict[str, _Kinds] = {
    "batch": (batch_norm.BatchNorm1d, batch_norm.BatchNorm2d, batch_norm.BatchNorm3d),
    "sync": (SyncBatchNorm, SyncBatchNorm, SyncBatchNorm),
    "ghost": (ghost_batch_norm.GhostBatchNorm1d, ghost_batch_norm.GhostBatchNorm2d, ghost_batch_norm.GhostBatchNorm3d),
    "renorm": (batch_renorm.BatchRenorm1d, batch_renorm.BatchRenorm2d, batch_renorm.BatchRenorm3d),
}  # fmt: skip
# Running statistics and the sample's own.
MIXED: dict[str, _Kinds] = {
    "adaptive": (
        adaptive_batch_norm.AdaptiveBatchNorm1d,
        adaptive_batch_norm.AdaptiveBatchNorm2d,
        adaptive_batch_norm.AdaptiveBatchNorm3d,
    ),
    "switch": (switch.SwitchNorm1d, switch.SwitchNorm2d, switch.SwitchNorm3d),
    "batch_instance": (
        batch_instance_norm.BatchInstanceNorm1d,
        batch_instance_norm.BatchInstanceNorm2d,
        batch_instance_norm.BatchInstanceNorm3d,
    ),
}
VIRTUAL: _Kinds = (
    virtual_batch_norm.VirtualBatchNorm1d,
    virtual_batch_norm.VirtualBatchNorm2d,
    virtual_batch_norm.VirtualBatchNorm3d,
)
_INSTANCE: _Kinds = (instance.InstanceNorm1d, instance.InstanceNorm2d, instance.InstanceNorm3d)
_IN_SPACE = (
    (1, (nn.BatchNorm1d, nn.InstanceNorm1d)),
    (2, (nn.BatchNorm2d, nn.InstanceNorm2d)),
    (3, (nn.BatchNorm3d, nn.InstanceNorm3d)),
)
# For norms of channels, and for norms of rows.
CHANNELS = (*BATCH, *MIXED, "virtual", "group", "layer", "instance", "rms", "frn")
ROWS = ("layer", "rms", "dynamic_tanh")
# What norms may be called with, and those that take it.
TAKE = {"residual": (*BATCH, *MIXED, "virtual"), "activation": (*BATCH, "group", "layer", "instance")}
_OTHERS: dict[str, tuple[type[nn.Module], ...]] = {
    "virtual": VIRTUAL[:1], "group": (GroupNorm,), "layer": (LayerNorm,), "instance": _INSTANCE[:1], "rms": (RMSNorm,),
    "frn": (FilterResponseNorm,), "dynamic_tanh": (DynamicTanh,),
}  # fmt: skip
# What the old layer says, and no option does.
_TAKEN = "self num_features num_channels normalized_shape eps affine elementwise_affine bias activation device dtype"


@dataclass(frozen=True)
class Seen:
    """What is known of a norm's input.

    Attributes:
        axes: in space, of (N, C, *).
        positions: how many there are in space, at the least; 2 stands for several.
    """

    axes: int | None
    positions: int

    @staticmethod
    def of(x: Tensor) -> Seen:
        """That of an input."""
        return Seen(x.dim() - 2, x[0, 0].numel() if x.numel() and x.dim() > 1 else 1)

    @staticmethod
    def by_class(layer: nn.Module) -> Seen:
        """What a layer takes: one for a single axis may be for none, (N, C)."""
        axes = next((axes for axes, kinds in _IN_SPACE if isinstance(layer, kinds)), None)
        return Seen(axes, 1 if axes == 1 else 2)


class ChannelRMSNorm(RMSNorm):
    """RMS norm over the channels at each position of (N, C, *), and an activation."""

    def __init__(
        self, normalized_shape: int, *args: Any, activation: str | None = None, **kwargs: Any
    ) -> None:
        super().__init__(normalized_shape, *args, **kwargs)
        self.activation = activation

    @one_node
    def forward(self, x: Tensor, *, mask: Tensor | None = None) -> Tensor:
        """Normalize, activate."""
        y = super().forward(x.movedim(1, -1), mask=mask).movedim(-1, 1)
        return ACTIVATIONS[self.activation](y) if self.activation else y

    def extra_repr(self) -> str:
        """The arguments, the activation where there is one."""
        return super().extra_repr() + inputs.repr_activation(self.activation)


def is_of_rows(layer: nn.Module) -> bool:
    """Whether a norm's statistic is over the last axes."""
    return isinstance(layer, (nn.LayerNorm, nn.RMSNorm)) and not isinstance(layer, ChannelRMSNorm)


def check_to(to: str, options: dict[str, Any], *, fitted: bool) -> None:
    """Whether this is the name of a kind, and these are options of it; fitted: there are batches.

    Raises:
        InputError: an unknown name; a missing option, or no batch for a reference; a number of groups that is none.
        TypeError: an option that the kind does not have.
    """
    if isinstance(to, type):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InputError(f"to must be the name of a norm, got the class {to.__name__}: {_by_name(to)}")
    if not isinstance(to, str) or to not in {*CHANNELS, *ROWS}:  # pyright: ignore[reportUnnecessaryIsInstance]
        raise unknown("norm", to, dict.fromkeys((*CHANNELS, *ROWS)))
    if to == "ghost" and "ghost_size" not in options:
        raise InputError("ghost norm needs the size of its sub-batches: pass ghost_size=")
    if to == "virtual" and not fitted:
        raise InputError("virtual batch norm needs a reference batch: pass batches")
    kind = {**BATCH, **MIXED, **_OTHERS}[to][0]
    known = [
        name for name in signature(kind).parameters if name not in _TAKEN.split() or name == "num_groups"
    ]
    for name in options:
        if name not in known:
            raise TypeError(f"{to} norm got an unexpected keyword argument {name!r}: {_choice(known)}")
    groups = options.get("num_groups", 1)
    if not isinstance(groups, int) or groups < 1:
        raise InputError(f"num_groups must be a whole number from 1 on, got {groups!r}")


def _by_name(kind: type) -> str:
    """How a class is called here, torch's or ours."""
    kinds = {**BATCH, **MIXED, **_OTHERS}
    stem = kind.__name__.rstrip("123d")
    name = next((n for n, (first, *_) in kinds.items() if first.__name__.rstrip("123d") == stem), None)
    return f"pass {name!r}" if name else _choice(kinds)


def _choice(names: Iterable[str]) -> str:
    return f"choose from {', '.join(names)}" if names else "it has no options"


def build(
    layer: Any,
    to: str,
    seen: Seen,
    options: dict[str, Any],
    *,
    affine: bool,
    bias: bool = True,
    activation: str | None = None,
) -> nn.Module:
    """The new layer for an old one, with its features, eps, momentum, device and dtype.

    Raises:
        InputError: the kind makes no sense for the old layer; the message says why.
        TypeError: an option that the kind does not have.
    """
    tensor = next((t for t in (*layer.parameters(), *layer.buffers()) if t.is_floating_point()), None)
    common: dict[str, Any] = {} if tensor is None else {"device": tensor.device, "dtype": tensor.dtype}
    common.update(options)
    if layer.eps is not None:
        common["eps"] = layer.eps
    if to != "rms":
        common["bias"] = bias
    if is_of_rows(layer):
        return _of_rows(layer.normalized_shape, to, common, affine)
    if to == "dynamic_tanh":
        raise InputError("dynamic tanh scales the last axes, and follows layer and RMS norms alone")
    channels = _channels(layer)
    if to == "frn":
        return _of_responses(channels, seen, common, affine, activation)
    common.update(activation=activation)
    if to == "rms":
        _check_group(to, channels, certain=True)
        return ChannelRMSNorm(channels, elementwise_affine=affine, **common)
    common.update(affine=affine)
    if to in ("group", "layer"):
        groups = 1 if to == "layer" else groups_of(channels, common.pop("num_groups", 32))
        _check_group(to, channels // groups * seen.positions, certain=True)
        return GroupNorm(groups, channels, **common)
    if seen.axes is None and to != "sync":
        raise InputError("how many axes its input has is not known: pass batches")
    index = max(min(seen.axes or 1, 3), 1) - 1
    if to in ("instance", "batch_instance"):
        _check_group(to, seen.positions, certain=seen.axes == 0 or seen.axes is None or seen.axes > 1)
    if to == "instance":
        return _INSTANCE[index](channels, **common)
    if to == "virtual":
        return VIRTUAL[index](channels, **common)
    if getattr(layer, "momentum", None) is not None or hasattr(layer, "running_mean"):
        common.update(momentum=layer.momentum)
    return {**BATCH, **MIXED}[to][index](channels, **common)


def groups_of(channels: int, most: int) -> int:
    """The most groups that divide the channels into groups of two or more.

    >>> groups_of(12, 8)
    6
    """
    return max(
        g for g in range(1, channels + 1) if channels % g == 0 and g <= max(min(most, channels // 2), 1)
    )


def _of_responses(
    channels: int, seen: Seen, common: dict[str, Any], affine: bool, activation: str | None
) -> nn.Module:
    """Filter response norm, whose threshold at 0 is ReLU; one that cuts nothing off where there was no activation."""
    if activation not in (None, "relu"):
        raise InputError(f"filter response norm has a threshold for an activation, and {activation} is none")
    if not common.get("learn_eps"):
        several = seen.axes is not None and seen.axes > 1
        _check_group("frn", seen.positions, certain=several or seen.axes in (None, 0))
    del common["bias"]
    common.setdefault("threshold", activation is not None)
    return FilterResponseNorm(channels, affine=affine, **common)


def _channels(layer: Any) -> int:
    if isinstance(layer, ChannelRMSNorm):
        return layer.normalized_shape[0]
    return layer.num_channels if isinstance(layer, nn.GroupNorm) else layer.num_features


def _of_rows(shape: tuple[int, ...], to: str, common: dict[str, Any], affine: bool) -> nn.Module:
    if to not in ROWS:
        raise InputError(f"it normalizes the last axes, and {to} norm counts channels along the second one")
    if to == "dynamic_tanh":
        common.pop("eps", None)
        return DynamicTanh(list(shape), elementwise_affine=affine, **common)
    size = 1
    for length in shape:
        size *= length
    _check_group(to, size, certain=True)
    return (LayerNorm if to == "layer" else RMSNorm)(list(shape), elementwise_affine=affine, **common)


def _check_group(to: str, values: int, *, certain: bool) -> None:
    if values <= 1:
        may = "has" if certain else "may have, for (N, C),"
        remedy = "" if certain else ": pass batches, which show whether it has more"
        raise InputError(f"{to} norm {may} one value per group here, and nothing would be left of it{remedy}")
