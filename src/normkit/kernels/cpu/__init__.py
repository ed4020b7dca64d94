"""The compiled CPU kernels on torch tensors: no autograd, no fallback; without them the import fails.

Tensors are float32, float64, bfloat16 or float16; arithmetic inside is float32 or wider. Every tensor of a
call has the dtype, the shape and the layout of `x`; outputs have them too. The channel and group families
take two layouts as they lie in memory; `native(x)` tells whether `x` has one. Whoever calls copies the rest:

- contiguous, memory (N, C, *spatial);
- channels last, memory (N, *spatial, C), of any rank.

The row family takes contiguous tensors. Weight and bias, both or either, have one dtype: that of `x`, or
float32.

Statistics are float64 in three rows: mean, biased variance, and tail, what the mean has beyond the bits of
float64. Where a `mask` (N, *spatial) of bool is given, positions that are False count in nothing, and their
outputs and gradients are zero whatever `x` holds there. Nothing here checks its arguments.
"""

from __future__ import annotations

import sys

import torch
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from normkit.kernels.codes import ACTIVATIONS as ACTIVATIONS
from normkit.kernels.cpu import _native

DTYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}

SUMS, OUTPUTS, KEPT = 1, 2, 4  # the stages of a call, and that x is kept
_BOTH = SUMS | OUTPUTS
_POOLED = _native.pooled_bytes() or sys.maxsize
_MOST_AXES = 8


def native(x: Tensor) -> bool:
    """Whether the kernels take `x` (N, C, *spatial) as it lies in memory."""
    return x.is_contiguous() or x.movedim(1, -1).is_contiguous()


# Whether batch norm of x, residual, weight, bias, running mean and variance is an ordinary call: all checks hold, and
# the kernels take the tensors as they lie in memory; and the same of x, normalized_shape, weight and bias in a row.
plain_channels = _native.plain_channels
plain_rows = _native.plain_rows


def describe() -> dict[str, str]:
    """The compiler of the extension and the instruction set that it runs with."""
    return _native.describe()


def release_memory() -> int:
    """Return the memory that is kept for large outputs to the system; the bytes that lay idle."""
    return _native.release_blocks()


def channels_moments(x: Tensor, mask: Tensor | None = None, per_sample: bool = False) -> tuple[Tensor, int]:
    """The statistics (3, C) of the channels of `x`, and how many elements of each they were taken over.

    `per_sample`: (3, N, C), of each sample; the count is that of a sample without a mask.
    """
    stats = torch.empty((3, *x.shape[:2]) if per_sample else (3, x.shape[1]), dtype=torch.float64)
    count = _native.channels_forward(
        SUMS, 0, 0.0, per_sample, x, None, None, None, None, mask, None, None, None, stats
    )
    return stats, count


def channels_normalize(
    x: Tensor,
    mean: Tensor,
    var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    activation: int = 0,
    residual: Tensor | None = None,
    mask: Tensor | None = None,
    tail: Tensor | None = None,
    kept: bool = False,
) -> Tensor:
    """Return activation(weight (x - mean) / sqrt(var + eps) + bias + residual), with given statistics (C).

    `mean` and `var` share a dtype; `tail` is float64. Where they are (N, C), each sample has its own, as it has
    its own weight and bias then; all are float64. `kept`: a backward pass will read `x`, and has a use for the cache.
    """
    y = _output(x)
    stages = OUTPUTS | KEPT if kept else OUTPUTS
    _native.channels_forward(
        stages, activation, eps, mean.dim() > 1, x, y, weight, bias, residual, mask, mean, var, tail, None
    )
    return y


def channels_forward(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    activation: int = 0,
    residual: Tensor | None = None,
    mask: Tensor | None = None,
) -> tuple[Tensor, Tensor, int]:
    """The same with the statistics of `x` itself: y, the statistics (3, C), elements per channel."""
    y = _output(x)
    stats = torch.empty(3, x.shape[1], dtype=torch.float64)
    count = _native.channels_forward(
        _BOTH, activation, eps, False, x, y, weight, bias, residual, mask, None, None, None, stats
    )  # fmt: skip
    return y, stats, count


def channels_gradient_sums(
    x: Tensor,
    dy: Tensor,
    mean: Tensor,
    var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    activation: int = 0,
    residual: Tensor | None = None,
    mask: Tensor | None = None,
    tail: Tensor | None = None,
) -> Tensor:
    """Sums (2, C), or (2, N, C), in float64: of dz, which is the gradient of bias, and of dz xhat, that of weight.

    dz = dy activation'(z), with z recomputed from `x` and `residual`. Statistics as in channels_normalize.
    """
    sums = torch.empty((2, *mean.shape), dtype=torch.float64)
    _native.channels_backward(
        SUMS, activation, eps, mean.dim() > 1, x, dy, weight, bias, residual, mask, mean, var, tail, None,
        True, None, None, None, None, None, sums,
    )  # fmt: skip
    return sums


def channels_input_gradient(
    x: Tensor,
    dy: Tensor,
    mean: Tensor,
    var: Tensor,
    slopes: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    activation: int = 0,
    residual: Tensor | None = None,
    mask: Tensor | None = None,
    tail: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """dx, and the gradient of `residual` where there is one, with given slopes (2, C) or (2, N, C) in float64.

    dx = weight / sqrt(var + eps) dz + slopes[0] xhat + slopes[1]; without slopes the statistics are constants.
    """
    dx = _output(x)
    dresidual = None if residual is None else _output(x)
    _native.channels_backward(
        OUTPUTS, activation, eps, mean.dim() > 1, x, dy, weight, bias, residual, mask, mean, var, tail, None,
        slopes is None, slopes, dx, dresidual, None, None, None,
    )  # fmt: skip
    return dx, dresidual


def channels_backward(
    x: Tensor,
    dy: Tensor,
    stats: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    activation: int = 0,
    residual: Tensor | None = None,
    mask: Tensor | None = None,
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """dx, dweight, dbias, dresidual, from the statistics (3, C) that channels_forward returned.

    The sums, then the input gradient, block by block while a block is in the cache.
    """
    dx = _output(x)
    dresidual = None if residual is None else _output(x)
    dweight = None if weight is None else torch.empty_like(weight)
    dbias = None if bias is None else torch.empty_like(bias)
    _native.channels_backward(
        _BOTH, activation, eps, False, x, dy, weight, bias, residual, mask, None, None, None, stats,
        False, None, dx, dresidual, dweight, dbias, None,
    )  # fmt: skip
    return dx, dweight, dbias, dresidual


def channels_backward_evaluation(
    x: Tensor,
    dy: Tensor,
    mean: Tensor,
    var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    activation: int = 0,
    residual: Tensor | None = None,
    mask: Tensor | None = None,
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """The same with statistics (C) that do not depend on `x`: dx = weight / sqrt(var + eps) dz."""
    dx = _output(x)
    dresidual = None if residual is None else _output(x)
    dweight = None if weight is None else torch.empty_like(weight)
    dbias = None if bias is None else torch.empty_like(bias)
    _native.channels_backward(
        _BOTH, activation, eps, False, x, dy, weight, bias, residual, mask, mean, var, None, None,
        True, None, dx, dresidual, dweight, dbias, None,
    )  # fmt: skip
    return dx, dweight, dbias, dresidual


def groups_forward(
    x: Tensor,
    num_groups: int,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    activation: int = 0,
    centred: bool = True,
) -> tuple[Tensor, Tensor]:
    """Group norm of `x` (N, C, *spatial), weight and bias (C): y and the statistics (3, N, num_groups).

    Instance norm is `num_groups` = C. Not `centred`: the mean is taken to be 0, the variance is the mean square.
    """
    y = _output(x)
    stats = torch.empty(3, x.shape[0], num_groups, dtype=torch.float64)
    _native.groups_forward(num_groups, centred, activation, eps, x, y, weight, bias, stats)
    return y, stats


def groups_backward(
    x: Tensor,
    dy: Tensor,
    stats: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    activation: int = 0,
    centred: bool = True,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """dx, dweight, dbias of group norm with the statistics that groups_forward returned."""
    dx = _output(x)
    dweight = None if weight is None else torch.empty_like(weight)
    dbias = None if bias is None else torch.empty_like(bias)
    _native.groups_backward(
        stats.shape[2], centred, activation, eps, x, dy, weight, bias, stats, dx, dweight, dbias
    )  # fmt: skip
    return dx, dweight, dbias


def ghosts_forward(
    x: Tensor,
    together: int,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    activation: int = 0,
    residual: Tensor | None = None,
    mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Batch norm of each run of `together` samples of `x`, and of what remains: y and the statistics (3, runs, C)."""
    N, C = x.shape[0], x.shape[1]
    y = _output(x)
    stats = torch.empty(3, (N + together - 1) // together, C, dtype=torch.float64)
    _native.ghosts_forward(together, activation, eps, x, y, weight, bias, residual, mask, stats)
    return y, stats


def ghosts_backward(
    x: Tensor,
    dy: Tensor,
    stats: Tensor,
    together: int,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    activation: int = 0,
    residual: Tensor | None = None,
    mask: Tensor | None = None,
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """dx, dweight, dbias, dresidual of it, from the statistics that ghosts_forward returned."""
    dx = _output(x)
    dresidual = None if residual is None else _output(x)
    dweight = None if weight is None else torch.empty_like(weight)
    dbias = None if bias is None else torch.empty_like(bias)
    _native.ghosts_backward(
        together, activation, eps, x, dy, weight, bias, residual, mask, stats, dx, dresidual, dweight, dbias
    )
    return dx, dweight, dbias, dresidual


def blend_forward(
    x: Tensor,
    known_mean: Tensor,
    known_var: Tensor,
    share: float,
    per_sample: bool,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    activation: int = 0,
    residual: Tensor | None = None,
    mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Batch norm by statistics a share of the way from known ones (C), of one dtype, to those at hand.

    Returns y and what is at hand: mean, biased variance, tail, in rows (3, C) or, per sample, (3, N, C).
    """
    y = _output(x)
    stats = torch.empty((3, *x.shape[:2]) if per_sample else (3, x.shape[1]), dtype=torch.float64)
    _native.blend_forward(
        activation, eps, per_sample, x, y, weight, bias, residual, mask, known_mean, known_var, share, stats
    )
    return y, stats


def renorm_forward(
    x: Tensor,
    known_mean: Tensor,
    known_var: Tensor,
    r_max: float,
    d_max: float,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    activation: int = 0,
    residual: Tensor | None = None,
    mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Batch renorm towards known statistics (C) of one dtype: y, and what it is made with (7, C) in float64.

    That is the statistics, then what they led to: r, d, and as weight and bias weight r and bias + weight d.
    """
    y = _output(x)
    stats = torch.empty(7, x.shape[1], dtype=torch.float64)
    _native.renorm_forward(
        activation, eps, x, y, weight, bias, residual, mask, known_mean, known_var, r_max, d_max, stats
    )
    return y, stats


def renorm_backward(
    x: Tensor,
    dy: Tensor,
    stats: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    activation: int = 0,
    residual: Tensor | None = None,
    mask: Tensor | None = None,
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """dx, dweight, dbias, dresidual of it, from what renorm_forward returned; r and d are constants."""
    dx = _output(x)
    dresidual = None if residual is None else _output(x)
    dweight = None if weight is None else torch.empty_like(weight)
    dbias = None if bias is None else torch.empty_like(bias)
    _native.renorm_backward(activation, eps, x, dy, residual, mask, stats, dx, dresidual, dweight, dbias)
    return dx, dweight, dbias, dresidual


def merged_moments(counts: list[float], rows: Tensor) -> Tensor:
    """The statistics (3, C) of sets of `counts` values, each with a row of `rows`: C means, C biased variances."""
    stats = torch.empty(3, rows.shape[1] // 2, dtype=torch.float64)
    _native.merged_moments(counts, rows, stats)
    return stats


def statistic_gradients(sums: Tensor, var: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """The gradients (2, C) of mean and variance, from sums (2, C) of dz and of dz xhat."""
    gradients = torch.empty_like(sums)
    wide = weight if weight is None or weight.dtype is torch.float32 else weight.double()
    _native.statistic_gradients(sums, var, wide, eps, gradients)
    return gradients


def slopes(gradients: Tensor, var: Tensor, eps: float, count: int) -> Tensor:
    """Those of the input gradient (2, C), from the gradients of statistics over `count` values per channel."""
    to = torch.empty(gradients.shape, dtype=torch.float64)
    _native.slopes(gradients, var, eps, count, to)
    return to


def rows_forward(
    x: Tensor, M: int, weight: Tensor | None, bias: Tensor | None, eps: float, centred: bool = True
) -> tuple[Tensor, Tensor]:
    """Layer norm of the rows of M elements of contiguous `x`, weight and bias (M): y, statistics (3, rows).

    Not `centred`: RMS norm, y = weight x / sqrt(mean(x^2) + eps), whose statistics are 0, the mean square, 0.
    """
    R = x.numel() // M
    y = _output(x)
    stats = torch.empty(3, R, dtype=torch.float64)
    _native.rows_forward(R, centred, eps, x, y, weight, bias, stats)
    return y, stats


def rows_backward(
    x: Tensor,
    dy: Tensor,
    stats: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    centred: bool = True,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """dx, dweight, dbias of layer norm or RMS norm with the statistics that rows_forward returned."""
    dx = _output(x)
    dweight = None if weight is None else torch.empty_like(weight)
    dbias = None if bias is None else torch.empty_like(bias)
    _native.rows_backward(stats.shape[1], centred, eps, x, dy, weight, bias, stats, dx, dweight, dbias)
    return dx, dweight, dbias


def update_running(
    running_mean: Tensor,
    running_var: Tensor,
    stats: Tensor,
    count: int | Tensor,
    momentum: float | None,
    num_batches_tracked: Tensor | None,
    num_batches_skipped: Tensor | None = None,
) -> None:
    """Move running statistics (C) of one dtype towards `stats` (2 or more, C), taken over `count` elements.

    Counts the batch first. Without a momentum the factor is 1 / num_batches_tracked. Fewer than two elements
    move nothing; nor do statistics that are not finite where num_batches_skipped is there to count them. With
    `stats` (2 or more, K, C) and `count` (K) of int64, K batches that follow one another.
    """
    number, counts = (count, None) if isinstance(count, int) else (0, count)
    _native.update_running(
        number, counts, momentum or 0.0, momentum is None, stats, running_mean, running_var,
        num_batches_tracked, num_batches_skipped,
    )  # fmt: skip


def _output(x: Tensor) -> Tensor:
    """Uninitialized, like `x`, which is dense; a large one in memory of the pool."""
    if x.nbytes >= _POOLED and x.dim() <= _MOST_AXES:
        return from_dlpack(_native.pooled(x.shape, x.stride(), DTYPES[x.dtype]))
    return torch.empty_like(x)
