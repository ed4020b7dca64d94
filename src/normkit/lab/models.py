"""The networks of the comparison: one norm in each, at every hidden layer, before or after its activation."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import nn

import normkit as nk
from normkit.errors import InputError, unknown

MODELS = ("mlp", "cnn", "sigmoid")
NORMS = ("none", "batch", "layer", "group", "instance", "rms")
PLACEMENTS = ("pre", "post")

# From a layer, its norm and its activation to the modules of a hidden layer, in their order.
_Hidden = Callable[[nn.Module, nn.Module | None, nn.Module], list[nn.Module]]


def build(
    model: str, *, norm: str, placement: str, input_shape: tuple[int, ...], classes: int, dropout: float = 0.0
) -> nn.Module:
    """Build a network that maps (N, *input_shape) to logits (N, classes).

    ========= ======================================================================================
    `mlp`     dense 16 and 32, ReLU
    `cnn`     convolutions 3×3 of 32 and 64 channels (no padding), max pooling 2, dense 128, ReLU
    `sigmoid` dense 100, 100 and 100, sigmoid; weights N(0, 0.1²), biases 0
    ========= ======================================================================================

    The norm follows every hidden layer, before its activation (`pre`) or after it (`post`), and dropout
    follows both. In `cnn` instance norm leaves the dense layer without a norm: one value per channel has no
    deviation. Initial weights depend on torch's seed, not on the norm: runs of one seed are pairs.

    `sigmoid` is the network that batch norm rescues in Ioffe and Szegedy (2015), section 4.1.

    Raises:
        InputError: an unknown name, a dropout outside [0, 1), an input that the network cannot take, or
            instance norm in a network of dense layers alone.
    """
    _check(model, norm, placement, dropout)
    hidden = partial(_hidden, placement, dropout)
    if model == "cnn":
        return _cnn(hidden, norm, input_shape, classes)
    if model == "mlp":
        return _dense(hidden, norm, input_shape, classes, (16, 32), nn.ReLU)
    return _dense(hidden, norm, input_shape, classes, (100, 100, 100), nn.Sigmoid).apply(_small_gaussian)


def _check(model: str, norm: str, placement: str, dropout: float) -> None:
    if model not in MODELS:
        raise unknown("model", model, MODELS)
    if norm not in NORMS:
        raise unknown("norm", norm, NORMS)
    if placement not in PLACEMENTS:
        raise unknown("placement", placement, PLACEMENTS)
    if not 0 <= dropout < 1:
        raise InputError(f"dropout must be 0 or more and below 1, got {dropout:g}")
    if norm == "instance" and model != "cnn":
        raise InputError(
            f"instance norm needs more than one value per channel, the dense layers of {model!r} have one: "
            "use model 'cnn', or norm 'layer' or 'group'"
        )


def _hidden(
    placement: str, dropout: float, layer: nn.Module, norm: nn.Module | None, activation: nn.Module
) -> list[nn.Module]:
    modules = [layer, norm, activation] if placement == "pre" else [layer, activation, norm]
    if dropout > 0:
        modules.append(nn.Dropout(dropout))
    return [module for module in modules if module is not None]


def _dense(
    hidden: _Hidden,
    norm: str,
    input_shape: tuple[int, ...],
    classes: int,
    widths: tuple[int, ...],
    activation: type[nn.Module],
) -> nn.Module:
    features = torch.Size(input_shape).numel()
    modules: list[nn.Module] = [nn.Flatten()]
    for width in widths:
        modules += hidden(nn.Linear(features, width), _dense_norm(norm, width), activation())
        features = width
    return nn.Sequential(*modules, nn.Linear(features, classes))


def _small_gaussian(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.1)
        nn.init.zeros_(module.bias)


def _cnn(hidden: _Hidden, norm: str, input_shape: tuple[int, ...], classes: int) -> nn.Module:
    if len(input_shape) != 3:
        raise InputError(
            f"model 'cnn' needs images (channels, height, width), the input's shape is {input_shape}: "
            "use model 'mlp'"
        )
    channels, height, width = input_shape
    if min(height, width) < 6:
        raise InputError(
            f"model 'cnn' needs images of 6×6 pixels or more, these are {height}×{width} of {channels} channels: "
            "use model 'mlp', or put the channels first"
        )
    features = 64 * ((height - 4) // 2) * ((width - 4) // 2)
    return nn.Sequential(
        *hidden(nn.Conv2d(channels, 32, 3), _conv_norm(norm, 32), nn.ReLU()),
        *hidden(nn.Conv2d(32, 64, 3), _conv_norm(norm, 64), nn.ReLU()),
        nn.MaxPool2d(2),
        nn.Flatten(),
        *hidden(nn.Linear(features, 128), _dense_norm(norm, 128), nn.ReLU()),
        nn.Linear(128, classes),
    )


def _dense_norm(norm: str, features: int) -> nn.Module | None:
    if norm == "batch":
        return nk.BatchNorm1d(features)
    if norm == "layer":
        return nk.LayerNorm(features)
    if norm == "group":
        return nk.GroupNorm(_groups(features), features)
    if norm == "rms":
        return nk.RMSNorm(features)
    return None


def _conv_norm(norm: str, channels: int) -> nn.Module | None:
    """The norm of a convolution, with one scale (and shift) per channel whatever the norm.

    That is why `layer` is group norm with one group: it shares over channels and space as layer norm over
    (C, H, W) does, whose own scale would be per pixel.
    """
    if norm == "batch":
        return nk.BatchNorm2d(channels)
    if norm == "layer":
        return nk.GroupNorm(1, channels)
    if norm == "group":
        return nk.GroupNorm(_groups(channels), channels)
    if norm == "instance":
        return nk.InstanceNorm2d(channels, affine=True)
    if norm == "rms":
        return _ChannelRMSNorm(channels)
    return None


def _groups(channels: int) -> int:
    """The most groups, 8 at most, that share the channels evenly with 8 or more in each.

    Smaller groups lose too much: one of two units would keep nothing but their order.
    """
    return max(groups for groups in range(1, 9) if channels % groups == 0 and channels // groups >= 8)


class _ChannelRMSNorm(nn.Module):
    """RMS norm over the channels of each pixel of (N, C, H, W).

    Over (C, H, W), RMS norm would learn a scale per pixel and tie the network to one image size.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nk.RMSNorm(channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(x.movedim(1, -1)).movedim(-1, 1)
