"""torch's norms as ours: which class a layer becomes, and becoming it in place."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm  # pyright: ignore[reportPrivateUsage]
from torch.nn.modules.instancenorm import _InstanceNorm  # pyright: ignore[reportPrivateUsage]

from normkit import processes
from normkit.errors import InputError
from normkit.norms import batch_norm, group_norm, instance_norm, layer_norm, rms_norm
from normkit.norms.sharing import Sharing
from normkit.norms.sync_batch_norm import SyncBatchNorm
from normkit.surgery.freeze import Frozen
from normkit.surgery.walk import become, check_initialized, joined

BatchNorm = batch_norm._BatchNorm  # pyright: ignore[reportPrivateUsage]
OURS: dict[type[nn.Module], type[nn.Module]] = {
    nn.BatchNorm1d: batch_norm.BatchNorm1d,
    nn.BatchNorm2d: batch_norm.BatchNorm2d,
    nn.BatchNorm3d: batch_norm.BatchNorm3d,
    nn.SyncBatchNorm: SyncBatchNorm,
    nn.InstanceNorm1d: instance_norm.InstanceNorm1d,
    nn.InstanceNorm2d: instance_norm.InstanceNorm2d,
    nn.InstanceNorm3d: instance_norm.InstanceNorm3d,
    nn.GroupNorm: group_norm.GroupNorm,
    nn.LayerNorm: layer_norm.LayerNorm,
    nn.RMSNorm: rms_norm.RMSNorm,
}
NORMS: tuple[type[nn.Module], ...] = (_BatchNorm, _InstanceNorm, *OURS)  # lazy ones are none of OURS yet
_FORWARD = "call super().forward() there, or convert the layer before"


def our_class(name: str, layer: nn.Module) -> type[nn.Module]:
    """Our class for one of torch's norms: its own where that is ours already, else that of its kind.

    Raises:
        InputError: a layer that is not yet initialized, or frozen, or a subclass that does not leave normalizing to
            its base.
    """
    kind = type(layer)
    if kind in OURS:
        return OURS[kind]
    check_initialized(name, layer)
    if isinstance(layer, Frozen):
        raise InputError(
            f"layer {name!r} must train, but is frozen: unfreeze(model) first, freeze(model) after"
        )
    of_torch = torch_class(kind)
    if is_ours(kind) and leaves_normalizing(kind):
        return kind
    if of_torch in (None, nn.SyncBatchNorm) or not leaves_normalizing(kind):
        raise InputError(
            f"layer {name!r} must normalize by super().forward(), but {kind.__name__} has a forward of its own: "
            f"{_FORWARD}"
        )
    return joined(kind, kind, OURS[of_torch])


def torch_class(kind: type[nn.Module]) -> type[nn.Module] | None:
    """The norm of torch that a class is or inherits, where ours has a counterpart."""
    return next((base for base in OURS if issubclass(kind, base)), None)


def is_ours(kind: type[nn.Module]) -> bool:
    """Whether a class is one of our counterparts of torch's norms, or inherits one."""
    return issubclass(kind, (BatchNorm, *OURS.values()))


def has_known_forward(layer: nn.Module) -> bool:
    """Whether what a norm computes is what torch's class, or ours, says, and nothing on top of it."""
    first = next(base for base in type(layer).__mro__ if "forward" in vars(base))
    return first.__module__.startswith(("torch.nn.modules.", "normkit.")) and "forward" not in vars(layer)


def become_ours(name: str, layer: nn.Module, target: type[nn.Module]) -> None:
    """Make a layer one of our class, in place."""
    if isinstance(layer, nn.SyncBatchNorm):
        layer.process_group = layer.process_group or "world"  # which torch means by None
    become(layer, target)
    introduce(name, layer)


def introduce(name: str, layer: nn.Module) -> None:
    """Let other processes know a layer of ours by its name in the model."""
    if isinstance(layer, Sharing):
        layer.identity = processes.new_layer(name or type(layer).__name__)


def leaves_normalizing(kind: type[nn.Module]) -> bool:
    """Whether the first forward on the way to torch's own, or ours, goes on to it."""
    for base in kind.__mro__:
        forward: Any = vars(base).get("forward")
        if forward is not None:
            known = base.__module__.startswith(("torch.nn.modules.", "normkit."))
            return known or "super" in getattr(forward, "__code__", leaves_normalizing.__code__).co_names
    return False
