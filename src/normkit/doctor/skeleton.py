"""A checkpoint without its model: the batch norms that its keys tell of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from normkit.errors import InputError

_MEAN, _VAR = "running_mean", "running_var"


def skeleton(state: Mapping[str, Tensor]) -> nn.Module:
    """A model of nothing but batch norms, with the tensors of a state_dict, under the names that they have there.

    What else there was is not in it, and neither are eps and momentum, which a state_dict does not hold.

    Raises:
        InputError: no running statistics.

    >>> model = skeleton(nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)).state_dict())
    >>> [name for name, module in model.named_modules() if isinstance(module, nn.BatchNorm1d)]
    ['1']
    """
    prefixes = [key.removesuffix(_MEAN) for key in state if key.endswith(_MEAN)]
    prefixes = [prefix for prefix in prefixes if prefix + _VAR in state and state[prefix + _MEAN].dim() == 1]
    if not prefixes:
        raise InputError(
            "a checkpoint alone shows running statistics, and this one has none: name the model, and give the "
            "checkpoint as --weights"
        )
    if "" in prefixes:
        return _norm(state, "")
    root = nn.Module()
    for prefix in prefixes:
        *path, name = prefix.rstrip(".").split(".")
        parent = root
        for part in path:
            parent = _children(parent).setdefault(part, nn.Module())
        _children(parent)[name] = _norm(state, prefix)
    return root


def _norm(state: Mapping[str, Tensor], prefix: str) -> nn.Module:
    layer = nn.BatchNorm1d(len(state[prefix + _MEAN]), affine=prefix + "weight" in state)
    for name in (_MEAN, _VAR, "num_batches_tracked"):
        if prefix + name in state:
            setattr(layer, name, state[prefix + name].clone())
    for name in ("weight", "bias"):
        if prefix + name in state and layer.affine:
            setattr(layer, name, nn.Parameter(state[prefix + name].clone()))
    return layer


def _children(module: nn.Module) -> dict[str, Any]:
    """As a table: a name in a checkpoint may be that of a method."""
    return module._modules  # pyright: ignore[reportPrivateUsage]
