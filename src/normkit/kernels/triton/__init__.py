"""The GPU's kernels on torch tensors, the same primitives as `kernels.cpu`: no autograd, no fallback.

Written in Triton for NVIDIA GPUs. Tensors are float32, bfloat16 or float16; arithmetic is float32, on few numbers for
each set of elements float64. Layouts, masks, statistics and their dtypes are those of `kernels.cpu`; the tail of a
mean is 0, as float64 holds all that two float32 do. No value is added atomically, and sums have a fixed order: on one
kind of device a call gives the same bits every time.

`channels` and `groups` are batch norm and its relatives on `channel_kernels`, cut as `plan` says; `rows` is layer and
RMS norm. Outputs are allocated before anything runs, so that memory that is out changes nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor

from normkit.kernels.codes import ACTIVATIONS as ACTIVATIONS
from normkit.kernels.composed import slopes as slopes
from normkit.kernels.composed import statistic_gradients as statistic_gradients
from normkit.kernels.triton import channels, groups, rows
from normkit.kernels.triton.plan import INTERPRETED
from normkit.kernels.triton.running import update_running as update_running

DTYPES = (torch.float32, torch.bfloat16, torch.float16)

groups_forward, groups_backward = groups.forward, groups.backward
rows_forward, rows_backward = rows.forward, rows.backward


def describe(x: Tensor) -> str:
    """What runs the kernels on x."""
    import triton

    where = "its interpreter" if INTERPRETED else torch.cuda.get_device_name(x.device)
    return f"Triton {triton.__version__} kernels on {where}"


def channels_moments(
    x: Tensor, mask: Tensor | None = None, per_sample: bool = False
) -> tuple[Tensor, int | Tensor]:
    """The statistics (3, C), or (3, N, C) `per_sample`; elements of each, of all the mask counts under a mask."""
    stats = channels.moments(x, 1 if per_sample else x.shape[0], mask)
    count = x.numel() // (x.shape[1] * (x.shape[0] if per_sample else 1)) if mask is None else mask.sum()
    return stats if per_sample else stats[:, 0], count


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
    kept: bool = False,  # here the cache needs no advice
) -> Tensor:
    """activation(weight (x - mean) / sqrt(var + eps) + bias + residual), with given statistics (C) or (N, C)."""
    per_set = mean.dim() > 1
    size = 1 if per_set else x.shape[0]
    return channels.normalize(
        x, size, mean, var, tail, weight, bias, eps, activation, residual, mask, per_set
    )


def channels_forward(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    activation: int = 0,
    residual: Tensor | None = None,
    mask: Tensor | None = None,
) -> tuple[Tensor, Tensor, int | Tensor]:
    """The same with the statistics of x itself: y, the statistics (3, C), elements per channel."""
    y, stats = channels.forward(x, x.shape[0], weight, bias, eps, activation, residual, mask)
    return y, stats[:, 0], x.numel() // x.shape[1] if mask is None else mask.sum()


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
    """Sums (2, C), or (2, N, C), in float64: of dz, and of dz xhat."""
    per_set = mean.dim() > 1
    size = 1 if per_set else x.shape[0]
    sums = channels.gradient_sums(
        x, dy, size, mean, var, tail, weight, bias, eps, activation, residual, mask, per_set
    )
    return sums[:2] if per_set else sums[:2, 0]


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
    """dx = weight / sqrt(var + eps) dz + slopes[0] xhat + slopes[1], and the gradient of `residual`."""
    per_set = mean.dim() > 1
    size = 1 if per_set else x.shape[0]
    return channels.input_gradient(
        x, dy, size, mean, var, tail, slopes, weight, bias, eps, activation, residual, mask, per_set
    )


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
    """dx, dweight, dbias, dresidual, from the statistics (3, C) that channels_forward returned."""
    return ghosts_backward(
        x, dy, stats.unsqueeze(1), x.shape[0], weight, bias, eps, activation, residual, mask
    )


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
    """The same with statistics (C) that do not depend on x."""
    operands = weight, bias, eps, activation, residual, mask
    dx, dresidual = channels_input_gradient(x, dy, mean, var, None, *operands)
    if weight is None and bias is None:
        return dx, None, None, dresidual
    dz, dz_xhat = channels_gradient_sums(x, dy, mean, var, *operands)
    return dx, _rounded(dz_xhat, weight), _rounded(dz, bias), dresidual


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
    """Batch norm of each run of `together` samples, and of what remains: y and the statistics (3, runs, C)."""
    return channels.forward(x, together, weight, bias, eps, activation, residual, mask)


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
    """dx, dweight, dbias, dresidual of it."""
    dx, dresidual, sums = channels.backward(
        x, dy, together, stats[0], stats[1], weight, bias, eps, activation, residual, mask
    )
    return dx, _rounded(sums[1], weight), _rounded(sums[0], bias), dresidual


def _rounded(sums: Tensor, parameter: Tensor | None) -> Tensor | None:
    """The gradient of a parameter (C) of sums (C) or (runs, C)."""
    if parameter is None:
        return None
    total = sums if sums.dim() == 1 else sums[0] if sums.shape[0] == 1 else sums.sum(0)
    return total.to(parameter.dtype)
