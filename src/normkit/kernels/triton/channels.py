"""The channel family: batch norm and its relatives, by set of `size` samples that share statistics."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from normkit.kernels.triton.channel_kernels import (
    GIVEN,
    OWN,
    SPLITS,
    backward_kernel,
    forward_kernel,
    join_moments_kernel,
    join_sums_kernel,
)
from normkit.kernels.triton.held import INTERPRETED
from normkit.kernels.triton.launch import launch
from normkit.kernels.triton.plan import Plan, plan, plan_of_stage

_SUMS, _OUTPUTS, _BOTH = (True, False), (False, True), (True, True)  # the stages of a launch
_MERGED = 2048  # statistics of splits that a program holds beside its tiles


def moments(x: Tensor, size: int, mask: Tensor | None) -> Tensor:
    """Mean, biased variance and 0 of each set: (3, runs, C) in float64."""
    cut = plan_of_stage(x, size)
    stats = _statistics(x, cut)
    partial = _partial(x, cut)
    _forward(
        cut, _SUMS, SPLITS, x, None, None, None, None, mask, None, None, None, stats, partial, 0.0, 0, False
    )
    _join_moments(partial, stats)
    return stats


def normalize(
    x: Tensor,
    size: int,
    mean: Tensor,
    var: Tensor,
    tail: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    activation: int,
    residual: Tensor | None,
    mask: Tensor | None,
    per_set: bool,
) -> Tensor:
    """The output by given statistics of each set; weight and bias are of the sets too where `per_set`."""
    cut, y = plan_of_stage(x, size), torch.empty_like(x)
    _forward(
        cut, _OUTPUTS, GIVEN, x, y, weight, bias, residual, mask, mean, var, tail, None, None, eps, activation, per_set
    )  # fmt: skip
    return y


def forward(
    x: Tensor,
    size: int,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    activation: int,
    residual: Tensor | None,
    mask: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """The output by the statistics of x itself, and these: (3, runs, C)."""
    cut, y = plan(x, size), torch.empty_like(x)
    stats = _statistics(x, cut)
    operands = x, y, weight, bias, residual, mask
    rest = eps, activation, False
    if cut.splits == 1:
        _forward(cut, _BOTH, OWN, *operands, None, None, None, stats, None, *rest)
        return y, stats
    partial = _partial(x, cut)
    if cut.barrier and not INTERPRETED:
        _forward(cut, _BOTH, SPLITS, *operands, None, None, None, stats, partial, *rest)
        return y, stats
    _forward(cut, _SUMS, SPLITS, *operands, None, None, None, stats, partial, *rest)
    if cut.barrier:  # the interpreter runs one program after another: the same two stages without the barrier
        _forward(cut, _OUTPUTS, SPLITS, *operands, None, None, None, stats, partial, *rest)
    else:
        _join_moments(partial, stats)
        _forward(cut, _OUTPUTS, GIVEN, *operands, stats[0], stats[1], None, None, None, *rest)
    return y, stats


def gradient_sums(
    x: Tensor,
    dy: Tensor,
    size: int,
    mean: Tensor,
    var: Tensor,
    tail: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    activation: int,
    residual: Tensor | None,
    mask: Tensor | None,
    per_set: bool,
) -> Tensor:
    """Sums of dz and of dz xhat, and the count, of each set: (3, runs, C) in float64."""
    cut = plan_of_stage(x, size)
    partial, sums = _partial(x, cut), _statistics(x, cut)
    operands = x, dy, None, None, weight, bias, residual, mask, mean, var, tail, None, sums, partial
    _backward(cut, _SUMS, SPLITS, *operands, eps, activation, per_set)
    _join_sums(partial, sums, weight, var, eps, per_set)
    return sums


def input_gradient(
    x: Tensor,
    dy: Tensor,
    size: int,
    mean: Tensor,
    var: Tensor,
    tail: Tensor | None,
    slopes: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    activation: int,
    residual: Tensor | None,
    mask: Tensor | None,
    per_set: bool,
) -> tuple[Tensor, Tensor | None]:
    """dx and dresidual by given slopes (2, runs, C) in float64, None where statistics are constants."""
    cut = plan_of_stage(x, size)
    dx, dresidual = torch.empty_like(x), None if residual is None else torch.empty_like(x)
    operands = x, dy, dx, dresidual, weight, bias, residual, mask, mean, var, tail, slopes, None, None
    _backward(cut, _OUTPUTS, GIVEN, *operands, eps, activation, per_set)
    return dx, dresidual


def backward(
    x: Tensor,
    dy: Tensor,
    size: int,
    mean: Tensor,
    var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    activation: int,
    residual: Tensor | None,
    mask: Tensor | None,
) -> tuple[Tensor, Tensor | None, Tensor]:
    """dx, dresidual, and sums (3, runs, C) as `gradient_sums` has them, with the statistics of x itself."""
    cut = plan(x, size, backward=True)
    dx, dresidual = torch.empty_like(x), None if residual is None else torch.empty_like(x)
    sums = _statistics(x, cut)
    operands = x, dy, dx, dresidual, weight, bias, residual, mask, mean, var, None
    rest = eps, activation, False
    if cut.splits == 1:
        _backward(cut, _BOTH, OWN, *operands, None, sums, None, *rest)
        return dx, dresidual, sums
    partial = _partial(x, cut)
    if cut.barrier and not INTERPRETED:
        _backward(cut, _BOTH, SPLITS, *operands, None, sums, partial, *rest)
        return dx, dresidual, sums
    _backward(cut, _SUMS, SPLITS, *operands, None, sums, partial, *rest)
    if cut.barrier:
        _backward(cut, _OUTPUTS, SPLITS, *operands, None, sums, partial, *rest)
    else:
        slopes = _join_sums(partial, sums, weight, var, eps, False)
        _backward(cut, _OUTPUTS, GIVEN, *operands, slopes, None, None, *rest)
    return dx, dresidual, sums


def _statistics(x: Tensor, cut: Plan) -> Tensor:
    return x.new_empty((3, cut.runs, x.shape[1]), dtype=torch.float64)


def _partial(x: Tensor, cut: Plan) -> Tensor:
    return x.new_empty((3, cut.splits, cut.runs * x.shape[1]), dtype=torch.float64)


def _forward(cut: Plan, stages: Any, source: Any, x: Tensor, *arguments: Any) -> None:
    *tensors, eps, activation, per_set = arguments
    mask = tensors[4]
    constants = per_set, activation, _merged_at_once(cut), cut.even and mask is None
    _launch(forward_kernel, cut, stages, source, x, tensors, eps, constants)


def _backward(cut: Plan, stages: Any, source: Any, x: Tensor, *arguments: Any) -> None:
    *tensors, eps, activation, per_set = arguments
    _launch(
        backward_kernel, cut, stages, source, x, tensors, eps, (per_set, activation, _merged_at_once(cut))
    )


def _launch(
    kernel: Any,
    cut: Plan,
    stages: Any,
    source: Any,
    x: Tensor,
    tensors: list[Tensor | None],
    eps: float,
    constants: tuple[Any, ...],
) -> None:
    barrier = cut.barrier and stages == _BOTH
    arrived = torch.zeros(cut.blocks, dtype=torch.int32, device=x.device) if barrier else None
    N, C = x.shape[0], x.shape[1]
    options = {"launch_cooperative_grid": True} if barrier else {}
    launch(kernel, (cut.blocks, cut.splits),
        x, *tensors, arrived, eps, N, C, cut.spatial, cut.size, cut.chunks, cut.per_split, cut.splits,
        cut.runs * C, *stages, source, barrier, cut.held, cut.channels_last, cut.run, cut.lanes, cut.j,
        *constants, num_warps=cut.warps, **options,
    )  # fmt: skip


def _merged_at_once(cut: Plan) -> int:
    """Splits, of as many sets as a block has."""
    return _MERGED // cut.j if cut.channels_last else 128


def _join_moments(partial: Tensor, stats: Tensor) -> None:
    splits, sets = partial.shape[1:]
    width, k = _joined_at_once(splits)
    launch(join_moments_kernel, (-(-sets // width),), partial, stats, sets, splits, width, k, num_warps=8)


def _join_sums(
    partial: Tensor, sums: Tensor, weight: Tensor | None, var: Tensor, eps: float, per_set: bool
) -> Tensor:
    splits, sets = partial.shape[1:]
    width, k = _joined_at_once(splits)
    slopes = partial.new_empty((2, sets))
    launch(join_sums_kernel, (-(-sets // width),),
        partial, sums, slopes, weight, var, eps, sets, sums.shape[2], splits, per_set, width, k, num_warps=8
    )  # fmt: skip
    return slopes


def _joined_at_once(splits: int) -> tuple[int, int]:
    """Sets and splits: many splits of few channels, or many sets, of single samples, that few programs share."""
    return (8, _MERGED // 8) if splits > 32 else (_MERGED // 8, 8)
