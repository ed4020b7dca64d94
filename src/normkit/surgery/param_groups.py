"""Weight decay for what it is meant for: `param_groups`."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _NormBase  # pyright: ignore[reportPrivateUsage]

from normkit.errors import InputError
from normkit.norms.conditional import Conditional
from normkit.norms.dynamic_tanh import DynamicTanh
from normkit.surgery.walk import check_module

_NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, Conditional, DynamicTanh)


def param_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """A model's parameters for an optimizer: weight decay for all but those of norms, and biases.

    Decay holds weights of convolutions and linear layers small, whose scale a norm after them takes out again; on a
    norm's own weight and bias, and on other biases, it pulls outputs towards zero instead. A norm is one of torch's or
    ours, or what its class calls one, of which vectors count as the norm's own. Each parameter is there once, however
    many modules share it; frozen ones too, as in `model.parameters()`.

    Args:
        model: any module.
        weight_decay: 0 or more.

    Returns:
        One group with the decay and one without, as far as they have parameters, in the order of the model.

    Raises:
        InputError: no module; a weight decay that is negative or not finite.

    Zhang et al., "Three Mechanisms of Weight Decay Regularization", 2019.

    >>> groups = param_groups(nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)), weight_decay=0.01)
    >>> [(len(group["params"]), group["weight_decay"]) for group in groups]
    [(1, 0.01), (3, 0.0)]
    """
    check_module(model)
    if not isinstance(weight_decay, (int, float)) or not 0 <= weight_decay < math.inf:  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InputError(f"weight_decay must be 0 or more and finite, got {weight_decay!r}")
    decays: dict[nn.Parameter, bool] = {}
    for parameter, decay in _all(model):
        decays[parameter] = decay and decays.get(parameter, True)
    groups = [
        {"params": [p for p, wanted in decays.items() if wanted is decay], "weight_decay": rate}
        for decay, rate in ((True, float(weight_decay)), (False, 0.0))
    ]
    return [group for group in groups if group["params"]]


def _all(model: nn.Module) -> Iterator[tuple[nn.Parameter, bool]]:
    """Each parameter in each of its places, and whether it decays there."""
    for prefix, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            yield parameter, not (_of_a_norm(module, parameter) or _is_bias(f"{prefix}.{name}"))


def _of_a_norm(module: nn.Module, parameter: nn.Parameter) -> bool:
    if isinstance(module, _NORMS):
        return True
    return "norm" in type(module).__name__.lower() and parameter.dim() <= 1


def _is_bias(name: str) -> bool:
    """By its name, as of `bias`, `in_proj_bias`, `bias_hh_l0`, `parametrizations.bias.original`."""
    *above, last = name.split(".")
    if above[-2:-1] == ["parametrizations"]:
        last = above[-1]
    return "bias" in last.split("_")
