"""The networks of the comparison: one norm in each, at every hidden layer, before or after its activation."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial

import torch
from torch import nn

import normkit as nk
from normkit.errors import InputError, unknown
from normkit.lab.lstm import NormLSTM, ReadRows

MODELS = ("mlp", "cnn", "sigmoid", "residual", "lstm")
DENSE = {"mlp": (16, 32), "sigmoid": (100, 100, 100)}  # units of the hidden layers
PLACEMENTS = ("pre", "post")
UNITS = 64  # of the LSTM

GHOST = 16  # samples
_SCHEDULE = {"warmup": 50, "r_steps": 400, "d_steps": 250}  # a hundredth of the paper's: runs here are short

_Make = Callable[[int], nn.Module]  # from channels or units to the norm that follows them


def _grouped(channels: int) -> nn.Module:
    """Group norm with the most groups, 8 at most, that share the channels evenly with 8 or more in each.

    Smaller groups lose too much: one of two units would keep nothing but their order.
    """
    fitting = (groups for groups in range(1, 9) if channels % groups == 0 and channels // groups >= 8)
    return nk.GroupNorm(max(fitting), channels)


# The norm that follows a convolution, and the one that follows a dense layer; None where one value per channel has
# no deviation. All have one scale (and shift) per channel. That is why `layer` is group norm with one group, which
# shares over channels and space as layer norm over (C, H, W) does, whose own scale would be per pixel.
_NORMS: dict[str, tuple[_Make, _Make | None]] = {
    "batch": (nk.BatchNorm2d, nk.BatchNorm1d),
    "layer": (partial(nk.GroupNorm, 1), nk.LayerNorm),
    "group": (_grouped, _grouped),
    "instance": (partial(nk.InstanceNorm2d, affine=True), None),
    "rms": (lambda channels: _PerPixel(nk.RMSNorm(channels)), nk.RMSNorm),
    "ghost": (partial(nk.GhostBatchNorm2d, ghost_size=GHOST), partial(nk.GhostBatchNorm1d, ghost_size=GHOST)),
    "renorm": (partial(nk.BatchRenorm2d, **_SCHEDULE), partial(nk.BatchRenorm1d, **_SCHEDULE)),
    "virtual": (nk.VirtualBatchNorm2d, nk.VirtualBatchNorm1d),
    "adaptive": (nk.AdaptiveBatchNorm2d, nk.AdaptiveBatchNorm1d),
    "sync": (nk.SyncBatchNorm, nk.SyncBatchNorm),
    "switch": (nk.SwitchNorm2d, nk.SwitchNorm1d),
    "batch_instance": (nk.BatchInstanceNorm2d, None),
    "frn": (nk.FilterResponseNorm, None),
    "dynamic_tanh": (lambda channels: _PerPixel(nk.DynamicTanh(channels)), nk.DynamicTanh),
    "weight_standardization": (_grouped, _grouped),  # it scales no activation: the paper has a norm behind it
}
# Those that reparametrize the weight of the layer itself.
_WEIGHTS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "weight_norm": nk.weight_norm,
    "weight_standardization": nk.weight_standardization,
    "spectral_norm": nk.spectral_norm,
}
# Those that begin with samples: virtual batch norm's reference, the first values of weight norm.
_BEGINNINGS: dict[str, Callable[[nn.Module], AbstractContextManager[object]]] = {
    "virtual": nk.reference_batch,
    "weight_norm": nk.initialize_from_data,
}
NORMS = ("none", *dict.fromkeys((*_NORMS, *_WEIGHTS)), "recurrent")
_IN_LSTM = ("none", "batch", "layer", "group", "rms", "dynamic_tanh", "recurrent")
_OVER_SAMPLES = ("batch", "ghost", "renorm", "adaptive", "sync", "switch", "recurrent")
USUAL = ("none", "batch", "layer", "group", "instance", "rms")  # compared where none are named
# Of the family, and in no network here: what they need beside a sample, and where they are.
_APART = {
    "conditional": "the class of each sample, which is what these networks are to find: use nk.Conditional",
    "domain": "to know which domain each batch is from, which data here do not say: use nk.domain",
}

# From a layer and its activation to the modules of a hidden layer, in their order.
_Hidden = Callable[[nn.Module, nn.Module], list[nn.Module]]


def build(
    model: str,
    *,
    norm: str,
    placement: str,
    input_shape: tuple[int, ...],
    classes: int,
    dropout: float = 0.0,
    widths: tuple[int, ...] | None = None,
) -> nn.Module:
    """Build a network that maps (N, *input_shape) to logits (N, classes).

    ========== ======================================================================================
    `mlp`      dense 16 and 32, ReLU
    `cnn`      convolutions 3×3 of 32 and 64 channels (no padding), max pooling 2, dense 128, ReLU
    `sigmoid`  dense 100, 100 and 100, sigmoid; weights N(0, 0.1²), biases 0
    `residual` convolution 3×3 of 16 channels, a block, max pooling 2, convolution of 32, a block, ReLU, mean
               over space; a block adds what two convolutions give to what they are given
    `lstm`     an LSTM of 64 units that reads the rows of an image as time steps; its last hidden state
    ========== ======================================================================================

    `widths` gives `mlp` and `sigmoid` other hidden layers, any number of them.

    The norm follows every hidden layer, before its activation (`pre`) or after it (`post`), and dropout
    follows both. A norm of weights is put on every hidden layer; group norm follows standardized ones. In `cnn`
    the norms over space alone (instance, batch_instance, frn) leave the dense layer without a norm: one value
    per channel has no deviation. The threshold of `frn` is its activation. In `residual` the sum stands between
    the second convolution, with the norm that is `pre`, and its activation. Initial weights depend on torch's
    seed, not on the norm: runs of one seed are pairs.

    In `lstm` the norm stands before the gates, in the three places of `nk.BatchNormLSTM`, and is the same at every
    step. `recurrent` has running statistics for each step. `batch` is the same layer with one set for all steps:
    both train alike, and differ in evaluation.

    `sigmoid` is the network that batch norm rescues in Ioffe and Szegedy (2015), section 4.1; the blocks of
    `residual` are those of He et al. (2016), section 3.

    Raises:
        InputError: an unknown name, a dropout outside [0, 1), an input that the network cannot take, or
            a norm that it has no place for.
    """
    _check(model, norm, placement, dropout)
    hidden = partial(_hidden, norm, placement, dropout)
    if model == "lstm":
        network = _lstm(norm, dropout, input_shape, classes)
    elif model == "cnn":
        network = _cnn(hidden, input_shape, classes)
    elif model == "residual":
        network = _residual(hidden, input_shape, classes)
    elif model == "mlp":
        network = _dense(hidden, input_shape, classes, widths or DENSE[model], nn.ReLU)
    else:
        network = _dense(hidden, input_shape, classes, widths or DENSE[model], nn.Sigmoid)
        network.apply(_small_gaussian)
    if norm in _WEIGHTS:
        with torch.random.fork_rng(devices=[]):  # spectral norm draws its first vectors
            for layer in _layers(network)[:-1]:
                _WEIGHTS[norm](layer)
    return network


def begin(network: nn.Module, norm: str, x: torch.Tensor) -> None:
    """Show a new network the samples that its norm begins with; most norms need none.

    Raises:
        InputError: samples that a norm cannot begin with.
    """
    if norm not in _BEGINNINGS:
        return
    network.eval()  # without dropout, which would draw random numbers
    try:
        with torch.no_grad(), _BEGINNINGS[norm](network):
            network(x)
    except ValueError as refusal:
        raise InputError(f"norm {norm!r} cannot begin with these samples: {refusal}") from refusal
    network.train()


def least_batch(norm: str) -> int:
    """How many samples a batch must have: those whose statistics are of samples need two."""
    return 2 if norm in _OVER_SAMPLES else 1


def check_ghosts(norm: str, batch_size: int, samples: int) -> None:
    """Refuse batches that ghost batch norm cannot divide: behind a dense layer one sample has no deviation.

    Raises:
        InputError: a batch, whole or the last one, of which one sample would be left.
    """
    for size in (batch_size, samples % batch_size):
        if norm == "ghost" and size > 1 and size % GHOST == 1:
            raise InputError(
                f"norm 'ghost' takes {GHOST} samples at a time, and of a batch of {size} one would be left: "
                "choose another batch size"
            )


def check_norm(norm: str) -> None:
    """Refuse what no network here has.

    Raises:
        InputError: an unknown name, or a norm that needs more than samples.
    """
    if norm in _APART:
        raise InputError(f"norm {norm!r} needs {_APART[norm]} in a network of your own")
    if norm not in NORMS:
        raise unknown("norm", norm, NORMS)


def norms_of(model: str) -> tuple[str, ...]:
    """Those that a network has a place for."""
    if model == "lstm":
        return _IN_LSTM
    without = {norm for norm, (_, dense) in _NORMS.items() if model in DENSE and dense is None}
    return tuple(norm for norm in NORMS if norm not in without and norm != "recurrent")


def usual(model: str) -> tuple[str, ...]:
    """Those that are compared where none are named."""
    shown = (*USUAL, "recurrent") if model == "lstm" else USUAL
    return tuple(norm for norm in shown if norm in norms_of(model))


def _check(model: str, norm: str, placement: str, dropout: float) -> None:
    if model not in MODELS:
        raise unknown("model", model, MODELS)
    check_norm(norm)
    if placement not in PLACEMENTS:
        raise unknown("placement", placement, PLACEMENTS)
    if not 0 <= dropout < 1:
        raise InputError(f"dropout must be 0 or more and below 1, got {dropout:g}")
    if norm not in norms_of(model):
        raise _misplaced(model, norm)
    if model == "lstm" and placement != "pre":
        raise InputError(
            f"model 'lstm' has its norms before the gates, got placement {placement!r}: use placement 'pre'"
        )


def _misplaced(model: str, norm: str) -> InputError:
    if norm == "recurrent":
        return InputError(
            f"norm 'recurrent' needs time steps, and model {model!r} has none: use --model lstm, whose steps are "
            "the rows of an image"
        )
    if model == "lstm":
        return InputError(
            f"norm {norm!r} has no place in model 'lstm': choose from {', '.join(_IN_LSTM)}, or use model 'cnn'"
        )
    return InputError(
        f"norm {norm!r} needs more than one value per channel, the dense layers of {model!r} have one: "
        "use model 'cnn', or norm 'layer' or 'group'"
    )


def _hidden(
    norm: str, placement: str, dropout: float, layer: nn.Module, activation: nn.Module
) -> list[nn.Module]:
    following = _norm_after(layer, norm)
    if isinstance(following, nk.FilterResponseNorm):
        modules = [layer, following]
    else:
        modules = [layer, following, activation] if placement == "pre" else [layer, activation, following]
    if dropout > 0:
        modules.append(nn.Dropout(dropout))
    return [module for module in modules if module is not None]


def _norm_after(layer: nn.Module, norm: str) -> nn.Module | None:
    after_convolution, after_dense = _NORMS.get(norm, (None, None))
    if isinstance(layer, nn.Conv2d):
        return after_convolution and after_convolution(layer.out_channels)
    assert isinstance(layer, nn.Linear)
    return after_dense and after_dense(layer.out_features)


def _layers(network: nn.Module) -> list[nn.Module]:
    """Those with weights, the last of which gives the logits."""
    return [module for module in network.modules() if isinstance(module, (nn.Linear, nn.Conv2d))]


def _dense(
    hidden: _Hidden,
    input_shape: tuple[int, ...],
    classes: int,
    widths: tuple[int, ...],
    activation: type[nn.Module],
) -> nn.Module:
    features = torch.Size(input_shape).numel()
    modules: list[nn.Module] = [nn.Flatten()]
    for width in widths:
        modules += hidden(nn.Linear(features, width), activation())
        features = width
    return nn.Sequential(*modules, nn.Linear(features, classes))


def _small_gaussian(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.1)
        nn.init.zeros_(module.bias)


def _image(model: str, input_shape: tuple[int, ...], least: int) -> tuple[int, ...]:
    """Channels, height and width of an input that is an image large enough."""
    if len(input_shape) != 3:
        raise InputError(
            f"model {model!r} needs images (channels, height, width), the input's shape is {input_shape}: "
            "use model 'mlp'"
        )
    channels, height, width = input_shape
    if min(height, width) < least:
        raise InputError(
            f"model {model!r} needs images of {least}×{least} pixels or more, these are {height}×{width} of "
            f"{channels} channels: use model 'mlp', or put the channels first"
        )
    return input_shape


def _residual(hidden: _Hidden, input_shape: tuple[int, ...], classes: int) -> nn.Module:
    channels, *_ = _image("residual", input_shape, least=4)
    return nn.Sequential(
        *hidden(nn.Conv2d(channels, 16, 3, padding=1), nn.ReLU()),
        _Block(hidden, 16),
        nn.MaxPool2d(2),
        *hidden(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU()),
        _Block(hidden, 32),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, classes),
    )


class _Block(nn.Module):
    """x + branch(x), and then what follows a hidden layer's activation, from that activation on."""

    def __init__(self, hidden: _Hidden, channels: int) -> None:
        super().__init__()
        activation = nn.ReLU()
        first = hidden(nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU())
        second = hidden(nn.Conv2d(channels, channels, 3, padding=1), activation)
        # a norm that has its own activation stands in the branch whole
        cut = second.index(activation) if activation in second else 2
        self.branch = nn.Sequential(*first, *second[:cut])
        self.after = nn.Sequential(*second[cut:])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.after(x + self.branch(x))


def _lstm(norm: str, dropout: float, input_shape: tuple[int, ...], classes: int) -> nn.Module:
    channels, rows, width = _image("lstm", input_shape, least=1)
    features = channels * width
    if norm in ("batch", "recurrent"):
        of_steps = rows if norm == "recurrent" else 1
        lstm = nk.BatchNormLSTM(features, UNITS, of_steps, batch_first=True)
    else:
        lstm = NormLSTM(features, UNITS, _NORMS.get(norm, (None, None))[1] or nn.Identity)
    dropouts = [nn.Dropout(dropout)] if dropout > 0 else []
    return nn.Sequential(ReadRows(lstm), *dropouts, nn.Linear(UNITS, classes))


def _cnn(hidden: _Hidden, input_shape: tuple[int, ...], classes: int) -> nn.Module:
    channels, height, width = _image("cnn", input_shape, least=6)
    features = 64 * ((height - 4) // 2) * ((width - 4) // 2)
    return nn.Sequential(
        *hidden(nn.Conv2d(channels, 32, 3), nn.ReLU()),
        *hidden(nn.Conv2d(32, 64, 3), nn.ReLU()),
        nn.MaxPool2d(2),
        nn.Flatten(),
        *hidden(nn.Linear(features, 128), nn.ReLU()),
        nn.Linear(128, classes),
    )


class _PerPixel(nn.Module):
    """A norm over the channels of each pixel of (N, C, H, W).

    Over (C, H, W) it would learn a scale per pixel and tie the network to one image size.
    """

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(x.movedim(1, -1)).movedim(-1, 1)
