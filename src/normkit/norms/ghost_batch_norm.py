"""Ghost batch norm: one statistic per channel and run of samples, as if the batch were several small ones."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from normkit import kernels
from normkit.kernels.recomputation import recomputing
from normkit.norms import inputs, tracking
from normkit.norms.batch_norm import _BatchNorm, _check, batch_norm  # pyright: ignore[reportPrivateUsage]
from normkit.norms.tracking import Running
from normkit.statistics import update_running_


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
) -> Tensor:
    r"""Normalize each channel over a sub-batch and space, each sub-batch by its own statistics.

    .. math::
        y_i = f\left(\gamma \frac{x_i - \mu_k}{\sqrt{\sigma_k^2 + \epsilon}} + \beta + r_i\right),
        \quad k = \lfloor i / s \rfloor

    Sample i belongs to sub-batch k; s is ghost_size, and the last sub-batch may be smaller. The running statistics
    move towards every sub-batch in turn, as in the paper, so that each counts as a batch; they keep the unbiased
    variance, where the paper averages the deviation, so that evaluation is that of batch norm. Without training
    this is `batch_norm`.

    Args:
        input: (N, C) or (N, C, *), floating; any strides.
        ghost_size: samples in a sub-batch, 1 or more.
        running_mean: (C); changed in place in training. None, as running_var, where nothing is tracked.
        running_var: (C), holds the unbiased variance.
        weight: :math:`\gamma`, (C), of the input's dtype, or float32 under half input.
        bias: :math:`\beta`, (C).
        training: normalize by the statistics of the sub-batches.
        momentum: weight of a sub-batch in the running statistics; None for the cumulative average.
        eps: added to the variance.
        activation: :math:`f`: relu, leaky_relu, silu, gelu, elu, sigmoid or tanh; None: identity.
        residual: :math:`r`, of the input's shape, added before the activation.
        mask: bool, broadcastable to the input without channels, true where it is valid.
        num_batches_tracked: () int64, counts the sub-batches; needed where momentum is None.

    Returns:
        Tensor of the input's shape, dtype and memory format.

    Raises:
        ValueError: as `batch_norm`, and a sub-batch with one value per channel. Programs that are traced
            (torch.compile, torch.export) do not look for the latter: its value comes out as the bias. A program
            that was exported in training takes two sub-batches or more.

    Hoffer, Hubara and Soudry, "Train longer, generalize better: closing the generalization gap in large batch
    training of neural networks", 2017.

    >>> x = torch.tensor([[1.0], [3.0], [10.0], [30.0]])
    >>> ghost_batch_norm(x, 2, None, None, training=True, eps=1e-12).flatten()
    tensor([-1.,  1., -1.,  1.])
    """
    check_ghost_size(ghost_size)
    if not training:
        return batch_norm(
            input, running_mean, running_var, weight, bias, False, momentum, eps,
            activation=activation, residual=residual, mask=mask,
        )  # fmt: skip
    _check(input, running_mean, running_var, weight, bias, True, eps)
    inputs.check_activation(activation)
    inputs.check_residual(residual, input)
    mask = inputs.expand_mask(mask, input)
    tracking.check_momentum(momentum, running_mean, num_batches_tracked)
    y, stats, counts = _by_ghosts(input, ghost_size, weight, bias, eps, activation, residual, mask)
    if running_mean is not None and running_var is not None and not recomputing():
        update_running_(running_mean, running_var, stats, counts, momentum, num_batches_tracked)
    return y


def check_ghost_size(ghost_size: int) -> None:
    """A sub-batch has one sample or more."""
    if ghost_size < 1:
        raise ValueError(f"ghost_size counts the samples of a sub-batch, 1 or more, got {ghost_size}")


def _by_ghosts(
    x: Tensor,
    ghost_size: int,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    activation: str | None,
    residual: Tensor | None,
    mask: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Output; statistics (rows, K, C) of the K sub-batches; values per channel of each, (K)."""
    values = inputs.count(x.shape[2:])
    if values == 1 and not torch.compiler.is_compiling():
        _check_several_samples(x, ghost_size)
    y, stats = kernels.ghosts(x, ghost_size, weight, bias, eps, activation, residual, mask)
    samples = x.shape[0]
    if mask is None:
        counts = (samples - torch.arange(0, samples, ghost_size, device=x.device)).clamp(
            max=ghost_size
        ) * values
    else:
        counts = (
            F.pad(mask.flatten(1).sum(1), [0, -samples % ghost_size]).unflatten(0, (-1, ghost_size)).sum(1)
        )
    return y, stats, counts


def _check_several_samples(x: Tensor, ghost_size: int) -> None:
    last = x.shape[0] % ghost_size
    if x.shape[0] and 1 in (ghost_size, last):
        raise ValueError(
            f"Expected more than 1 value per channel in each sub-batch when training, got input size "
            f"{list(x.shape)} with ghost_size={ghost_size}, whose "
            f"{'sub-batches have' if ghost_size == 1 else 'last sub-batch has'} one: "
            f"{'take a ghost_size of 2 or more' if ghost_size == 1 else 'drop that sample, or change ghost_size'}"
        )


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
        training_statistics: Literal["batch", "running"] = "batch",
        evaluation_statistics: Literal["running", "batch", "blend"] = "running",
        prior: float = 16.0,
        update_statistics: bool = True,
        guard: Literal["nonfinite"] | None = None,
    ) -> None:
        check_ghost_size(ghost_size)
        super().__init__(
            num_features, eps, momentum, affine, track_running_stats, device, dtype, bias=bias,
            activation=activation, training_statistics=training_statistics,
            evaluation_statistics=evaluation_statistics, prior=prior, update_statistics=update_statistics,
            guard=guard,
        )  # fmt: skip
        self.ghost_size = ghost_size

    def _by_batch(
        self, input: Tensor, running: Running | None, residual: Tensor | None, mask: Tensor | None
    ) -> tuple[Tensor, Tensor, int | Tensor]:
        return _by_ghosts(
            input, self.ghost_size, self.weight, self.bias, self.eps, self.activation, residual, mask
        )

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
