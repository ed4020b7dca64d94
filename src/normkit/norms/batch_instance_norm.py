"""Batch-instance norm: between batch norm and instance norm, by a gate that each channel learns."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from normkit.norms import inputs, mixing
from normkit.norms.tracing import one_node
from normkit.statistics import pooled


def batch_instance_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    rho: Tensor,
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
    r"""Mix the outputs of batch norm and instance norm, channel by channel.

    .. math::
        y = f\left(\gamma \left(\rho \frac{x - \mu_B}{\sqrt{\sigma_B^2 + \epsilon}}
        + (1 - \rho) \frac{x - \mu_I}{\sqrt{\sigma_I^2 + \epsilon}}\right) + \beta + r\right)

    The gate :math:`\rho` is clipped to [0, 1] where it is used, and a gradient that would push it further out is
    zero: gradient descent projected onto the interval, which is what the paper's clipping after each step is, in
    a function that changes none of its arguments.

    Args:
        input: (N, C, *), floating; any strides.
        running_mean: (C), of the batch part; changed in place in training, in evaluation in that part's place.
        running_var: (C), holds the unbiased variance.
        rho: :math:`\rho`, (C): 1 is batch norm, 0 is instance norm.
        weight: :math:`\gamma`, (C), of the input's dtype, or float32 under half input.
        bias: :math:`\beta`, (C).
        training: take the batch part from the batch.
        momentum: weight of the batch in the running statistics; None for the cumulative average.
        eps: added to the variance.
        activation: :math:`f`: relu, leaky_relu, silu, gelu, elu, sigmoid or tanh; None: identity.
        residual: :math:`r`, of the input's shape, added before the activation.
        mask: bool, broadcastable to the input without channels, true where it is valid. Padded positions
            enter no statistic, come out as 0, and pass no gradient.
        num_batches_tracked: () int64, counts the batches; needed where momentum is None.

    Returns:
        Tensor of the input's shape, dtype and memory format.

    Raises:
        ValueError: one value per sample and channel; only one running statistic given; eps not positive.
        RuntimeError: parameters of another length, dtype or device; no running statistics in evaluation.

    Nam and Kim, "Batch-Instance Normalization for Adaptively Style-Invariant Neural Networks", 2018.

    >>> x = torch.tensor([[[1.0, 3.0]], [[10.0, 30.0]]])
    >>> batch_instance_norm(x, None, None, torch.zeros(1), training=True, eps=1e-12)
    tensor([[[-1.,  1.]],
            [[-1.,  1.]]])
    """
    running = running_mean, running_var
    mixing.check("batch-instance norm", input, *running, weight, bias, training, eps, activation, residual)
    if rho.shape != input.shape[1:2]:
        raise RuntimeError(
            f"rho has one element per channel of the input, {input.shape[1]}, got shape {list(rho.shape)}"
        )
    inputs.check_several_values(inputs.count(input.shape[2:]), input, what="spatial element")
    mask = inputs.expand_mask(mask, input)
    tensors = {
        "rho": _clip(rho),
        "batch_mean": None if training else running_mean,
        "batch_var": None if training else running_var,
        "weight": weight,
        "bias": bias,
    }
    rule = partial(_rule, eps)
    y, stats, count = mixing.mix(input, rule, tensors, eps, activation, residual, mask)
    if training:
        mixing.track(*running, stats, count, momentum, num_batches_tracked)
    return y


def _rule(
    eps: float,
    mean: Tensor,
    var: Tensor,
    count: int | Tensor,
    rho: Tensor,
    batch_mean: Tensor | None,
    batch_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """The mean and variance that normalize as both do together, for a sum of lines in x is a line in x.

    Its slope is s = ρ s_B + (1 - ρ) s_I, s = 1 / √(σ² + ε), and it is zero at the mean of the means with the
    weights of the slopes.
    """
    if batch_mean is None or batch_var is None:
        batch_mean, batch_var = pooled(mean, var, count, 0)
    rho = rho.to(mean.dtype)
    batch_slope = rho * torch.rsqrt(batch_var.to(mean.dtype) + eps)
    slope = batch_slope + (1 - rho) * torch.rsqrt(var + eps)
    mixed_mean = mean + batch_slope / slope * (batch_mean.to(mean.dtype) - mean)
    return mixed_mean, slope.pow(-2) - eps, weight, bias


def _clip(rho: Tensor) -> Tensor:
    forward_mode = forward_ad._current_level >= 0  # pyright: ignore[reportPrivateUsage]
    if forward_mode or torch.jit.is_tracing():  # pyright: ignore[reportPrivateImportUsage]
        return rho.clamp(0, 1)  # nobody descends there, and a saved trace has torch's operators alone
    return torch.ops.normkit.clip(rho)


# An operator and no autograd.Function: torch.compile cannot trace one without a warning.
@torch.library.custom_op("normkit::clip", mutates_args=())
def _clip_operator(rho: Tensor) -> Tensor:
    """Clip to [0, 1], with the gradient of the identity unless a descent along it leads further out."""
    return rho.clamp(0, 1)


@_clip_operator.register_fake
def _(rho: Tensor) -> Tensor:
    return torch.empty_like(rho)


@_clip_operator.register_vmap
def _(info: Any, in_dims: tuple[int], rho: Tensor) -> tuple[Tensor, int]:
    return torch.ops.normkit.clip(rho), in_dims[0]


def _project(ctx: Any, gradient: Tensor) -> Tensor:
    (rho,) = ctx.saved_tensors
    outward = ((rho >= 1) & (gradient < 0)) | ((rho <= 0) & (gradient > 0))
    return gradient.masked_fill(outward, 0)


_clip_operator.register_autograd(
    _project, setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs)
)


class _BatchInstanceNorm(mixing.MixedNorm):
    """What batch-instance norm of every dimension shares."""

    _dim: int  # of its input

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
    ) -> None:
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
        )
        self.rho = torch.nn.Parameter(torch.ones(num_features, device=device, dtype=dtype))

    def reset_parameters(self) -> None:
        """Ones and zeros, which makes it batch norm, as the authors start it."""
        super().reset_parameters()
        if "rho" in self._parameters:  # not yet there when the first of torch's constructors calls this
            torch.nn.init.ones_(self.rho)

    @one_node
    def forward(self, input: Tensor, *, residual: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """Normalize, add the residual, activate; see `normkit.functional.batch_instance_norm`."""
        if input.dim() != self._dim:
            raise ValueError(f"expected {self._dim}D input (got {input.dim()}D input)")
        running_mean, running_var, batches, training = self._statistics()
        return batch_instance_norm(
            input,
            running_mean,
            running_var,
            self.rho,
            self.weight,
            self.bias,
            training,
            self.momentum,
            self.eps,
            activation=self.activation,
            residual=residual,
            mask=mask,
            num_batches_tracked=batches,
        )


class BatchInstanceNorm1d(_BatchInstanceNorm):
    """Batch-instance norm over (N, C, L): between batch norm and instance norm, by a gate per channel.

    Equation and errors as in `normkit.functional.batch_instance_norm`. It is no `torch.nn.BatchNorm1d`, so that
    tools that fuse or convert batch norms leave it alone.

    Args:
        num_features: C.
        eps: added to the variance.
        momentum: weight of a batch in the running statistics; None for the cumulative average.
        affine: learn a weight, and a bias where `bias` is true.
        track_running_stats: keep running statistics for the batch part and take them in evaluation.
        device: of parameters and buffers.
        dtype: of parameters and buffers.
        bias: learn a bias.
        activation: applied at the end: relu, leaky_relu, silu, gelu, elu, sigmoid or tanh.

    `rho`, (C), is learned; it starts at 1, batch norm. The paper gives it ten times the learning rate of the other
    parameters. `forward(input, *, residual=None, mask=None)` as in `BatchNorm1d`.

    >>> BatchInstanceNorm1d(16, activation="relu")(torch.randn(8, 16, 4)).shape
    torch.Size([8, 16, 4])
    """

    _dim = 3


class BatchInstanceNorm2d(_BatchInstanceNorm):
    """Batch-instance norm over (N, C, H, W); arguments as in `BatchInstanceNorm1d`.

    >>> BatchInstanceNorm2d(3)(torch.randn(2, 3, 8, 8)).shape
    torch.Size([2, 3, 8, 8])
    """

    _dim = 4


class BatchInstanceNorm3d(_BatchInstanceNorm):
    """Batch-instance norm over (N, C, D, H, W); arguments as in `BatchInstanceNorm1d`."""

    _dim = 5
