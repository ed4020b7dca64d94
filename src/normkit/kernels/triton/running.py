"""Running statistics, moved by one launch instead of a dozen."""

from __future__ import annotations

# Kernels are not Python: what Triton compiles has no types for pyright.
# pyright: basic, reportArgumentType=false, reportOperatorIssue=false, reportCallIssue=false, reportIndexIssue=false
# pyright: reportOptionalOperand=false, reportAttributeAccessIssue=false, reportGeneralTypeIssues=false
# pyright: reportInvalidTypeForm=false
import triton
import triton.language as tl
from torch import Tensor

from normkit.kernels import composed
from normkit.kernels.triton.launch import launch

_WIDTH = 1024


@triton.jit(do_not_specialize=["C", "number"])
def _move_kernel(
    mean_ptr, var_ptr, stats_ptr, count_ptr, batches_ptr, skipped_ptr, momentum: tl.float64, C, number,
    CUMULATIVE: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """r + f (b - r), in float64, for the mean and the unbiased variance b of one batch; one program for all."""
    count = number.to(tl.float64)
    if count_ptr is not None:
        count = tl.load(count_ptr).to(tl.float64)
    bessel = count / tl.maximum(count - 1.0, 1.0)
    moving = (count > 1.0).to(tl.int64)  # a number: how many batches count
    if skipped_ptr is not None:
        odd = tl.zeros([WIDTH], tl.int32)
        for first in range(0, C, WIDTH):
            c = first + tl.arange(0, WIDTH)
            mean = tl.load(stats_ptr + c, c < C, 0.0).to(mean_ptr.dtype.element_ty)
            var = (tl.load(stats_ptr + C + c, c < C, 0.0) * bessel).to(var_ptr.dtype.element_ty)
            # A difference is 0 for finite numbers alone.
            odd += ((mean - mean != 0.0) | (var - var != 0.0)).to(tl.int32)
        finite = (tl.max(odd, 0) == 0).to(tl.int64)
        tl.store(skipped_ptr, tl.load(skipped_ptr) + moving * (1 - finite))
        moving *= finite
    factor = momentum + 0.0 * count
    if batches_ptr is not None:
        batches = tl.load(batches_ptr) + moving
        tl.store(batches_ptr, batches)
        if CUMULATIVE:
            factor = 1.0 / tl.maximum(batches, 1).to(tl.float64)
    for first in range(0, C, WIDTH):
        c = first + tl.arange(0, WIDTH)
        there = (c < C) & (moving > 0)
        _move(mean_ptr + c, tl.load(stats_ptr + c, there, 0.0), factor, there)
        _move(var_ptr + c, tl.load(stats_ptr + C + c, there, 0.0) * bessel, factor, there)


@triton.jit
def _move(ptr, batch, factor, there):
    old = tl.load(ptr, there, 0.0).to(tl.float64)
    tl.store(ptr, (old + factor * (batch - old)).to(ptr.dtype.element_ty), there)


def update_running(
    running_mean: Tensor,
    running_var: Tensor,
    stats: Tensor,
    count: int | Tensor,
    momentum: float | None,
    num_batches_tracked: Tensor | None,
    num_batches_skipped: Tensor | None = None,
) -> None:
    """As `kernels.cpu` has it; several batches at once by torch operations."""
    arguments = momentum, num_batches_tracked, num_batches_skipped
    if stats.dim() > 2:
        return composed.update_running(running_mean, running_var, stats, count, *arguments)
    number, counts = (0, count) if isinstance(count, Tensor) else (count, None)
    launch(_move_kernel, (1,),
        running_mean, running_var, stats, counts, num_batches_tracked, num_batches_skipped, momentum or 0.0,
        running_mean.shape[0], number, momentum is None, _WIDTH,
    )  # fmt: skip
    return None
