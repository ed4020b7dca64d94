"""The moments of a batch, of this process alone or of all that share it, and what is normalized by them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from normkit import kernels, processes
from normkit.norms import inputs, mixing
from normkit.norms.mixing import Affine
from normkit.statistics import pooled

# From the batch's mean and biased variance, and tensors by name, weight and bias among them, to the mean, variance,
# weight and bias that normalize.
Rule = Callable[..., tuple[Tensor, Tensor, Tensor | None, Tensor | None]]


class BatchMoments:
    """Mean and variance of one batch: what autograd sees of them, and what running statistics move towards.

    Attributes:
        share: this process's part in them, where several share them.
    """

    def __init__(self, input: Tensor, group: processes.Group, layer: processes.Layer) -> None:
        self.share: processes.Share | None = None
        if processes.several(group):
            values = inputs.count([*input.shape[:1], *input.shape[2:]])
            self.share = processes.share(group, layer, values)

    def of(self, mean: Tensor, var: Tensor, count: int | Tensor) -> tuple[Tensor, Tensor]:
        """The batch's, (C) or (1, C), from those of its channels (C), or of each sample's channels (N, C)."""
        if mean.dim() == 2:
            count, (mean, var) = _total(mean, count), pooled(mean, var, count, 0)
        if self.share is None:
            return mean, var
        return self.share.merge(mean.flatten(), var.flatten(), count)[:2]

    def measured(self, stats: Tensor, count: int | Tensor) -> tuple[Tensor, int | Tensor]:
        """Mean and biased variance as rows of C, and their count, from what the kernels measured."""
        if self.share is not None:
            assert self.share.stats is not None
            return self.share.stats, self.share.count
        if stats.dim() == 2:
            return stats, count
        with torch.no_grad():
            return torch.cat(pooled(stats[0], stats[1], count, 0)), _total(stats[0], count)


def _total(mean: Tensor, count: int | Tensor) -> int | Tensor:
    """Of all samples, from the count of one, or from (N, 1)."""
    return count.sum() if isinstance(count, Tensor) else count * mean.shape[0]


def by_batch(
    input: Tensor, affine: Affine, group: processes.Group = None, layer: processes.Layer = processes.NOBODY
) -> tuple[Tensor, Tensor, int | Tensor]:
    """Normalize by the batch's moments as they are: y; mean and biased variance as rows of C; count."""
    if affine.each:
        return normalize(input, _as_they_are, {}, affine, group, layer)
    if processes.several(group):
        return outside_of_graphs(_by_all, group)(input, affine, group, layer)
    return kernels.channels(input, *affine)


def _by_all(
    input: Tensor, affine: Affine, group: processes.Group, layer: processes.Layer
) -> tuple[Tensor, Tensor, int | Tensor]:
    """By the moments of the batches of all processes."""
    batch = BatchMoments(input, group, layer)

    def combine(
        mean: Tensor, var: Tensor, count: int | Tensor, weight: Tensor | None, bias: Tensor | None
    ) -> Any:
        return *batch.of(mean, var, count), weight, bias

    assert batch.share is not None
    y = kernels.shared(input, batch.share, combine, *affine)
    if y is None:
        return _normalize(input, _as_they_are, {}, affine, group, layer)
    return y, *batch.measured(y, 0)


def by_given(input: Tensor, mean: Tensor, var: Tensor, affine: Affine) -> Tensor:
    """Normalize by given statistics (C), which are constants."""
    if affine.each:
        return normalize(input, given, {"given_mean": mean, "given_var": var}, affine)[0]
    return kernels.channels_given(input, mean, var, *affine)


def normalize(
    input: Tensor,
    rule: Rule,
    tensors: Mapping[str, Tensor | None],
    affine: Affine,
    group: processes.Group = None,
    layer: processes.Layer = processes.NOBODY,
) -> tuple[Tensor, Tensor, int | Tensor]:
    """Normalize by what a rule makes of the batch's moments: y; these as rows of C; their count."""
    return outside_of_graphs(_normalize, group)(input, rule, tensors, affine, group, layer)


def outside_of_graphs(function: Callable[..., Any], group: processes.Group) -> Callable[..., Any]:
    """Processes wait for each other where torch.compile breaks its graph; to say so beforehand would import it."""
    if torch.compiler.is_compiling() and processes.several(group):
        return torch.compiler.disable(function, reason="processes meet outside of graphs")
    return function


def _normalize(
    input: Tensor,
    rule: Rule,
    tensors: Mapping[str, Tensor | None],
    affine: Affine,
    group: processes.Group,
    layer: processes.Layer,
) -> tuple[Tensor, Tensor, int | Tensor]:
    batch = BatchMoments(input, group, layer)

    def combine(mean: Tensor, var: Tensor, count: int | Tensor, **tensors: Tensor | None) -> Any:
        used_mean, used_var, weight, bias = rule(*batch.of(mean, var, count), **tensors)
        return used_mean.expand_as(mean), used_var.expand_as(var), weight, bias

    y, stats, count = mixing.mix(input, combine, tensors, affine, per_sample=affine.each)
    return y, *batch.measured(stats, count)


def _as_they_are(mean: Tensor, var: Tensor, weight: Tensor | None, bias: Tensor | None) -> Any:
    return mean, var, weight, bias


def given(
    mean: Tensor,
    var: Tensor,
    given_mean: Tensor,
    given_var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """The rule that takes other statistics than the batch's."""
    return given_mean.to(mean.dtype), given_var.to(var.dtype), weight, bias
