"""Group norm on the kernels of the channel family: each sample's channels first, then the channels of a group.

A group is a few moments of channels joined in float64. Instance norm, whose groups are single channels, is batch norm
of single samples, and one launch where a sample's channel fits the registers; the others are two sweeps over x.
"""

from __future__ import annotations

import torch
from torch import Tensor

from normkit.kernels.triton import channels


def forward(
    x: Tensor,
    num_groups: int,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    activation: int = 0,
    centred: bool = True,
) -> tuple[Tensor, Tensor]:
    """y and the statistics (3, N, num_groups); the mean is taken to be 0 where not `centred`."""
    if centred and num_groups == x.shape[1]:
        return channels.forward(x, 1, weight, bias, eps, activation, None, None)
    mean, var = channels.moments(x, 1, None)[:2].unflatten(2, (num_groups, -1)).unbind()
    if centred:
        of_group = mean.mean(2)
        spread = (var + (mean - of_group.unsqueeze(2)).square()).mean(2)
    else:
        of_group = torch.zeros_like(mean[..., 0])
        spread = (var + mean.square()).mean(2)
    stats = torch.stack((of_group, spread, torch.zeros_like(spread)))
    mean, var = _of_channels(stats, x.shape[1])
    y = channels.normalize(x, 1, mean, var, None, weight, bias, eps, activation, None, None, False)
    return y, stats


def backward(
    x: Tensor,
    dy: Tensor,
    stats: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    activation: int = 0,
    centred: bool = True,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """dx, dweight, dbias."""
    N, C, num_groups = x.shape[0], x.shape[1], stats.shape[2]
    mean, var = _of_channels(stats, C)
    operands = weight, bias, eps, activation, None, None
    if centred and num_groups == C:
        dx, _, sums = channels.backward(x, dy, 1, mean, var, *operands)
    else:
        sums = channels.gradient_sums(x, dy, 1, mean, var, None, *operands, False)
        # Of g = weight dz, over the channels of a group.
        scaled = sums[:2] if weight is None else sums[:2] * weight.double()
        shift, tilt = scaled.unflatten(2, (num_groups, -1)).sum(3) * (num_groups * N / x.numel())
        factor = -torch.rsqrt(stats[1] + eps)
        shift = factor * shift if centred else torch.zeros_like(shift)
        slopes = _of_channels(torch.stack((factor * tilt, shift)), C)
        dx, _ = channels.input_gradient(x, dy, 1, mean, var, None, slopes, *operands, False)
    dweight = None if weight is None else sums[1].sum(0).to(weight.dtype)
    return dx, dweight, None if bias is None else sums[0].sum(0).to(bias.dtype)


def _of_channels(of_groups: Tensor, C: int) -> Tensor:
    """Two rows (N, C) of two or more rows (N, groups)."""
    if of_groups.shape[2] == C:
        return of_groups[:2]
    return of_groups[:2].repeat_interleave(C // of_groups.shape[2], 2)
