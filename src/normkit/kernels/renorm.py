"""Batch renorm on compiled kernels: batch norm whose weight and bias come of its statistics, and of known ones.

The kernel makes r and d of the moments while a block of channels is in the cache. They are constants to the gradient,
so the backward pass is that of batch norm with the weight and the bias that they led to:

    y = weight (r xhat + d) + bias = (weight r) xhat + (weight d + bias)
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._C import _has_storage  # pyright: ignore

from normkit.kernels import compiled, composed, cpu
from normkit.kernels.again import gradients_of
from normkit.kernels.functions import applied


def renorm(
    x: Tensor,
    known_mean: Tensor,
    known_var: Tensor,
    r_max: float,
    d_max: float,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    activation: str | None,
    residual: Tensor | None,
    mask: Tensor | None,
) -> tuple[Tensor, Tensor, int | Tensor]:
    """The output; mean and biased variance of the channels in its first rows of C; their count."""
    x = compiled.native(x)
    residual = None if residual is None else compiled.like(residual, x)
    weight, bias, mask = map(compiled.contiguous, (weight, bias, mask))
    plain = compiled.contiguous(known_mean), compiled.contiguous(known_var), r_max, d_max, eps, activation
    y, stats = apply(plain, x, weight, bias, residual, mask)
    return y, stats, x.numel() // x.shape[1] if mask is None else mask.sum()


class _Renorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        plain: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        residual: Tensor | None,
        mask: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        mean, var, r_max, d_max, eps, activation = plain
        code = cpu.ACTIVATIONS[activation]
        y, stats = cpu.renorm_forward(x, mean, var, r_max, d_max, weight, bias, eps, code, residual, mask)
        ctx.save_for_backward(x, weight, bias, residual, mask, stats)
        ctx.plain = eps, activation
        ctx.mark_non_differentiable(stats)
        ctx.set_materialize_grads(False)
        return y, stats

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor | None) -> tuple[Tensor | None, ...]:
        dy = outputs[0]
        x, weight, bias, residual, mask, stats = ctx.saved_tensors
        eps, activation = ctx.plain
        if dy is None:
            return (None,) * 6
        if torch.is_grad_enabled() or not _has_storage(dy):
            return _again(dy, x, weight, bias, residual, mask, stats, eps, activation)
        dx, dweight, dbias, dresidual = cpu.renorm_backward(
            x, compiled.like(dy, x), stats, weight, bias, eps, cpu.ACTIVATIONS[activation], residual, mask
        )
        return None, dx, dweight, dbias, dresidual, None


apply = applied(_Renorm)  # of tensors that go to the kernels as they are


def _again(
    dy: Tensor,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    mask: Tensor | None,
    stats: Tensor,
    eps: float,
    activation: str | None,
) -> tuple[Tensor | None, ...]:
    """By torch operations, for a backward pass that is differentiated or has a batch of gradients at once."""
    r, d = stats[3], stats[4]

    def y(x: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None) -> Tensor:
        gamma = r if weight is None else weight * r
        beta = d if weight is None else weight * d
        beta = beta if bias is None else bias + beta
        return composed.channels(x, gamma, beta, eps, activation, residual, mask)[0]

    return None, *gradients_of(y, (x, weight, bias, residual), dy), None
