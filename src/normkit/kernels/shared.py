"""Batch norm by statistics that others have a part in: two passes forward, two backward, a meeting between the two.

Forward, the moments of all decide; backward, the gradients of mean and variance, which all add up, each by the weight
that it has:

    dx = scale dz + (d mean + 2 d var (x - mean)) / count

Gradients of weight and bias are sums over the values at hand alone.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor
from torch._C import _has_storage  # pyright: ignore

from normkit.kernels import compiled
from normkit.kernels.codes import ACTIVATIONS
from normkit.kernels.combined import again, values
from normkit.kernels.composed import Combine
from normkit.kernels.families import family
from normkit.kernels.functions import applied


class Meeting(Protocol):
    """Where the others are met; `count` is there after the moments."""

    count: int

    def moments(self, stats: Tensor, count: int | Tensor, *, gradients: bool) -> Tensor:
        """From statistics (3, C) of the values at hand to those of all."""
        ...

    def gradients(self, own: Tensor) -> Tensor:
        """From the gradients (2, C) of mean and variance at hand to those of all."""
        ...


def shared(
    x: Tensor,
    meeting: Meeting,
    combine: Combine,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    activation: str | None,
    residual: Tensor | None,
    mask: Tensor | None,
) -> Tensor:
    """The output; `combine` meets the others where torch operations must see what happens."""
    x = compiled.native(x)
    residual = None if residual is None else compiled.like(residual, x)
    weight, bias, mask = map(compiled.contiguous, (weight, bias, mask))
    plain = combine, values(x, mask, False), eps, False, activation
    gradients = torch.is_grad_enabled() and x.requires_grad
    return _apply((meeting, gradients, plain), x, weight, bias, residual, mask)


class _Shared(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        way: tuple[Meeting, bool, Any],
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        residual: Tensor | None,
        mask: Tensor | None,
    ) -> Tensor:
        meeting, gradients, (_, count, eps, _, activation) = way
        own, _ = family(x).channels_moments(x, mask)
        mean, var, tail = meeting.moments(own, count, gradients=gradients)
        rest = weight, bias, eps, ACTIVATIONS[activation], residual, mask
        y = family(x).channels_normalize(x, mean, var, *rest, tail, kept=gradients)
        ctx.save_for_backward(x, weight, bias, residual, mask)
        ctx.way, ctx.stats, ctx.count = way, (mean, var, tail), meeting.count
        return y

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor | None, ...]:
        (dy,) = outputs
        x, weight, bias, residual, mask = ctx.saved_tensors
        meeting, _, plain = ctx.way
        if torch.is_grad_enabled() or not _has_storage(dy):
            _, dx, dresidual, _, dweight, dbias = again(plain, dy, x, residual, mask, weight, bias)
            return None, dx, dweight, dbias, dresidual, None
        _, _, eps, _, activation = plain
        dy = compiled.like(dy, x)
        mean, var, tail = ctx.stats
        rest = weight, bias, eps, ACTIVATIONS[activation], residual, mask, tail
        own = family(x).channels_gradient_sums(x, dy, mean, var, *rest)
        dx = dresidual = None
        if ctx.needs_input_grad[1]:
            gradients = meeting.gradients(family(x).statistic_gradients(own, var, weight, eps))
            slopes = family(x).slopes(gradients, var, eps, max(ctx.count, 1))
            dx, dresidual = family(x).channels_input_gradient(x, dy, mean, var, slopes, *rest)
        elif ctx.needs_input_grad[4]:
            _, dresidual = family(x).channels_input_gradient(x, dy, mean, var, None, *rest)
        dweight = None if weight is None else own[1].to(weight.dtype)
        dbias = None if bias is None else own[0].to(bias.dtype)
        return None, dx, dweight, dbias, dresidual, None


_apply = applied(_Shared)
