"""Running statistics blended with those of the samples at hand."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from normkit import kernels
from normkit.norms.batch_moments import normalize
from normkit.norms.mixing import Affine


def share_of(n: int | Tensor, prior: float) -> float | Tensor:
    """What n samples at hand weigh beside running statistics worth `prior`; 0 where there is nothing at all."""
    if isinstance(n, Tensor):
        return n / (prior + n).clamp(min=torch.finfo(torch.float64).tiny)
    return n / (prior + n) if prior > 0 else 1.0


def blend(
    share: float | Tensor,
    mean: Tensor,
    var: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """The rule that goes this share of the way from the running statistics towards those at hand."""
    old_mean, old_var = running_mean.to(mean.dtype), running_var.to(var.dtype)
    return old_mean + share * (mean - old_mean), old_var + share * (var - old_var), weight, bias


def by_blend(
    input: Tensor, share: float | Tensor, running_mean: Tensor, running_var: Tensor, affine: Affine
) -> tuple[Tensor, Tensor, int | Tensor]:
    """Normalize by this blend: the output, the moments at hand, their count."""
    if not affine.each:
        found = kernels.blended(input, running_mean, running_var, share, *affine)
        if found is not None:
            return found
    tensors = {"running_mean": running_mean, "running_var": running_var}
    return normalize(input, partial(blend, share), tensors, affine)
