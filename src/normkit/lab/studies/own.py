"""The user's own network in a study: what their function returns, with the norm that a trial asks for."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase  # pyright: ignore[reportPrivateUsage]

import normkit as nk
from normkit.doctor.target import load_function, load_model
from normkit.errors import InputError

_GHOST = 16  # samples, as in the lab's own networks
_ROWS = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.LocalResponseNorm)


def network(model: str, norm: str) -> nn.Module:
    """A new network of the user's, its norms of another kind; "none" leaves them out.

    Initial weights follow torch's seed, as far as the user's function draws them from it.

    Raises:
        InputError: no function, one that raises or gives no module; norms that cannot be of the kind.
    """
    with torch.random.fork_rng(devices=[]):  # a file may draw when it is first imported, and is imported once
        function = load_function(model)
    if isinstance(function, nn.Module):
        raise InputError(f"{model} must be a function that returns a new network, got the network itself")
    made = load_model(model)
    norms = [name for name, module in made.named_modules() if isinstance(module, (_NormBase, *_ROWS))]
    if not norms:
        raise InputError(f"{model} must have norms whose kind can be varied, but it has none")
    if norm == "none":
        return _without(made, norms)
    options: dict[str, Any] = {"ghost_size": _GHOST} if norm == "ghost" else {}
    outcome = nk.convert(made, norm, **options)
    unlike = {name: reason for name, reason in outcome.left.items() if name in norms}
    if unlike:
        name, reason = next(iter(unlike.items()))
        raise InputError(f"{model}: layer {name!r} cannot be {norm} norm: {reason}")
    return made


def _without(model: nn.Module, norms: list[str]) -> nn.Module:
    if "" in norms:
        return nn.Identity()
    with torch.no_grad():
        for name in norms:
            parent, _, last = name.rpartition(".")
            setattr(model.get_submodule(parent), last, nn.Identity())
    return model
