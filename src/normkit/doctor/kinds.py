"""What a module or a function is to the doctor: a norm, something with weights, an activation, a view."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn.modules import activation as activations
from torch.nn.modules.batchnorm import _BatchNorm  # pyright: ignore[reportPrivateUsage]
from torch.nn.modules.conv import _ConvNd  # pyright: ignore[reportPrivateUsage]
from torch.nn.modules.dropout import _DropoutNd  # pyright: ignore[reportPrivateUsage]
from torch.nn.modules.instancenorm import _InstanceNorm  # pyright: ignore[reportPrivateUsage]

from normkit.norms.dynamic_tanh import DynamicTanh
from normkit.norms.filter_response_norm import FilterResponseNorm
from normkit.norms.layer_norm import LayerNorm
from normkit.norms.mixed_norm import MixedNorm
from normkit.norms.recurrent_batch_norm import RecurrentBatchNorm
from normkit.norms.rms_norm import RMSNorm
from normkit.norms.virtual_batch_norm import _VirtualBatchNorm  # pyright: ignore[reportPrivateUsage]

CONVOLUTIONS = (_ConvNd,)
WEIGHTED = (*CONVOLUTIONS, nn.Linear)
_OTHER_NORMS = (RecurrentBatchNorm, FilterResponseNorm, DynamicTanh, _VirtualBatchNorm)
_OPAQUE = (nn.MultiheadAttention, nn.RNNBase, nn.RNNCellBase)
_BY_TYPE: dict[str, tuple[type[nn.Module], ...]] = {
    "weight": WEIGHTED,
    "dropout": (_DropoutNd,),
    "pool": (
        *(getattr(nn, f"{kind}Pool{d}d") for kind in ("Max", "Avg", "AdaptiveAvg", "AdaptiveMax") for d in (1, 2, 3)),
        nn.Upsample,
    ),
    "view": (nn.Flatten, nn.Unflatten, nn.Identity),
}  # fmt: skip
_ACTIVATIONS = tuple(
    kind
    for name, kind in vars(activations).items()
    if name in activations.__all__
    and name not in ("MultiheadAttention", "Softmax", "Softmax2d", "LogSoftmax")
)

_BY_NAME = {
    "weight": "conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d linear",
    "dropout": "dropout dropout1d dropout2d dropout3d alpha_dropout feature_alpha_dropout",
    "activation": "relu relu6 leaky_relu prelu elu selu celu gelu silu mish sigmoid tanh hardtanh hardswish "
    "hardsigmoid softplus softsign logsigmoid",
    "pool": "max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d "
    "adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool2d interpolate mean amax",
    "axes": "transpose permute movedim swapaxes mT T",
    "view": "view reshape flatten unflatten contiguous squeeze unsqueeze getitem expand to float half bfloat16 clone "
    "detach chunk split view_as reshape_as",
}
_KIND_OF_FUNCTION = {name: kind for kind, names in _BY_NAME.items() for name in names.split()}


def norm_kind(module: nn.Module) -> str | None:
    """Over which axes a norm shares its statistic: batch, instance, group, layer, rms, mixed, other; else None.

    A subclass of layer or RMS norm with a forward of its own may work on axes of its own, and is "other".
    """
    if isinstance(module, _BatchNorm):
        return "batch"
    if isinstance(module, MixedNorm):
        return "mixed"
    if isinstance(module, _InstanceNorm):
        return "instance"
    if isinstance(module, nn.GroupNorm):
        return "group"
    for kind, torchs, ours in (("layer", nn.LayerNorm, LayerNorm), ("rms", nn.RMSNorm, RMSNorm)):
        if isinstance(module, torchs):
            return kind if type(module).forward in (torchs.forward, ours.forward) else "other"
    return "other" if isinstance(module, _OTHER_NORMS) else None


def kind_of_module(module: nn.Module) -> str:
    """norm, weight, dropout, activation, pool, view or other."""
    if norm_kind(module) is not None:
        return "norm"
    for kind, types in _BY_TYPE.items():
        if isinstance(module, types):
            return kind
    return "activation" if isinstance(module, _ACTIVATIONS) else "other"


def kind_of_function(name: str) -> str:
    """weight, dropout, activation, pool, axes, view or other, by the name of a function or method of torch."""
    return _KIND_OF_FUNCTION.get(name, "other")


def is_leaf(module: nn.Module) -> bool:
    """Whether the doctor takes a module as one step, whatever happens within it."""
    known: tuple[Any, ...] = (*WEIGHTED, *_OPAQUE)
    return (
        norm_kind(module) is not None or isinstance(module, known) or not any(True for _ in module.children())
    )
