"""Every norm as torch operations: runs on any device, under any transform, differentiable at will.

A norm is three steps over its own axes: `center` (subtract the mean), `unit` (divide by the root of the
mean square), `affine` (scale, shift, add the residual, activate). RMS norm leaves the first step out;
evaluation has its statistics given and leaves out both (`given`).

How digits are kept in float32: sums are float64 and the mean is subtracted in two parts, so that a large
mean costs nothing; squares are taken of values divided by a power of two near their largest, so that
neither 1e30 nor 1e-30 leaves the range.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

# Running mean and variance (C); their momentum, None for the average over all batches; how many those were.
Running = tuple[Tensor, Tensor, float | None, Tensor | None]
# From mean, biased variance and count of the channels, and parameters, to the mean, variance, weight and bias that
# normalize.
Combine = Callable[..., tuple[Tensor, Tensor, Tensor | None, Tensor | None]]

ACTIVATIONS = {
    "relu": torch.relu,
    "leaky_relu": F.leaky_relu,
    "silu": F.silu,
    "gelu": F.gelu,
    "elu": F.elu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "relu6": F.relu6,
    "hardswish": F.hardswish,
}


def channels(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    activation: str | None,
    residual: Tensor | None,
    mask: Tensor | None,
) -> tuple[Tensor, Tensor, int | Tensor]:
    """Batch norm of x (N, C, *) by its own statistics: y; mean and biased variance in rows (2, C); count."""
    dims = [0, *range(2, x.dim())]
    mask = None if mask is None else mask.unsqueeze(1)
    centered, mean, count = center(_wide(x), dims, mask)
    xhat, var = unit(centered, dims, eps, count)
    shape = _per_channel(x)
    y = affine(xhat, _view(weight, shape), _view(bias, shape), activation, residual, mask)
    count = count.reshape(()) if isinstance(count, Tensor) else count
    return y.to(x.dtype), torch.stack((mean.flatten(), var.flatten())), count


def channels_given(
    x: Tensor,
    mean: Tensor,
    var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    activation: str | None,
    residual: Tensor | None,
    mask: Tensor | None,
) -> Tensor:
    """Batch norm of x (N, C, *) by given statistics (C), which are constants."""
    mask = None if mask is None else mask.unsqueeze(1)
    shape = _per_channel(x)
    xhat = given(_wide(x), mean.view(shape), var.view(shape), eps, mask)
    return affine(xhat, _view(weight, shape), _view(bias, shape), activation, residual, mask).to(x.dtype)


def ghosts(
    x: Tensor,
    size: int,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    activation: str | None,
    residual: Tensor | None,
    mask: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Batch norm of each run of `size` samples of x: y; mean and biased variance in rows (2, runs, C)."""
    samples, spatial = x.shape[0], [1] * (x.dim() - 2)
    missing = -samples % size

    def cut(t: Tensor) -> Tensor:
        """(samples, ...) as (runs, size, ...), the last run filled up."""
        return F.pad(t, [0, 0] * (t.dim() - 1) + [0, missing]).unflatten(0, (-1, size))

    if mask is None:
        mask = torch.ones([samples, *spatial], dtype=torch.bool, device=x.device)
    mask = cut(mask).unsqueeze(2)
    wide = cut(_wide(x))
    dims = [1, *range(3, wide.dim())]
    centered, mean, count = center(wide, dims, mask)
    xhat, var = unit(centered, dims, eps, count)
    shape = [1, *_per_channel(x)]
    residual = None if residual is None else cut(residual)
    y = affine(xhat, _view(weight, shape), _view(bias, shape), activation, residual, mask)
    statistics = torch.stack((mean.flatten(1), var.flatten(1)))
    y = y.flatten(0, 1)[:samples].to(x.dtype)
    if not x.is_contiguous():  # cutting loses the memory format
        y = y.movedim(1, -1).contiguous().movedim(-1, 1)
    return y, statistics


def rows(
    x: Tensor,
    ndim: int,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    centered: bool,
) -> Tensor:
    """Layer norm over the last ndim axes of x; RMS norm where it is not centered."""
    dims = list(range(x.dim() - ndim, x.dim()))
    wide = _wide(x)
    if centered:
        wide, _, _ = center(wide, dims, None)
    xhat, _ = unit(wide, dims, eps, _size(x, dims))
    return affine(xhat, weight, bias, None, None, None).to(x.dtype)


def groups(
    x: Tensor,
    num_groups: int,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    activation: str | None,
    centered: bool,
) -> tuple[Tensor, Tensor]:
    """Group norm of x (N, C, *): y; mean and biased variance (2, N, num_groups)."""
    # Splitting an axis is a view in every layout, so channels_last stays as it is.
    wide = _wide(x).unflatten(1, (num_groups, x.shape[1] // max(num_groups, 1)))
    dims = list(range(2, wide.dim()))
    mean = None
    if centered:
        wide, mean, _ = center(wide, dims, None)
    xhat, var = unit(wide, dims, eps, _size(wide, dims))
    shape = _per_channel(x)
    y = affine(xhat.flatten(1, 2), _view(weight, shape), _view(bias, shape), activation, None, None)
    mean = torch.zeros_like(var) if mean is None else mean
    return y.to(x.dtype), torch.stack((mean.flatten(1), var.flatten(1)))


def combined(
    x: Tensor,
    combine: Combine,
    parameters: Sequence[Tensor | None],
    eps: float,
    per_sample: bool,
    activation: str | None,
    residual: Tensor | None,
    mask: Tensor | None,
) -> tuple[Tensor, Tensor, int | Tensor]:
    """Normalize x (N, C, *) by what combine makes of its moments: y; mean, biased variance in rows; count."""
    if x.dim() == 2 and per_sample:  # no axis to take a statistic over, and torch takes none for all
        whole, of_one = x.unsqueeze(2), None if residual is None else residual.unsqueeze(2)
        of_mask = None if mask is None else mask.unsqueeze(1)
        y, stats, count = combined(whole, combine, parameters, eps, True, activation, of_one, of_mask)
        return y.squeeze(2), stats, count
    dims = [*([] if per_sample else [0]), *range(2, x.dim())]
    spatial = [1] * (x.dim() - 2)
    mask = None if mask is None else mask.unsqueeze(1)
    wide = _kept(_wide(x), mask)
    centered, mean, count = center(wide, dims, mask)
    shape = [x.shape[0], x.shape[1]] if per_sample else [x.shape[1]]
    mean, var = mean.reshape(shape), mean_square(centered, dims, count).reshape(shape)
    if isinstance(count, Tensor):
        count = count.to(mean.dtype).reshape([-1, 1] if per_sample else [])
    used = combine(mean, var, count, *parameters)
    m, v, w, b = (
        None if u is None else u.to(mean.dtype).expand(shape).reshape([*shape, *spatial]) for u in used
    )
    assert m is not None
    assert v is not None
    high = m.detach().to(wide.dtype)
    xhat = (wide - high - (m - high).to(wide.dtype)) * torch.rsqrt(v + eps).to(wide.dtype)
    y = affine(xhat, w, b, activation, residual, mask)
    return y.to(x.dtype), torch.stack((mean, var)).detach(), count


def merged_moments(counts: list[float], rows: Tensor) -> Tensor:
    """The moments (3, C) of sets of `counts` values, each with a row of `rows`: C means, C biased variances.

    The third row is what the mean has beyond its bits, as far as it is known: here not at all.
    """
    total = max(sum(counts), 1)
    shares = rows.new_tensor([[count / total] for count in counts])
    means, variances = rows.chunk(2, dim=1)
    # About the mean of one set, so that a large mean costs no digits.
    first = means[counts.index(max(counts))]
    mean = first + _ordered_sum(shares * (means - first))
    var = _ordered_sum(shares * (variances + (means - mean).square()))
    return torch.stack((mean, var, torch.zeros_like(mean)))


def statistic_gradients(sums: Tensor, var: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """The gradients (2, C) of mean and variance, from sums (2, C) of dz and of dz xhat."""
    deviation = (var + eps).sqrt()
    scale = 1 / deviation if weight is None else weight / deviation
    return torch.stack((-scale * sums[0], -scale * sums[1] / (2 * deviation)))


def slopes(gradients: Tensor, var: Tensor, eps: float, count: int) -> Tensor:
    """Those of the input gradient (2, C), from the gradients of statistics over `count` values per channel."""
    return torch.stack((2 * gradients[1] * (var + eps).sqrt(), gradients[0])) / count


def _ordered_sum(x: Tensor) -> Tensor:
    """Over the first axis, row by row: what the sum does is not left to the machine it runs on."""
    return x.cumsum(0)[-1]


def renorm(
    x: Tensor,
    known_mean: Tensor,
    known_var: Tensor,
    r_max: float | Tensor,
    d_max: float | Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    activation: str | None,
    residual: Tensor | None,
    mask: Tensor | None,
    through: Callable[..., tuple[Tensor, Tensor, int | Tensor]] = combined,
) -> tuple[Tensor, Tensor, int | Tensor]:
    """Batch renorm of x (N, C, *) towards known statistics (C): y; mean and biased variance in rows (2, C); count.

    `through` is the `combined` of any backend.
    """

    def combine(
        mean: Tensor, var: Tensor, count: object, weight: Tensor | None = None, bias: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return correct(r_max, d_max, eps, mean, var, known_mean, known_var, weight, bias)

    affine = [p for p in (weight, bias) if p is not None]
    return through(x, combine, affine, eps, False, activation, residual, mask)


def correct(
    r_max: float | Tensor,
    d_max: float | Tensor,
    eps: float,
    mean: Tensor,
    var: Tensor,
    known_mean: Tensor,
    known_var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Batch renorm's rule: the weight and bias that bring values of this mean and variance towards known ones."""
    deviation = (known_var.to(var.dtype) + eps).sqrt()
    r = _clip((var.detach() + eps).sqrt() / deviation, 1 / r_max, r_max)
    d = _clip((mean.detach() - known_mean) / deviation, -d_max, d_max)
    if weight is not None:
        weight = weight.to(r.dtype)  # once, so that its gradient is rounded once
        r, d = weight * r, weight * d
    return mean, var, r, d if bias is None else bias + d


@torch.no_grad()
def update_running(
    running_mean: Tensor,
    running_var: Tensor,
    stats: Tensor,
    count: int | Tensor,
    momentum: float | None,
    num_batches_tracked: Tensor | None,
    num_batches_skipped: Tensor | None,
) -> None:
    """Move running statistics (C) towards stats (2 or more, C) or (2 or more, K, C), rounded once.

    K batches that follow one another, in closed form: r + sum of f_k (b_k - r), where f_k is the momentum m
    times (1 - m) for each batch after the k-th, or the reciprocal of the number of batches.
    """
    mean, var, per_batch = stats[0], stats[1], [1] * running_mean.dim()
    count = count.to(mean.dtype) if isinstance(count, Tensor) else mean.new_full((), count)
    if mean.dim() == running_mean.dim():
        mean, var, count = mean.unsqueeze(0), var.unsqueeze(0), count.unsqueeze(0)
    count = count.view(-1, *per_batch) if count.dim() == 1 else count
    unbiased = var * (count / (count - 1).clamp(min=1))
    moving = count > 1
    if num_batches_skipped is not None:
        finite = mean.to(running_mean.dtype).isfinite() & unbiased.to(running_var.dtype).isfinite()
        finite = finite.flatten(1).all(1).view(-1, *per_batch)
        num_batches_skipped += (moving & ~finite).sum()
        moving = moving & finite
    if num_batches_tracked is not None:
        num_batches_tracked += moving.sum(0).view(num_batches_tracked.shape)
    if momentum is None:
        assert num_batches_tracked is not None
        factor = 1 / num_batches_tracked.clamp(min=1).to(mean.dtype)
    else:
        later = moving.flip(0).cumsum(0).flip(0) - moving.to(torch.int64)
        factor = momentum * torch.pow(1 - momentum, later.to(mean.dtype))
    for running, batch in ((running_mean, mean), (running_var, unbiased)):
        old = running.to(batch.dtype)
        # Chosen, not multiplied by zero: what is left out may be NaN.
        running.copy_(old + (factor * (batch - old)).where(moving, 0).sum(0))


def center(x: Tensor, dims: list[int], mask: Tensor | None) -> tuple[Tensor, Tensor, int | Tensor]:
    """x - mean over dims; the mean; how many values it was taken of. Padded positions become 0."""
    count: int | Tensor = _size(x, dims)
    if mask is not None:
        shape = [x.shape[d] if d in dims else mask.shape[d] for d in range(x.dim())]
        count = mask.expand(shape).sum(dims, keepdim=True)
        x = _kept(x, mask)
    # The mean in two parts, high and low: x - high is exact where x is near the mean, so no digit is lost.
    # What the high part is does not change the result, so no gradient flows through it.
    mean = _mean(x, dims, count)
    high = mean.detach().to(x.dtype)
    x = x - high
    low = mean - high if mean.dtype != x.dtype else _mean(_kept(x, mask), dims, count)
    return _kept(x - low.to(x.dtype), mask), high + low, count


def unit(x: Tensor, dims: list[int], eps: float, count: int | Tensor) -> tuple[Tensor, Tensor]:
    """x / sqrt(mean square + eps) over dims; the mean square, which is the variance of centered values."""
    if x.numel() == 0:
        return x, _mean(x, dims, 1)
    scale = _largest(x, dims)
    x = x / scale
    square = _mean(x.square(), dims, count)
    exact_scale = scale.to(square.dtype)
    square = square * exact_scale.square()
    factor = exact_scale * torch.rsqrt(square + eps)
    return x * factor.to(x.dtype), square


def mean_square(x: Tensor, dims: list[int], count: int | Tensor) -> Tensor:
    """The mean square over dims alone, which is the variance of centered values."""
    if x.numel() == 0:
        return _mean(x, dims, 1)
    scale = _largest(x, dims)
    square = _mean((x / scale).square(), dims, count)
    return square * scale.to(square.dtype).square()


def given(x: Tensor, mean: Tensor, var: Tensor, eps: float, mask: Tensor | None) -> Tensor:
    """(x - mean) / sqrt(var + eps) by given statistics. Padded positions become 0."""
    x = _kept(x, mask)
    var = var if x.device.type == "mps" else var.double()
    return (x - mean.to(x.dtype)) * torch.rsqrt(var + eps).to(x.dtype)


def affine(
    xhat: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    activation: str | None,
    residual: Tensor | None,
    mask: Tensor | None,
) -> Tensor:
    """activation(weight * xhat + bias + residual), and 0 at padded positions."""
    if weight is not None:
        xhat = xhat * weight.to(xhat.dtype)
    if bias is not None:
        xhat = xhat + bias.to(xhat.dtype)
    if residual is not None:
        # What stands in the padding may be NaN, whose gradient would be NaN even behind the last mask.
        xhat = xhat + _kept(residual, mask).to(xhat.dtype)
    if activation is not None:
        xhat = ACTIVATIONS[activation](xhat)
    return _kept(xhat, mask)


def _kept(x: Tensor, mask: Tensor | None) -> Tensor:
    """Zero at padded positions, whatever stands there."""
    return x if mask is None else x.masked_fill(~mask, 0)


def _size(x: Tensor, dims: list[int]) -> int:
    """How many values share a statistic."""
    size = 1
    for d in dims:
        size = size * x.shape[d]
    return size


def _wide(x: Tensor) -> Tensor:
    """float64 as it is, everything narrower in float32."""
    return x if x.dtype == torch.float64 else x.float()


def _mean(x: Tensor, dims: list[int], count: int | Tensor) -> Tensor:
    """The mean, summed in the type that statistics have; count differs from the size of dims under a mask."""
    exact = x.dtype if x.device.type == "mps" else torch.float64  # Apple's GPUs have no float64
    total = x.sum(dims, keepdim=True, dtype=exact)
    return total / (count.clamp(min=1) if isinstance(count, Tensor) else torch.sym_max(count, 1))


def _clip(x: Tensor, low: Any, high: Any) -> Tensor:
    """x in [low, high], which are numbers or tensors ()."""
    return x.clamp(low, high)


def _largest(x: Tensor, dims: list[int]) -> Tensor:
    """A power of two near the largest value over dims."""
    return _power_of_two(torch.linalg.vector_norm(x.detach(), float("inf"), dims, keepdim=True))


def _power_of_two(x: Tensor) -> Tensor:
    """The power of two next to a positive x, and 1 for zero: dividing by it rounds nothing."""
    exponent = torch.frexp(x).exponent
    return torch.ldexp(torch.ones_like(x), exponent.where(x > 0, 0))


def _per_channel(x: Tensor) -> list[int]:
    return [1, -1] + [1] * (x.dim() - 2)


def _view(parameter: Tensor | None, shape: list[int]) -> Tensor | None:
    return None if parameter is None else parameter.view(shape)
