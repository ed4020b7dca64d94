"""Norms whose statistics are made of the batch's own, on compiled kernels: two passes forward, two backward.

The moments of the channels go through `combine`, plain torch operations on a few float64 numbers for each channel,
and x is normalized by what comes out. Backward, two sums for each set of statistics are all that the large tensors
tell; autograd takes them through `combine` to the parameters and to the moments, which x feeds again:

    dx = scale dz + (d mean + 2 d var (x - mean)) / count
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch._C import _has_storage  # pyright: ignore
from torch.autograd.graph import saved_tensors_hooks

from normkit.kernels import compiled, composed
from normkit.kernels.again import gradients_of
from normkit.kernels.codes import ACTIVATIONS
from normkit.kernels.composed import Combine
from normkit.kernels.families import family, on_cpu
from normkit.kernels.functions import applied


def combined(
    x: Tensor,
    combine: Combine,
    parameters: Sequence[Tensor],
    eps: float,
    per_sample: bool,
    activation: str | None,
    residual: Tensor | None,
    mask: Tensor | None,
) -> tuple[Tensor, Tensor, int | Tensor]:
    """The output; mean and biased variance of the channels as they are, rows of (C) or (N, C); their count."""
    x = compiled.native(x)
    residual = None if residual is None else compiled.like(residual, x)
    mask = compiled.contiguous(mask)
    count = values(x, mask, per_sample)
    plain = combine, count, eps, per_sample, activation
    y, stats = _apply(plain, x, residual, mask, *parameters)
    return y, stats, count


def values(x: Tensor, mask: Tensor | None, per_sample: bool) -> int | Tensor:
    """Elements behind each statistic: of a sample in (N, 1) where a mask decides."""
    if mask is None:
        return x.numel() // (x.shape[1] * (x.shape[0] if per_sample else 1))
    if not per_sample:
        return mask.sum().double()
    return mask.unsqueeze(-1).flatten(1).sum(1, keepdim=True).double()  # of (N) where x is (N, C)


class _Combined(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, plain: Any, x: Tensor, residual: Tensor | None, mask: Tensor | None, *parameters: Tensor
    ) -> tuple[Tensor, Tensor]:
        combine, count, eps, per_sample, activation = plain
        stats, _ = family(x).channels_moments(x, mask, per_sample)
        mean, var = (row.requires_grad_(ctx.needs_input_grad[1]) for row in stats[:2].clone())
        leaves = [p.detach().requires_grad_(p.requires_grad) for p in parameters]
        # This small graph stays as it is. Hooks such as those of activation checkpointing would repeat the forward
        # pass for it alone, and the collective of those who share statistics as well, once more than others do.
        with torch.enable_grad(), saved_tensors_hooks(_itself, _itself):
            used = combine(mean, var, count, *leaves)
            used = [None if u is None else u.double().expand(mean.shape) for u in used]
        settled = [None if u is None else compiled.contiguous(u.detach()) for u in used]
        # The GPU's statistics have no tail, and their values are not waited for.
        same = on_cpu(x) and settled[0] is not None and torch.equal(settled[0], stats[0])
        tail = stats[2] if same else None
        y = family(x).channels_normalize(
            x,
            *settled,
            eps,
            ACTIVATIONS[activation],
            residual,
            mask,
            tail,
            kept=any(ctx.needs_input_grad),
        )
        ctx.save_for_backward(x, residual, mask, tail, *parameters)
        ctx.plain, ctx.small = plain, (mean, var, leaves, used, settled)
        ctx.mark_non_differentiable(stats)
        ctx.set_materialize_grads(False)
        return y, stats

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor | None) -> tuple[Tensor | None, ...]:
        dy = outputs[0]
        x, residual, mask, tail, *parameters = ctx.saved_tensors
        if dy is None:
            return (None,) * (4 + len(parameters))
        if torch.is_grad_enabled() or not _has_storage(dy):
            return again(ctx.plain, dy, x, residual, mask, *parameters)
        _, count, eps, _, activation = ctx.plain
        mean, var, leaves, used, (m, v, w, b) = ctx.small
        arguments = w, b, eps, ACTIVATIONS[activation], residual, mask, tail
        dy = compiled.like(dy, x)
        dz, dz_xhat = family(x).channels_gradient_sums(x, dy, m, v, *arguments)
        deviation = (v + eps).sqrt()
        scale = 1 / deviation if w is None else w / deviation
        upstream = -scale * dz, -scale * dz_xhat / (2 * deviation), dz_xhat, dz
        d_mean, d_var, *d_parameters = _through(used, upstream, (mean, var, *leaves))
        dx = dresidual = None
        if ctx.needs_input_grad[1] or ctx.needs_input_grad[2]:
            n = count.clamp(min=1) if isinstance(count, Tensor) else max(count, 1)
            d_mean = torch.zeros_like(m) if d_mean is None else d_mean
            d_var = torch.zeros_like(m) if d_var is None else d_var
            slopes = torch.stack((2 * d_var * deviation / n, (d_mean + 2 * d_var * (m - mean)) / n)).detach()
            dx, dresidual = family(x).channels_input_gradient(x, dy, m, v, slopes, *arguments)
        return None, dx, dresidual, None, *d_parameters


_apply = applied(_Combined)


def _itself(tensor: Tensor) -> Tensor:
    return tensor


def _through(
    used: Sequence[Tensor | None], upstream: Sequence[Tensor], leaves: Sequence[Tensor]
) -> list[Tensor | None]:
    """Gradients of the leaves of `combine`, from those of what it returned."""
    pairs = [(u, g) for u, g in zip(used, upstream, strict=True) if u is not None and u.requires_grad]
    wanted = [leaf for leaf in leaves if leaf.requires_grad]
    if not pairs or not wanted:
        return [None] * len(leaves)
    # The graph stays: a backward pass may come again where the user retains his.
    outputs, gradients = zip(*pairs, strict=True)
    found = iter(torch.autograd.grad(outputs, wanted, gradients, retain_graph=True, allow_unused=True))
    return [next(found) if leaf.requires_grad else None for leaf in leaves]


def again(
    plain: Any,
    dy: Tensor,
    x: Tensor,
    residual: Tensor | None,
    mask: Tensor | None,
    *parameters: Tensor | None,
) -> tuple[Tensor | None, ...]:
    """By torch operations, for a backward pass that is differentiated or has a batch of gradients at once."""
    combine, _, eps, per_sample, activation = plain

    def y(x: Tensor, residual: Tensor | None, *parameters: Tensor) -> Tensor:
        return composed.combined(x, combine, parameters, eps, per_sample, activation, residual, mask)[0]

    dx, dresidual, *d_parameters = gradients_of(y, (x, residual, *parameters), dy)
    return None, dx, dresidual, None, *d_parameters
