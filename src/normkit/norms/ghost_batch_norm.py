"""Ghost batch norm: one statistic per channel and run of samples, as if the batch were several small ones."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from normkit import kernels, processes
from normkit.kernels.recomputation import recomputing
from normkit.norms import inputs, mixing, tracking
from normkit.norms.batch_moments import by_given
from normkit.norms.batch_norm import _BatchNorm  # pyright: ignore[reportPrivateUsage]
from normkit.norms.mixing import Affine
from normkit.norms.naming import for_all_dimensions
from normkit.norms.switched import check
from normkit.norms.tracking import Running
from normkit.statistics import pooled, update_running_


def ghost_batch_norm(
    input: Tensor,
    ghost_size: int,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float | None = 0.1,
    eps: float = 1e-5,
    *,
    activation: str | None = None,
    residual: Tensor | None = None,
    mask: Tensor | None = None,
    num_batches_tracked: Tensor | None = None,
    process_group: processes.Group = None,
    layer: processes.Layer = processes.NOBODY,
) -> Tensor:
    r"""Normalize each channel over a sub-batch and space, each sub-batch by its own statistics.

    .. math::
        y_i = f\left(\gamma \frac{x_i - \mu_k}{\sqrt{\sigma_k^2 + \epsilon}} + \beta + r_i\right),
        \quad k = \lfloor i / s \rfloor

    Sample i belongs to sub-batch k; s is ghost_size, and the last sub-batch may be smaller. The running statistics
    move towards every sub-batch in turn, as in the paper, so that each counts as a batch; they keep the unbiased
    variance, where the paper averages the deviation, so that evaluation is that of batch norm. Without training
    this is `batch_norm`.

    In a process group every sub-batch lies within a process and is normalized there; what the processes share are
    the running statistics, which move towards the sub-batches of all of them, in the order of ranks. So it is one
    process over the whole batch where each part but the last is a multiple of s.

    Args:
        input: (N, C) or (N, C, *), floating; any strides.
        ghost_size: samples in a sub-batch, 2 or more.
        running_mean: (C); changed in place in training. None, as running_var, where nothing is tracked.
        running_var: (C), holds the unbiased variance.
        weight: :math:`\gamma`, (C), or (N, C) for one per sample; of the input's dtype, or float32 under half
            input.
        bias: :math:`\beta`, likewise.
        training: normalize by the statistics of the sub-batches.
        momentum: weight of a sub-batch in the running statistics; None for the cumulative average.
        eps: added to the variance.
        activation: :math:`f`: relu, leaky_relu, silu, gelu, elu, sigmoid, tanh, relu6 or hardswish; None: identity.
        residual: :math:`r`, of the input's shape, added before the activation.
        mask: bool, broadcastable to the input without channels, true where it is valid.
        num_batches_tracked: () int64, counts the sub-batches; needed where momentum is None.
        process_group: processes whose sub-batches move the running statistics in training, as in `batch_norm`.
        layer: how the processes of the group tell this call from others.

    Returns:
        Tensor of the input's shape, dtype and memory format.

    Raises:
        ValueError: as `batch_norm`; ghost_size below 2; a sub-batch with one value per channel. Programs that are
            traced (torch.compile, torch.export) do not look for the latter: its value comes out as the bias. A
            program that was exported in training takes two sub-batches or more.

    Hoffer, Hubara and Soudry, "Train longer, generalize better: closing the generalization gap in large batch
    training of neural networks", 2017.

    >>> x = torch.tensor([[1.0], [3.0], [10.0], [30.0]])
    >>> ghost_batch_norm(x, 2, None, None, training=True, eps=1e-12).flatten()
    tensor([-1.,  1., -1.,  1.])
    """
    check_ghost_size(ghost_size)
    affine = Affine(weight, bias, eps, activation, residual, mask)
    check(input, running_mean, running_var, affine, training)
    affine = affine._replace(mask=inputs.expand_mask(mask, input))
    if not training:
        assert running_mean is not None
        assert running_var is not None
        return by_given(input, running_mean, running_var, affine)
    tracking.check_momentum(momentum, running_mean, num_batches_tracked)
    y, stats, counts = _by_ghosts(input, ghost_size, affine)
    if running_mean is not None and running_var is not None and not recomputing():
        if processes.several(process_group):
            stats, counts = _of_all(stats, counts, process_group, layer)
        update_running_(running_mean, running_var, stats, counts, momentum, num_batches_tracked)
    return y


def check_ghost_size(ghost_size: int) -> None:
    """A sub-batch has a variance, so two samples or more, whatever their space."""
    if ghost_size < 2:
        raise ValueError(
            f"ghost_size counts the samples of a sub-batch, 2 or more, got {ghost_size}: "
            "take InstanceNorm for statistics of single samples"
        )


def _by_ghosts(x: Tensor, ghost_size: int, affine: Affine) -> tuple[Tensor, Tensor, Tensor]:
    """Output; statistics (rows, K, C) of the K sub-batches; values per channel of each, (K)."""
    values = inputs.count(x.shape[2:])
    if values == 1 and not torch.compiler.is_compiling():
        _check_several_samples(x, ghost_size)
    counts = _counts(x, ghost_size, values, affine.mask)
    if not affine.each:
        return *kernels.ghosts(x, ghost_size, *affine), counts
    y, stats, count = mixing.mix(x, partial(_pool_runs, ghost_size), {}, affine)
    with torch.no_grad():
        runs = _runs(stats[0], stats[1], count, ghost_size)
    return y, torch.stack([row.squeeze(1) for row in runs]), counts


def _counts(x: Tensor, ghost_size: int, values: int, mask: Tensor | None) -> Tensor:
    """Values per channel of each sub-batch (K), of which a sample without a mask has `values`."""
    if mask is not None:
        return _cut(mask.unsqueeze(-1).flatten(1), ghost_size).sum((1, 2))
    samples = x.shape[0]
    if kernels.is_plain(x):  # sizes are numbers
        return kernels.values_of_runs(samples, ghost_size, values)
    starts = torch.arange(0, samples, ghost_size, device=x.device)
    return (samples - starts).clamp(max=ghost_size) * values


def _pool_runs(
    size: int, mean: Tensor, var: Tensor, count: int | Tensor, weight: Tensor | None, bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """The rule by which samples (N, C) are normalized by the moments of their run."""
    pooled_mean, pooled_var = (
        row.expand(-1, size, -1).flatten(0, 1)[: mean.shape[0]] for row in _runs(mean, var, count, size)
    )
    return pooled_mean, pooled_var, weight, bias


def _runs(mean: Tensor, var: Tensor, count: int | Tensor, size: int) -> tuple[Tensor, Tensor]:
    """The moments (K, 1, C) of the runs of so many samples, from those of samples (N, C)."""
    if not isinstance(count, Tensor):
        count = mean.new_full([mean.shape[0], 1], count)
    return pooled(_cut(mean, size), _cut(var, size), _cut(count, size), 1)


def _cut(rows: Tensor, size: int) -> Tensor:
    """(N, *) as (K, size, *), the last run filled up with zeros."""
    return F.pad(rows, [0, 0, 0, -rows.shape[0] % size]).unflatten(0, (-1, size))


def _of_all(
    stats: Tensor, counts: Tensor, group: processes.Group, layer: processes.Layer
) -> tuple[Tensor, Tensor]:
    """The statistics and counts of the sub-batches of all processes, in the order of ranks."""
    mean, var, counts = processes.runs_of_all(group, layer, stats[0], stats[1], counts)
    return torch.stack((mean, var)), counts


def _check_several_samples(x: Tensor, ghost_size: int) -> None:
    if x.shape[0] % ghost_size == 1:
        raise ValueError(
            f"Expected more than 1 value per channel in each sub-batch when training, got input size "
            f"{list(x.shape)} with ghost_size={ghost_size}, whose last sub-batch has one: drop that sample, or "
            "change ghost_size"
        )


@for_all_dimensions
class _GhostBatchNorm(_BatchNorm):
    """What ghost batch norm of every dimension shares; each class below adds torch's class of its dimension."""

    _by_own_rule = True

    def __init__(
        self,
        num_features: int,
        ghost_size: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        bias: bool = True,
        activation: str | None = None,
        process_group: processes.Group = None,
        training_statistics: Literal["batch", "running"] = "batch",
        evaluation_statistics: Literal["running", "batch", "blend"] = "running",
        prior: float = 16.0,
        update_statistics: bool = True,
        guard: Literal["nonfinite"] | None = None,
    ) -> None:
        inputs.check_whole(ghost_size=ghost_size)
        check_ghost_size(ghost_size)
        super().__init__(
            num_features, eps, momentum, affine, track_running_stats, device, dtype, bias=bias,
            activation=activation, process_group=process_group, training_statistics=training_statistics,
            evaluation_statistics=evaluation_statistics, prior=prior, update_statistics=update_statistics,
            guard=guard,
        )  # fmt: skip
        self.ghost_size = ghost_size

    def _by_batch(
        self,
        input: Tensor,
        running: Running | None,
        affine: Affine,
        group: processes.Group,
        layer: processes.Layer,
    ) -> tuple[Tensor, Tensor, int | Tensor]:
        return _by_ghosts(input, self.ghost_size, affine)

    def _straight(
        self,
        input: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        activation: str | None,
        residual: Tensor | None,
        running: Any,
    ) -> Tensor | None:
        return kernels.straight_ghosts(
            input, self.ghost_size, weight, bias, self.eps, activation, residual, running
        )

    def _track(self, stats: Tensor, count: int | Tensor, row: int | None = None) -> None:
        """Those of sub-batches, (rows, K, C), are this process's own so far."""
        shared = processes.several(self.process_group) and not recomputing()
        if shared and stats.dim() == 3 and isinstance(count, Tensor):
            stats, count = _of_all(stats, count, self.process_group, self.identity)
        super()._track(stats, count, row)

    def extra_repr(self) -> str:
        """The arguments, the sub-batch's size among them."""
        return f"{super().extra_repr()}, ghost_size={self.ghost_size}"


class GhostBatchNorm1d(_GhostBatchNorm, torch.nn.BatchNorm1d):
    """Ghost batch norm over (N, C) or (N, C, L): `BatchNorm1d` by the statistics of sub-batches in training.

    Equation, errors and the treatment of running statistics as in `normkit.functional.ghost_batch_norm`; arguments
    as in `BatchNorm1d`, and one more.

    Args:
        num_features: C.
        ghost_size: samples in a sub-batch, which are neighbours in the batch; the last one may be smaller.

    >>> layer = GhostBatchNorm1d(16, ghost_size=4)
    >>> layer(torch.randn(10, 16)).shape, layer.num_batches_tracked.item()
    (torch.Size([10, 16]), 3)
    """


class GhostBatchNorm2d(_GhostBatchNorm, torch.nn.BatchNorm2d):
    """Ghost batch norm over (N, C, H, W); see `GhostBatchNorm1d`."""


class GhostBatchNorm3d(_GhostBatchNorm, torch.nn.BatchNorm3d):
    """Ghost batch norm over (N, C, D, H, W); see `GhostBatchNorm1d`."""
