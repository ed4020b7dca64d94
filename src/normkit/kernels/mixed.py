"""Switch norm and batch-instance norm on compiled kernels: the rule that mixes their statistics is one of the kernels.

`combined` takes any rule of torch operations; where the input is small, each of these costs more than the whole rule in
C++ does. A backward pass that must be differentiable goes through the one of torch operations, `combine`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._C import _has_storage  # pyright: ignore

from normkit.kernels import compiled, cpu
from normkit.kernels.combined import again
from normkit.kernels.composed import Combine
from normkit.kernels.cpu import mixtures
from normkit.kernels.functions import applied


def mixed(
    x: Tensor,
    mixture: str,
    combine: Combine,
    known: tuple[Tensor, Tensor] | tuple[None, None],
    shares: tuple[Tensor, ...],
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    activation: str | None,
    residual: Tensor | None,
    mask: Tensor | None,
) -> tuple[Tensor, Tensor, int]:
    """The output; mean and biased variance of the batch, or the known ones, as rows of C; their count.

    combine(mean, var, count, *known, *shares, weight, bias) is the same rule of torch operations.
    """
    x = compiled.native(x)
    residual = None if residual is None else compiled.like(residual, x)
    plain = mixture, combine, known, eps, activation, compiled.contiguous(mask)
    tensors = map(compiled.contiguous, (*shares, weight, bias))
    return _apply(plain, x, residual, *tensors)


class _Mixed(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, plain: Any, x: Tensor, residual: Tensor | None, *tensors: Tensor
    ) -> tuple[Tensor, Tensor, int]:
        mixture, combine, known, eps, activation, mask = plain
        *shares, weight, bias = tensors
        kind, code = mixtures.MIXTURES[mixture], cpu.ACTIVATIONS[activation]
        y, statistics, batch, count = mixtures.mixture_forward(
            kind, x, known, shares, weight, bias, eps, code, residual, mask
        )
        ctx.save_for_backward(statistics, batch, mask, x, residual, *tensors)
        ctx.plain = kind, combine, known[0] is not None, eps, activation
        ctx.mark_non_differentiable(batch)
        ctx.set_materialize_grads(False)
        return y, batch, count

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor | None) -> tuple[Tensor | None, ...]:
        dy = outputs[0]
        statistics, batch, mask, x, residual, *tensors = ctx.saved_tensors
        kind, combine, known, eps, activation = ctx.plain
        if dy is None:
            return (None,) * (3 + len(tensors))
        if torch.is_grad_enabled() or not _has_storage(dy):
            given = batch.unbind() if known else (None, None)
            plain = combine, None, eps, True, activation
            found = again(plain, dy, x, residual, mask, *given, *tensors)
            return *found[:3], *found[6:]
        *shares, weight, bias = tensors
        dx, dresidual, dshares, dweight, dbias = mixtures.mixture_backward(
            kind, x, compiled.like(dy, x), statistics, batch, known, shares, weight, bias, eps,
            cpu.ACTIVATIONS[activation], residual, mask, wants_x=ctx.needs_input_grad[1],
        )  # fmt: skip
        return None, dx, dresidual, *dshares, dweight, dbias


_apply = applied(_Mixed)
