"""Adaptive batch norm: in evaluation, running statistics blended with those of the samples at hand."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from normkit import kernels, processes
from normkit.norms import inputs, mixing
from normkit.norms.batch_norm import (
    BatchNorm1d,
    BatchNorm2d,
    BatchNorm3d,
    _BatchNorm,  # pyright: ignore[reportPrivateUsage]
)
from normkit.norms.blending import blend, by_blend, share_of
from normkit.norms.mixing import Affine
from normkit.norms.naming import for_all_dimensions
from normkit.norms.scope import scope
from normkit.norms.tracing import one_node
from normkit.norms.tracking import Place


def adaptive_batch_norm(
    input: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    prior: float = 16.0,
    eps: float = 1e-5,
    *,
    per_sample: bool = False,
    activation: str | None = None,
    residual: Tensor | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    r"""Normalize by running statistics, blended with those of the batch or of each sample.

    .. math::
        y = f\left(\gamma \frac{x - m}{\sqrt{v + \epsilon}} + \beta + r\right), \quad
        m = \frac{N \mu_R + n \mu}{N + n}, \quad v = \frac{N \sigma_R^2 + n \sigma^2}{N + n}

    N is the prior, how many samples the running statistics are worth; n is the number of samples at hand. Means and
    variances are each blended, as in the paper: what lies between both means is no part of the variance. The
    variance at hand is the biased one, so that a prior of 0 is batch norm by the batch's statistics.

    Args:
        input: (N, C) or (N, C, *), floating; any strides.
        running_mean: :math:`\mu_R`, (C).
        running_var: :math:`\sigma_R^2`, (C).
        weight: :math:`\gamma`, (C), or (N, C) for one per sample; of the input's dtype, or float32 under half
            input.
        bias: :math:`\beta`, likewise.
        prior: N, in samples: 0 takes the statistics at hand alone, infinity the running ones alone.
        eps: added to the variance.
        per_sample: blend for each sample on its own, n = 1, with its statistics over space.
        activation: :math:`f`: relu, leaky_relu, silu, gelu, elu, sigmoid, tanh, relu6 or hardswish; None: identity.
        residual: :math:`r`, of the input's shape, added before the activation.
        mask: bool, broadcastable to the input without channels, true where it is valid. Padded positions
            enter no statistic, come out as 0, and pass no gradient; a sample of padding alone does not count.

    Returns:
        Tensor of the input's shape, dtype and memory format.

    Raises:
        ValueError: a negative prior; eps not positive; an unknown activation; a residual or mask of another shape.
        RuntimeError: statistics or parameters of another length, dtype or device.

    Schneider, Rusak, Eck, Bringmann, Brendel and Bethge, "Improving robustness against common corruptions by
    covariate shift adaptation", 2020. Li, Wang, Shi, Liu and Hou, "Revisiting Batch Normalization For Practical
    Domain Adaptation", 2016, is a prior of 0.

    >>> x = torch.tensor([[2.0], [4.0]])
    >>> adaptive_batch_norm(x, torch.tensor([1.0]), torch.tensor([1.0]), prior=2.0, eps=1e-12)
    tensor([[0.],
            [2.]])
    """
    if mask is None and prior > 0 and input.dim() > 1:
        samples = 1 if per_sample else input.shape[0]
        share = samples / (prior + samples)
        y = kernels.straight_blended(
            input, running_mean, running_var, share, per_sample, weight, bias, eps, activation, residual
        )
        if y is not None:
            return y
    running = running_mean, running_var
    name = "adaptive batch norm"
    affine = Affine(weight, bias, eps, activation, residual, mask)
    mixing.check(name, input, *running, affine, training=False)
    check_prior(prior)
    if mask is not None:
        affine = affine._replace(mask=inputs.expand_mask(mask, input))
    if per_sample:
        share = share_of(1, prior)
        fused = None if affine.each else kernels.blended(input, *running, share, *affine, per_sample=True)
        if fused is not None:
            return fused[0]
        tensors = {"running_mean": running_mean, "running_var": running_var}
        return mixing.mix(input, partial(_blend_each, share), tensors, affine)[0]
    share = share_of(mixing.samples(input, affine.mask), prior)
    return by_blend(input, share, *running, affine)[0]


def check_prior(prior: float) -> None:
    """The prior is a number of samples."""
    if not prior >= 0:
        raise ValueError(f"prior is a number of samples, 0 or more, got {prior}: infinity for no adaptation")


def _blend_each(
    share: float | Tensor, mean: Tensor, var: Tensor, count: int | Tensor, **tensors: Any
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """For each sample, by its own moments."""
    return blend(share, mean, var, **tensors)


@for_all_dimensions
class _AdaptiveBatchNorm(_BatchNorm):
    """What adaptive batch norm of every dimension shares; each class below adds ours of its dimension."""

    prior: float
    per_sample: bool

    def __init__(
        self,
        num_features: int,
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
        prior: float = 16.0,
        per_sample: bool = False,
    ) -> None:
        inputs.check_real(prior=prior)
        check_prior(prior)
        super().__init__(
            num_features,
            eps,
            momentum,
            affine,
            track_running_stats,
            device,
            dtype,
            bias=bias,
            activation=activation,
            process_group=process_group,
        )
        self.prior, self.per_sample = prior, per_sample

    @one_node
    def forward(
        self,
        input: Tensor,
        *,
        residual: Tensor | None = None,
        mask: Tensor | None = None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        activation: str | None = None,
    ) -> Tensor:
        """As batch norm in training; in evaluation see `normkit.functional.adaptive_batch_norm`."""
        if self.training or self.running_mean is None or self.tracking.frozen:
            given = {"residual": residual, "mask": mask, "weight": weight, "bias": bias}
            return super().forward(input, **given, activation=activation)
        self._check_input_dim(input)
        running = self._running(Place(scope.domain))
        return adaptive_batch_norm(
            input,
            running.mean,
            running.var,
            self.weight if weight is None else weight,
            self.bias if bias is None else bias,
            self.prior,
            self.eps,
            per_sample=self.per_sample,
            activation=self.activation if activation is None else activation,
            residual=residual,
            mask=mask,
        )

    def extra_repr(self) -> str:
        """The arguments of batch norm, and ours."""
        return f"{super().extra_repr()}, prior={self.prior}, per_sample={self.per_sample}"


class AdaptiveBatchNorm1d(_AdaptiveBatchNorm, BatchNorm1d):
    """Batch norm over (N, C) or (N, C, L) that adapts in evaluation to the samples at hand.

    It trains as `BatchNorm1d`, whose state dict it has; in evaluation it blends running statistics with those of
    the batch, or of each sample. Equation and errors as in `normkit.functional.adaptive_batch_norm`. Tools that fuse
    or convert batch norms fix it to its running statistics.

    Args:
        num_features: C.
        eps: added to the variance.
        momentum: weight of a batch in the running statistics; None for the cumulative average.
        affine: learn a weight, and a bias where `bias` is true.
        track_running_stats: keep running statistics; without them evaluation takes the batch's alone.
        device: of parameters and buffers.
        dtype: of parameters and buffers.
        bias: learn a bias.
        activation: applied at the end: relu, leaky_relu, silu, gelu, elu, sigmoid, tanh, relu6 or hardswish.
        process_group: processes whose batches are one in training, as in `BatchNorm1d`.
        prior: how many samples the running statistics are worth: 0 for none, infinity for no adaptation.
        per_sample: blend for each sample on its own.

    >>> layer = AdaptiveBatchNorm1d(16, prior=8.0).eval()
    >>> layer(torch.randn(4, 16)).shape
    torch.Size([4, 16])
    """


class AdaptiveBatchNorm2d(_AdaptiveBatchNorm, BatchNorm2d):
    """Batch norm over (N, C, H, W) that adapts in evaluation; arguments as in `AdaptiveBatchNorm1d`."""


class AdaptiveBatchNorm3d(_AdaptiveBatchNorm, BatchNorm3d):
    """Batch norm over (N, C, D, H, W) that adapts in evaluation; arguments as in `AdaptiveBatchNorm1d`."""
