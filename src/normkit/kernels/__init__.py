"""The way from a norm to the code that computes it: which backend runs, and why.

A backend is a module with the same four functions: `compiled` on the kernels of `cpu`, and `composed` of
torch operations, which runs everywhere. `NORMKIT_BACKEND=composed`, set before the import, leaves the choice
at that.
"""

from __future__ import annotations

import os
from types import ModuleType

import torch
from torch import Tensor
from torch._C._functorch import peek_interpreter_stack as _functorch_level
from torch.autograd import forward_ad
from torch.nn import Parameter

from normkit.errors import unknown
from normkit.kernels import composed

try:
    from normkit.kernels import compiled
except ImportError as failure:  # installed without a compiler
    compiled = None
    _MISSING = f"the compiled extension is not there ({failure})"
else:
    _MISSING = None

__all__ = ["ACTIVATIONS", "explain"]

ACTIVATIONS = tuple(composed.ACTIVATIONS)

_FORCED = os.environ.get("NORMKIT_BACKEND")
if _FORCED not in (None, "compiled", "composed"):
    raise unknown("NORMKIT_BACKEND", _FORCED, ("compiled", "composed"))


def explain(x: Tensor) -> str:
    """One line for a person: the backend that computes norms of x, and why.

    >>> explain(torch.ones(2, 3, device="meta"))
    'composed: no compiled kernels for meta tensors'
    """
    reason = _against_compiled(x)
    if reason is not None:
        return f"composed: {reason}"
    facts = compiled.cpu.describe()
    return f"compiled: CPU kernels for {facts['instruction_set']}, built by {facts['compiler']}"


def choose(x: Tensor, *parameters: Tensor | None, residual: Tensor | None = None) -> ModuleType:
    """The backend that computes norms of x, with parameters of a dtype that it takes."""
    if _against_compiled(x) is not None or (residual is not None and residual.dtype != x.dtype):
        return composed
    dtypes = {parameter.dtype for parameter in parameters if parameter is not None}
    return compiled if not dtypes or dtypes in ({x.dtype}, {torch.float32}) else composed


def _against_compiled(x: Tensor) -> str | None:
    """Why the compiled kernels cannot take x; None where they can."""
    if _FORCED == "composed":
        return "NORMKIT_BACKEND asks for it"
    if _MISSING is not None:
        return _MISSING
    if not x.is_cpu:
        return f"no compiled kernels for {x.device.type} tensors"
    if x.dtype not in compiled.cpu.DTYPES:
        return f"no compiled kernels for {x.dtype}"
    if _functorch_level() is not None or forward_ad._current_level >= 0:
        return "torch.func transforms and forward-mode differentiation take torch operations"
    if type(x) not in (Tensor, Parameter) and not compiled.is_watched():
        return f"{type(x).__name__} is a tensor of its own kind"
    if x.layout != torch.strided or x.is_neg() or x.numel() == 0:
        return "the tensor is empty, or has no plain memory"
    return None


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
    return choose(x, weight, bias, residual=residual).channels(
        x, weight, bias, eps, activation, residual, mask
    )


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
    return choose(x, weight, bias, residual=residual).channels_given(
        x, mean, var, weight, bias, eps, activation, residual, mask
    )


def rows(
    x: Tensor, ndim: int, weight: Tensor | None, bias: Tensor | None, eps: float, centered: bool
) -> Tensor:
    """Layer norm over the last ndim axes of x; RMS norm where it is not centered."""
    return choose(x, weight, bias).rows(x, ndim, weight, bias, eps, centered)


def groups(
    x: Tensor,
    num_groups: int,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    activation: str | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Group norm of x (N, C, *): y, and mean and biased variance (N, num_groups)."""
    return choose(x, weight, bias).groups(x, num_groups, weight, bias, eps, activation)
