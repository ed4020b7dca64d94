"""The way from a norm to the code that computes it: which backend runs, and why.

A backend is a module with the same five functions: `compiled` on the kernels of `cpu` and, for CUDA tensors, of
`triton`; and `composed` of torch operations, which runs everywhere. `NORMKIT_BACKEND=composed`, set before the import,
leaves the choice at that; `NORMKIT_BACKEND=triton` has the GPU's kernels interpreted, see `families`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch._C import _get_tracing_state  # pyright: ignore
from torch._C._functorch import get_dynamic_layer_stack_depth
from torch.autograd import forward_ad
from torch.nn import Parameter

from normkit.errors import unknown
from normkit.kernels import combined as _engine
from normkit.kernels import compiled, composed, families
from normkit.kernels import shared as _shared
from normkit.kernels.composed import Combine, Running
from normkit.kernels.composed import correct as correct
from normkit.kernels.recomputation import recomputing
from normkit.kernels.runs import values_of_runs as values_of_runs
from normkit.kernels.shared import Meeting

if families.cpu is not None:
    from normkit.kernels import mixed as _mixed
    from normkit.kernels import renorm as _renorm
    from normkit.kernels import straight as _straight
else:
    _mixed = _renorm = _straight = None

__all__ = ["ACTIVATIONS", "explain", "release_memory"]

ACTIVATIONS = tuple(composed.ACTIVATIONS)

_OF_TORCH = (Tensor, Parameter)
_BACKENDS = ("compiled", "composed", "triton")
_ASKED = os.environ.get("NORMKIT_BACKEND", "compiled")


def _no_way(*_: Any) -> None:
    """Without kernels there is no short way to them."""


# The short way of ordinary calls: y, or None where a call must go the long way, and nothing has been done.
straight_channels = straight_ghosts = straight_renorm = _no_way
straight_blended = straight_groups = straight_rows = _no_way
if _straight is not None and _ASKED == "compiled":
    straight_channels, straight_ghosts = _straight.channels, _straight.ghosts
    straight_renorm, straight_blended = _straight.renorm, _straight.blended
    straight_groups, straight_rows = _straight.groups, _straight.rows


def explain(x: Tensor) -> str:
    """One line for a person: the backend that computes norms of x, and why.

    >>> explain(torch.ones(2, 3, device="meta"))
    'composed: no compiled kernels for meta tensors'
    """
    reason = _against(x)
    return f"compiled: {families.describe(x)}" if reason is None else f"composed: {reason}"


def release_memory() -> int:
    """Return the memory that is kept for the next large outputs to the system; in bytes, how much that was.

    Outputs of 2 MiB and more lie in memory that is used again once they are gone, because fresh pages cost more
    than the norm itself. It is never more than such outputs once took up at the same time. On Linux alone.
    """
    return 0 if families.cpu is None else families.cpu.release_memory()


def _choose(
    x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, residual: Tensor | None = None
) -> ModuleType:
    """The backend that computes norms of x with these parameters, whose dtypes the kernels must know."""
    if _against(x) is not None:
        return composed
    if residual is not None and residual.dtype != x.dtype:
        return composed
    parameter = bias if weight is None else weight
    if parameter is not None:
        dtype = parameter.dtype
        if dtype not in (x.dtype, torch.float32) or (bias is not None and bias.dtype != dtype):
            return composed
    return compiled


def _against(x: Tensor) -> str | None:
    """Why the compiled kernels do not take x; None where they do."""
    if _ASKED not in _BACKENDS:
        raise unknown("NORMKIT_BACKEND", _ASKED, _BACKENDS)
    if _ASKED == "composed":
        return "NORMKIT_BACKEND asks for it"
    reason = families.against(x)
    if reason is not None:
        return reason
    if get_dynamic_layer_stack_depth() > 0 or forward_ad._current_level >= 0:  # pyright: ignore[reportPrivateUsage]
        return "torch.func transforms and forward-mode differentiation take torch operations"
    if _get_tracing_state():
        return "torch.jit traces torch operations"
    if x.layout != torch.strided or x.numel() == 0:
        return "the tensor is empty or not strided"
    if compiled.is_watched():
        return None
    if type(x) not in _OF_TORCH:
        return f"{type(x).__name__} is a tensor of its own kind"
    if x.is_neg() or x._is_zerotensor():  # pyright: ignore
        return "the tensor is a negated view, or zeros without memory"
    return None


def channels(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    activation: str | None = None,
    residual: Tensor | None = None,
    mask: Tensor | None = None,
    running: Running | None = None,
) -> tuple[Tensor, Tensor, int | Tensor]:
    """Batch norm of x (N, C, *) by its own statistics: y; mean and biased variance as rows of C; count.

    Running statistics, where given, move once everything else has succeeded, as `statistics.update_running_` has it.
    """
    backend = _choose(x, weight, bias, residual)
    y, stats, count = backend.channels(x, weight, bias, eps, activation, residual, mask)
    if running is not None:
        mean, var, momentum, batches = running
        move = update_running if _traced(mean) else backend.update_running
        move(mean, var, stats, count, momentum, batches, None)
    return y, stats, count


def ghosts(
    x: Tensor,
    size: int,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    activation: str | None = None,
    residual: Tensor | None = None,
    mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Batch norm of each run of `size` samples of x, the last one maybe smaller: y; its moments (rows, runs, C)."""
    return _choose(x, weight, bias, residual).ghosts(x, size, weight, bias, eps, activation, residual, mask)


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
    return _choose(x, weight, bias, residual).channels_given(
        x, mean, var, weight, bias, eps, activation, residual, mask
    )


def rows(
    x: Tensor, ndim: int, weight: Tensor | None, bias: Tensor | None, eps: float, centered: bool
) -> Tensor:
    """Layer norm over the last ndim axes of x; RMS norm where it is not centered."""
    return _choose(x, weight, bias).rows(x, ndim, weight, bias, eps, centered)


def groups(
    x: Tensor,
    num_groups: int,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    activation: str | None = None,
    *,
    centered: bool = True,
) -> tuple[Tensor, Tensor]:
    """Group norm of x (N, C, *): y; mean and biased variance as rows of (N, num_groups).

    Where it is not centered the mean is taken to be 0, and the variance is the mean square.
    """
    return _choose(x, weight, bias).groups(x, num_groups, weight, bias, eps, activation, centered)


def combined(
    x: Tensor,
    combine: Combine,
    parameters: Sequence[Tensor],
    eps: float,
    *,
    per_sample: bool = False,
    activation: str | None = None,
    residual: Tensor | None = None,
    mask: Tensor | None = None,
) -> tuple[Tensor, Tensor, int | Tensor]:
    """Normalize x (N, C, *) by statistics that are made of its own: y; its moments; their count.

    Each channel's mean and biased variance over batch and space, or over space alone for each sample, go through

        combine(mean, var, count, *parameters) -> mean, var, weight, bias

    plain torch operations on float64 of shape (C), or (N, C) `per_sample`, through which gradients reach x and the
    parameters; weight and bias may be None. The count is an int, under a mask a float64 tensor () or (N, 1).
    What is returned besides y is what went into combine: rows mean and biased variance, and the count.
    """
    backend = _choose(x, residual=residual)
    engine = composed if backend is composed or backend.is_watched() else _engine
    return engine.combined(x, combine, parameters, eps, per_sample, activation, residual, mask)


def shifted(y: Tensor, shift: Tensor, mask: Tensor | None = None) -> Tensor:
    """What has just come from a kernel, and belongs to nobody else yet, plus shift (C); 0 at padded positions."""
    shift = shift.view([-1] + [1] * (y.dim() - 2))
    backend = _choose(y)
    if (
        backend is composed or backend.is_watched()
    ):  # whose operations may have kept y for their backward pass
        y = y + shift
    else:
        y = y.add_(shift)
    return y if mask is None else y.masked_fill(~mask.unsqueeze(1), 0)


def blended(
    x: Tensor,
    known_mean: Tensor,
    known_var: Tensor,
    share: float | Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    activation: str | None = None,
    residual: Tensor | None = None,
    mask: Tensor | None = None,
    *,
    per_sample: bool = False,
) -> tuple[Tensor, Tensor, int | Tensor] | None:
    """Batch norm by statistics a share of the way from known ones (C) to those at hand: y; moments; count.

    In one call for plain tensors without a graph; None where torch operations must see what happens, as `combined`
    lets them.
    """
    tensors = x, known_mean, known_var, weight, bias, residual, share
    recorded = torch.is_grad_enabled() and any(isinstance(t, Tensor) and t.requires_grad for t in tensors)
    if recorded or not families.on_cpu(x) or compiled.is_watched():
        return None
    if _choose(x, weight, bias, residual) is composed:
        return None
    return compiled.blended(
        x, known_mean, known_var, float(share), weight, bias, eps, activation, residual, mask, per_sample
    )


def renorm(
    x: Tensor,
    known_mean: Tensor,
    known_var: Tensor,
    r_max: float | Tensor,
    d_max: float | Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    activation: str | None = None,
    residual: Tensor | None = None,
    mask: Tensor | None = None,
) -> tuple[Tensor, Tensor, int | Tensor]:
    """Batch renorm of x (N, C, *) towards known statistics (C), with r and d in the limits: y; moments; count."""
    backend = _choose(x, weight, bias, residual)
    seen = backend is composed or backend.is_watched()
    fused = _renorm is not None and not seen and families.on_cpu(x)
    if _renorm is None or not fused or isinstance(r_max, Tensor) or isinstance(d_max, Tensor):
        through = composed.combined if seen else _engine.combined
        return composed.renorm(
            x, known_mean, known_var, r_max, d_max, weight, bias, eps, activation, residual, mask, through
        )
    return _renorm.renorm(
        x, known_mean, known_var, r_max, d_max, weight, bias, eps, activation, residual, mask
    )


def mixed(
    x: Tensor,
    mixture: str,
    combine: Combine,
    known: tuple[Tensor | None, Tensor | None],
    shares: tuple[Tensor, ...],
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    activation: str | None = None,
    residual: Tensor | None = None,
    mask: Tensor | None = None,
) -> tuple[Tensor, Tensor, int] | None:
    """Norm of x (N, C, *) by mixed statistics, of samples, their channels and the batch: y; the batch's; count.

    The mixture is "switched" by logits of its parts, or "interpolated" by gates of channels; known statistics (C) are
    the batch's, where there are any. None where torch operations must see what happens, as `combined` lets them, with

        combine(mean, var, count, *known, *shares, weight, bias) -> mean, var, weight, bias
    """
    if not families.on_cpu(x) or compiled.is_watched() or _choose(x, weight, bias, residual) is composed:
        return None
    known_mean, known_var = known
    if known_mean is None or known_var is None:
        statistics = None, None
    elif known_mean.requires_grad or known_var.requires_grad or known_mean.dtype != known_var.dtype:
        return None
    else:
        statistics = known_mean.contiguous(), known_var.contiguous()
    if any(share.dtype != shares[0].dtype for share in shares):
        return None
    assert _mixed is not None
    return _mixed.mixed(
        x, mixture, combine, statistics, shares, weight, bias, eps, activation, residual, mask
    )


def shared(
    x: Tensor,
    meeting: Meeting,
    combine: Combine,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    activation: str | None = None,
    residual: Tensor | None = None,
    mask: Tensor | None = None,
) -> Tensor | None:
    """Batch norm of x (N, C, *) by the statistics of all who meet: y; None where torch operations must see it.

    `combine(mean, var, count, weight, bias)` meets them within a graph of torch operations, as `combined` has it.
    """
    if compiled.is_watched() or _choose(x, weight, bias, residual) is composed:
        return None
    return _shared.shared(x, meeting, combine, weight, bias, eps, activation, residual, mask)


def merged_moments(counts: list[float], rows: Tensor) -> Tensor:
    """Chan, Golub and LeVeque 1983: rows mean, biased variance and tail of the mean (3, C), of sets of `counts` values.

    Each set has a row of `rows` (sets, 2 C): C means, C biased variances.
    """
    native = families.cpu is not None and families.on_cpu(rows) and rows.dtype == torch.float64
    return (families.cpu if native else composed).merged_moments(counts, rows)


def is_plain(x: Tensor) -> bool:
    """Whether x is a tensor of the CPU's kernels that nobody traces: its numbers are there to be read."""
    return families.on_cpu(x) and _against(x) is None and not compiled.is_watched()


def update_running(
    running_mean: Tensor,
    running_var: Tensor,
    stats: Tensor,
    count: int | Tensor,
    momentum: float | None,
    num_batches_tracked: Tensor | None,
    num_batches_skipped: Tensor | None = None,
) -> None:
    """Move running statistics (C) in place towards the rows of stats; see `statistics.update_running_`."""
    arguments = momentum, num_batches_tracked, num_batches_skipped
    if is_plain(running_mean) and running_var.dtype == running_mean.dtype:  # most often, and soon found out
        compiled.update_running(running_mean, running_var, stats, count, *arguments)
    elif _traced(running_mean):
        number, counts = (0, count) if isinstance(count, Tensor) else (count, None)
        torch.ops.normkit.update_running(running_mean, running_var, stats, number, counts, *arguments)
    else:
        backend = composed if running_var.dtype != running_mean.dtype else _choose(running_mean)
        backend.update_running(running_mean, running_var, stats, count, *arguments)


def _traced(running_mean: Tensor) -> bool:
    """Whether a program is being made, which must ask when it runs whether it is a recomputation, on any device.

    Not under transforms of torch.func, which know no rule for an operator of ours.
    """
    if torch.compiler.is_compiling():
        return get_dynamic_layer_stack_depth() == 0
    # By a dispatch mode, which the kernels would pass by.
    return compiled.is_watched() and _choose(running_mean) is not composed


@torch.library.custom_op(
    "normkit::update_running",
    mutates_args=("running_mean", "running_var", "num_batches_tracked", "num_batches_skipped"),
    schema="(Tensor(a!) running_mean, Tensor(b!) running_var, Tensor stats, SymInt count, Tensor? counts, "
    "float? momentum, Tensor(c!)? num_batches_tracked, Tensor(d!)? num_batches_skipped) -> ()",
)
def _update_operator(
    running_mean: Tensor,
    running_var: Tensor,
    stats: Tensor,
    count: int,
    counts: Tensor | None,
    *arguments: Any,
) -> None:
    if not recomputing():
        update_running(running_mean, running_var, stats, count if counts is None else counts, *arguments)
