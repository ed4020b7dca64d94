"""Batch-instance norm: between batch norm and instance norm, by a gate that each channel learns."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import get_dynamic_layer_stack_depth
from torch.autograd import forward_ad

from normkit import processes
from normkit.norms import inputs, mixed_norm, mixing
from normkit.norms.mixing import Affine
from normkit.norms.naming import as_its_own, for_all_dimensions


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
    process_group: processes.Group = None,
    layer: processes.Layer = processes.NOBODY,
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
        activation: :math:`f`: relu, leaky_relu, silu, gelu, elu, sigmoid, tanh, relu6 or hardswish; None: identity.
        residual: :math:`r`, of the input's shape, added before the activation.
        mask: bool, broadcastable to the input without channels, true where it is valid. Padded positions
            enter no statistic, come out as 0, and pass no gradient.
        num_batches_tracked: () int64, counts the batches; needed where momentum is None.
        process_group: processes whose batches are one in training, as in `batch_norm`; in the backward pass they
            meet once more than there, for a gate at an end goes by the gradients of all.
        layer: how the processes of the group tell this call from others.

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
    affine = Affine(weight, bias, eps, activation, residual, mask)
    y, stats, count = _interpolate(input, rho, running, training, affine, process_group, layer)
    if training:
        mixed_norm.move(running, stats, count, momentum, num_batches_tracked)
    return y


def _interpolate(
    input: Tensor,
    rho: Tensor,
    running: tuple[Tensor | None, Tensor | None],
    training: bool,
    affine: Affine,
    group: processes.Group,
    layer: processes.Layer,
) -> tuple[Tensor, Tensor, int | Tensor]:
    """Check and normalize: the output; mean and biased variance of the batch as rows of C; their count."""
    group = group if training else None
    mixing.check("batch-instance norm", input, *running, affine, training, shared=processes.several(group))
    if rho.shape != input.shape[1:2]:
        raise RuntimeError(
            f"rho has one element per channel of the input, {input.shape[1]}, got shape {list(rho.shape)}"
        )
    inputs.check_device("rho", rho, input)
    inputs.check_several_values(inputs.count(input.shape[2:]), input, what="spatial element")
    affine = affine._replace(mask=inputs.expand_mask(affine.mask, input))
    clip = partial(_clip_together, group, layer) if processes.several(group) else _clip
    mixture = mixed_norm.Mixture("interpolated", partial(_rule, affine.eps, clip))
    return mixed_norm.mix(input, mixture, {"rho": rho}, running, training, affine, group, layer)


def _rule(
    eps: float,
    clip: Callable[[Tensor], Tensor],
    mean: Tensor,
    var: Tensor,
    batch_mean: Tensor,
    batch_var: Tensor,
    rho: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """The mean and variance that normalize as both do together, for a sum of lines in x is a line in x.

    Its slope is s = ρ s_B + (1 - ρ) s_I, s = 1 / √(σ² + ε), and it is zero at the mean of the means with the
    weights of the slopes.
    """
    rho = clip(rho).to(mean.dtype)
    batch_slope = rho * torch.rsqrt(batch_var + eps)
    slope = batch_slope + (1 - rho) * torch.rsqrt(var + eps)
    return mean + batch_slope / slope * (batch_mean - mean), slope.pow(-2) - eps, weight, bias


def _clip(rho: Tensor) -> Tensor:
    forward_mode = forward_ad._current_level >= 0  # pyright: ignore[reportPrivateUsage]
    if forward_mode or torch.jit.is_tracing():  # pyright: ignore[reportPrivateImportUsage]
        return rho.clamp(0, 1)  # nobody descends there, and a saved trace has torch's operators alone
    if get_dynamic_layer_stack_depth() > 0:
        return _Clip.apply(rho)  # pyright: ignore
    return torch.ops.normkit.clip(rho)


# Under torch.func's transforms an autograd.Function, for they take no operator with a gradient of its own; elsewhere an
# operator, for torch.compile cannot trace an autograd.Function without a warning.
@torch.library.custom_op("normkit::clip", mutates_args=())
def _clip_operator(rho: Tensor) -> Tensor:
    """Clip to [0, 1], with the gradient of the identity unless a descent along it leads further out."""
    return rho.clamp(0, 1)


@_clip_operator.register_fake
def _(rho: Tensor) -> Tensor:
    return torch.empty_like(rho)


def _project(ctx: Any, gradient: Tensor) -> Tensor:
    (rho,) = ctx.saved_tensors
    return gradient.masked_fill(_outward(rho, gradient), 0)


def _outward(rho: Tensor, gradient: Tensor) -> Tensor:
    return ((rho >= 1) & (gradient < 0)) | ((rho <= 0) & (gradient > 0))


def _keep(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


_clip_operator.register_autograd(_project, setup_context=_keep)


class _Clip(torch.autograd.Function):
    generate_vmap_rule = True
    setup_context = staticmethod(_keep)  # pyright: ignore
    backward = staticmethod(_project)  # pyright: ignore

    @staticmethod
    def forward(rho: Tensor) -> Tensor:
        return rho.clamp(0, 1)


def _clip_together(group: processes.Group, layer: processes.Layer, rho: Tensor) -> Tensor:
    """The same in several processes: where a descent leads is said by the sum of their gradients."""
    return _ClipTogether.apply(rho, group, layer._replace(title=f"the gates of {layer.title}"))  # pyright: ignore


class _ClipTogether(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rho: Tensor, group: processes.Group, layer: processes.Layer) -> Tensor:
        ctx.save_for_backward(rho)
        ctx.group, ctx.layer = group, layer
        return rho.clamp(0, 1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (rho,), (gradient,) = ctx.saved_tensors, gradients
        of_all = processes.summed(ctx.group, ctx.layer, gradient.detach())
        return gradient.masked_fill(_outward(rho, of_all), 0), None, None


@for_all_dimensions
@as_its_own
class _BatchInstanceNorm(mixed_norm.MixedNorm):
    """What batch-instance norm of every dimension shares."""

    _dim: int  # of its input
    rho: Tensor

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() != self._dim:
            raise ValueError(f"expected {self._dim}D input (got {input.dim()}D input)")

    def _shares(self) -> dict[str, int]:
        return {"rho": self.num_features}  # batch norm, as the authors start it

    def _mix(
        self,
        input: Tensor,
        running: tuple[Tensor | None, Tensor | None],
        training: bool,
        affine: Affine,
        group: processes.Group,
    ) -> tuple[Tensor, Tensor, int | Tensor]:
        return _interpolate(input, self.rho, running, training, affine, group, self.identity)


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
        activation: applied at the end: relu, leaky_relu, silu, gelu, elu, sigmoid, tanh, relu6 or hardswish.
        process_group: processes whose batches are one in training, as in `BatchNorm1d`.
        guard: "nonfinite" keeps running statistics from batches that are not finite, as in `BatchNorm1d`.

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
