"""The way from a norm to the code that computes it: which backend runs, and why.

Every backend is a module with the same four functions (see `composed`), over channels or over rows.
`NORMKIT_BACKEND` forces one by name.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from types import ModuleType

from torch import Tensor

from normkit.errors import unknown
from normkit.kernels import composed

__all__ = ["ACTIVATIONS", "explain"]

ACTIVATIONS = tuple(composed.ACTIVATIONS)

_BACKENDS = {"composed": composed}


@dataclass(frozen=True)
class Choice:
    """A backend for one input, and why it was taken."""

    name: str
    reason: str
    backend: ModuleType


def choose(x: Tensor) -> Choice:
    """The backend that computes norms of x.

    Raises:
        InputError: if `NORMKIT_BACKEND` names no backend.
    """
    forced = os.environ.get("NORMKIT_BACKEND")
    if forced is not None:
        if forced not in _BACKENDS:
            raise unknown("NORMKIT_BACKEND", forced, _BACKENDS)
        return Choice(forced, "NORMKIT_BACKEND asks for it", _BACKENDS[forced])
    return Choice("composed", f"no compiled kernels for {x.device.type} yet: torch operations", composed)


def explain(x: Tensor) -> str:
    """One line for a person: the backend that computes norms of x, and why.

    >>> import torch
    >>> explain(torch.ones(2, 3))
    'composed: no compiled kernels for cpu yet: torch operations'
    """
    choice = choose(x)
    return f"{choice.name}: {choice.reason}"


def channels(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    activation: str | None = None,
    residual: Tensor | None = None,
    mask: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, int | Tensor]:
    """Batch norm of x (N, C, *) by its own statistics: y, and mean (C), biased variance (C), count."""
    return choose(x).backend.channels(x, weight, bias, eps, activation, residual, mask)


def channels_given(
    x: Tensor,
    mean: Tensor,
    var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    activation: str | None = None,
    residual: Tensor | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """Batch norm of x (N, C, *) by given statistics (C), which are constants."""
    return choose(x).backend.channels_given(x, mean, var, weight, bias, eps, activation, residual, mask)


def rows(
    x: Tensor, ndim: int, weight: Tensor | None, bias: Tensor | None, eps: float, centered: bool
) -> Tensor:
    """Layer norm over the last ndim axes of x; RMS norm where it is not centered."""
    return choose(x).backend.rows(x, ndim, weight, bias, eps, centered)


def groups(
    x: Tensor,
    num_groups: int,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    activation: str | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Group norm of x (N, C, *): y, and mean and biased variance (N, num_groups)."""
    return choose(x).backend.groups(x, num_groups, weight, bias, eps, activation)
