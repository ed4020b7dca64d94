"""The row family: layer norm and RMS norm of the rows of a contiguous tensor.

A kernel depends on the dtype, on which parameters there are, and on the tile, which is a power of two from 64 to
16384 elements: at most nine. Rows are run-time sizes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from normkit.kernels.triton.launch import launch
from normkit.kernels.triton.row_kernels import backward_kernel, columns_kernel, forward_kernel, join_kernel

_WARP = 32
_SMALLEST, WHOLE, WHOLE_BACKWARD = 64, 16384, 8192  # elements of a row that is held whole
_TILE = 2048  # elements of several short rows
_STREAM = 8192  # elements at a time of a row that is not held whole
_SUMMED = 32  # rows that are summed in float32, before float64 takes over
_COLUMNS, _COLUMN_ROWS = 128, 32
_MOST_PROGRAMS = 65535  # along the second axis of a grid
_JOINED = 16, 128  # columns, and programs, at a time


def forward(
    x: Tensor, M: int, weight: Tensor | None, bias: Tensor | None, eps: float, centred: bool = True
) -> tuple[Tensor, Tensor]:
    """y; mean, biased variance and 0 of each row (3, rows)."""
    R = x.numel() // M
    y, stats = torch.empty_like(x), x.new_empty((3, R), dtype=torch.float64)
    whole, rows, run, lanes, warps = tile(M, x.element_size(), WHOLE)
    launch(forward_kernel, (-(-R // rows),),
        x, y, weight, bias, stats, eps, R, M, centred, whole, rows, run, lanes, num_warps=warps
    )  # fmt: skip
    return y, stats


def backward(
    x: Tensor,
    dy: Tensor,
    stats: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    centred: bool = True,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """dx, dweight, dbias."""
    R = stats.shape[1]
    M = x.numel() // R
    dx = torch.empty_like(x)
    dweight = None if weight is None else torch.empty_like(weight)
    dbias = None if bias is None else torch.empty_like(bias)
    whole, rows, run, lanes, warps = tile(M, x.element_size(), WHOLE_BACKWARD)
    summed = dweight is not None or dbias is not None
    programs = -(-R // max(_SUMMED, rows))
    if not whole:
        programs = min(programs, _MOST_PROGRAMS)
    partial = x.new_empty((2, programs, M), dtype=torch.float32) if summed else None
    fused = partial if whole else None
    launched = programs if fused is not None else -(-R // rows)
    per_program = rows * -(-R // (rows * launched))
    launch(backward_kernel, (launched,),
        x, dy, dx, weight, stats, fused, eps, R, M, per_program, centred, whole, rows, run, lanes, num_warps=warps
    )  # fmt: skip
    if partial is not None:
        if not whole:
            launch(columns_kernel, (-(-M // _COLUMNS), programs),
                x, dy, stats, partial, eps, R, M, -(-R // programs), _COLUMN_ROWS, _COLUMNS, num_warps=4
            )  # fmt: skip
        launch(join_kernel, (-(-M // _JOINED[0]),), partial, dweight, dbias, programs, M, *_JOINED)
    return dx, dweight, dbias


def tile(M: int, bytes_each: int, most: int) -> tuple[bool, int, int, int, int]:
    """Whether a row is held whole; rows, run and lanes of a tile; warps."""
    block = max(_SMALLEST, 1 << (M - 1).bit_length())
    whole = block <= most
    if not whole:
        block = _STREAM
    rows = max(1, _TILE // block)
    warps = min(16, max(4, rows * block // (16 * _WARP)))
    lanes = min(block, warps * _WARP * (16 // bytes_each) // rows)
    return whole, rows, block // lanes, lanes, warps
