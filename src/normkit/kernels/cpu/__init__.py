"""The compiled CPU kernels on torch tensors: no autograd, no fallback. Importing this raises ImportError without them.

Two layouts are taken as they are, and outputs have the layout of `x`:

- contiguous, memory (N, C, *spatial);
- channels last, memory (N, *spatial, C), of any rank.

`native(x)` tells whether `x` has one of them; whoever calls copies anything else, and gives every tensor of a call
the layout and the dtype of `x`: float32, float64, bfloat16 or float16. Parameters have the dtype of `x` or float32.

Statistics are one float64 tensor (3, C): the mean, the biased variance, and the tail, what the mean has beyond the
bits of float64. With N * S elements per channel and a `mask` (N, *spatial) of bool, positions that are False
count in nothing: their output and their gradient are zero, whatever `x` holds there.
"""

from __future__ import annotations

import torch
from torch import Tensor

from normkit.kernels.cpu import _native

DTYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}
ACTIVATIONS = {
    None: 0, "relu": 1, "leaky_relu": 2, "silu": 3, "gelu": 4, "elu": 5, "sigmoid": 6, "tanh": 7,
}  # fmt: skip

SUMS, OUTPUTS = 1, 2  # the stages of a call


def native(x: Tensor) -> bool:
    """Whether the kernels take `x` (N, C, *spatial) as it lies in memory."""
    return x.is_contiguous() or x.movedim(1, -1).is_contiguous()


def _sizes(x: Tensor) -> tuple[int, int, int, int, bool]:
    """N, C, S, the code of the dtype, and whether channels lie side by side."""
    N, C = x.shape[:2]
    S = x.numel() // max(N * C, 1)
    return N, C, S, DTYPES[x.dtype], S == 1 or not x.is_contiguous()


def _address(x: Tensor | None) -> int:
    return 0 if x is None else x.data_ptr()


def channels_moments(x: Tensor, mask: Tensor | None = None) -> tuple[int, Tensor]:
    """Elements that count per channel, and the statistics (3, C)."""
    N, C, S, dtype, last = _sizes(x)
    stats = torch.empty((3, C), dtype=torch.float64)
    count = _native.channels_forward(
        N, C, S, dtype, last, SUMS, 0, 0.0, x.data_ptr(), 0, 0, 0, 0, 0, _address(mask), 0, 0, 0, 0, stats.data_ptr()
    )
    return count, stats


def channels_forward(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    activation: int = 0,
    residual: Tensor | None = None,
    mask: Tensor | None = None,
) -> tuple[Tensor, Tensor, int]:
    """a(weight xhat + bias + residual) with the statistics of `x`; the statistics (3, C); the count per channel."""
    N, C, S, dtype, last = _sizes(x)
    y = torch.empty_like(x)
    stats = torch.empty((3, C), dtype=torch.float64)
    count = _native.channels_forward(
        N, C, S, dtype, last, SUMS | OUTPUTS, activation, eps, x.data_ptr(), y.data_ptr(),
        _address(weight), _address(bias), 0 if weight is None else DTYPES[weight.dtype],
        _address(residual), _address(mask), 0, 0, 0, 0, stats.data_ptr(),
    )  # fmt: skip
    return y, stats, count


def channels_backward(
    x: Tensor,
    dy: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    stats: Tensor,
    eps: float,
    activation: int = 0,
    residual: Tensor | None = None,
    mask: Tensor | None = None,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    N, C, S, dtype, last = _sizes(x)
    dx = torch.empty_like(x)
    sums = torch.empty((2, C), dtype=torch.float64)
    dweight = None if weight is None else torch.empty_like(weight)
    dbias = None if bias is None else torch.empty_like(bias)
    p = stats.data_ptr()
    _native.channels_backward(
        N, C, S, dtype, last, SUMS | OUTPUTS, activation, eps, x.data_ptr(), dy.data_ptr(),
        _address(weight), _address(bias), 0 if weight is None else DTYPES[weight.dtype],
        _address(residual), _address(mask), p, p + 8 * C, p + 16 * C, 1, False, 0.0,
        dx.data_ptr(), 0, _address(dweight), _address(dbias), sums.data_ptr(),
    )  # fmt: skip
    return dx, dweight, dbias
