"""Batch norm: one statistic per channel, shared over batch and space."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from normkit import kernels, processes
from normkit.kernels.recomputation import recomputing
from normkit.norms import inputs, tracking
from normkit.norms.batch_moments import by_batch, by_given
from normkit.norms.mixing import Affine
from normkit.norms.naming import for_all_dimensions
from normkit.norms.scope import scope
from normkit.norms.switched import Switched, check
from normkit.norms.tracing import one_node
from normkit.norms.tracking import Tracking
from normkit.statistics import update_running_


def batch_norm(
    input: Tensor,
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
    r"""Normalize each channel over batch and space, by the batch's own statistics or by running ones.

    .. math::
        y = f\left(\gamma \frac{x - \mu}{\sqrt{\sigma^2 + \epsilon}} + \beta + r\right)

    In training the mean and the biased variance are those of the batch, and the running ones move towards
    them (towards the unbiased variance) after everything else has succeeded; otherwise the running ones
    normalize, as constants. Inside a backward pass, where activation checkpointing repeats a forward pass, the
    running ones stay.

    Args:
        input: (N, C) or (N, C, *), floating; any strides.
        running_mean: (C); changed in place in training. None, as running_var, where nothing is tracked.
        running_var: (C), holds the unbiased variance.
        weight: :math:`\gamma`, (C), or (N, C) for one per sample; of the input's dtype, or float32 under half
            input.
        bias: :math:`\beta`, likewise.
        training: normalize by the batch's statistics.
        momentum: weight of the batch in the running statistics; None for the cumulative average.
        eps: added to the variance.
        activation: :math:`f`: relu, leaky_relu, silu, gelu, elu, sigmoid, tanh, relu6 or hardswish; None: identity.
        residual: :math:`r`, of the input's shape, added before the activation.
        mask: bool, broadcastable to the input without channels, true where it is valid. Padded positions
            enter no statistic, come out as 0, and pass no gradient. Where none is valid, or one per channel, the
            running statistics stay, and the one comes out as f(beta + r): how many there are is known on the device
            alone, and to ask would wait for it, so this is no error.
        num_batches_tracked: () int64, counts the batches; needed where momentum is None.
        process_group: processes whose batches are one in training: a group of torch.distributed, or "world" for
            all that there are. Batches may differ in size and be empty.
        layer: how the processes of the group tell this call from others.

    Returns:
        Tensor of the input's shape, dtype and memory format.

    Raises:
        ValueError: one value per channel in training; only one running statistic given; eps not positive; an
            unknown activation; a residual or a mask of another shape.
        TypeError: a mask that is not bool.
        NotImplementedError: input that is not floating.
        RuntimeError: parameters of another length, dtype or device; no running statistics in evaluation.
        ProcessError: another process of the group does something else, or does not come.

    Ioffe and Szegedy, "Batch Normalization: Accelerating Deep Network Training by Reducing Internal
    Covariate Shift", 2015.

    >>> x = torch.tensor([[1.0, 10.0], [3.0, 30.0]])
    >>> batch_norm(x, None, None, training=True, eps=1e-12)
    tensor([[-1., -1.],
            [ 1.,  1.]])
    """
    running = None
    if running_mean is not None and running_var is not None:
        running = running_mean, running_var, momentum, num_batches_tracked
    if mask is None and process_group is None:
        y = kernels.straight_channels(input, weight, bias, eps, activation, residual, running, training)
        if y is not None:
            return y
    shared = training and processes.several(process_group)
    affine = Affine(weight, bias, eps, activation, residual, mask)
    check(input, running_mean, running_var, affine, training, shared)
    if mask is not None:
        affine = affine._replace(mask=inputs.expand_mask(mask, input))
    if not training:
        assert running_mean is not None
        assert running_var is not None
        return by_given(input, running_mean, running_var, affine)
    tracking.check_momentum(momentum, running_mean, num_batches_tracked)
    if recomputing():
        running = None
    if not shared and not affine.each:
        return kernels.channels(input, *affine, running)[0]
    y, stats, count = by_batch(input, affine, process_group, layer)
    if running is not None:
        update_running_(*running[:2], stats, count, *running[2:])
    return y


@for_all_dimensions
class _BatchNorm(Switched, torch.nn.modules.batchnorm._BatchNorm):  # pyright: ignore[reportPrivateUsage]
    """What batch norm of every dimension shares; each class below adds torch's class of its dimension."""

    activation: str | None = None
    _by_own_rule = False  # whether training takes other statistics than the batch's as they are

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
        training_statistics: Literal["batch", "running"] = "batch",
        evaluation_statistics: Literal["running", "batch", "blend"] = "running",
        prior: float = 16.0,
        update_statistics: bool = True,
        guard: Literal["nonfinite"] | None = None,
    ) -> None:
        inputs.check_arguments(eps, momentum, num_features=num_features)
        inputs.check_activation(activation)
        switches = Tracking(training_statistics, evaluation_statistics, prior, update_statistics, guard)
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device, dtype, bias=bias)
        self.activation = activation
        self._share_with(process_group, num_features)
        self._follow(switches)

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
        """Normalize, add the residual, activate; see `normkit.functional.batch_norm`.

        A weight or bias given here, (C) or (N, C), or an activation, stands in for the layer's own.
        """
        self._check_input_dim(input)
        activation = self.activation if activation is None else activation
        own_weight, own_bias = inputs.own_affine(self)
        weight, bias = own_weight if weight is None else weight, own_bias if bias is None else bias
        plain = self.tracking.plain and scope.plain
        if self._by_own_rule or not plain:
            if plain and self.training and mask is None and self.process_group is None:
                y = self._straight(input, weight, bias, activation, residual, self._moving())
                if y is not None:
                    return y
            return self._switched(input, Affine(weight, bias, self.eps, activation, residual, mask))
        group = None if self.process_group is None else self._sharing(measures=True)
        running_mean = running_var = batches = None
        # Statistics that are there normalize in evaluation even where they are no longer tracked.
        if self.track_running_stats or not self.training:
            running_mean, running_var, batches = inputs.own_running(self)
        return batch_norm(
            input,
            running_mean,
            running_var,
            weight,
            bias,
            self.training or (running_mean is None and running_var is None),
            self.momentum,
            self.eps,
            activation=activation,
            residual=residual,
            mask=mask,
            num_batches_tracked=batches if self.training else None,
            process_group=group,
            layer=self.identity,
        )

    def _moving(self) -> tuple[Any, ...] | None:
        """The running statistics that a training step moves, as kernels take them."""
        mean, var, batches = inputs.own_running(self) if self.track_running_stats else (None, None, None)
        return None if mean is None or var is None else (mean, var, self.momentum, batches)

    def _straight(
        self,
        input: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        activation: str | None,
        residual: Tensor | None,
        running: Any,
    ) -> Tensor | None:
        """The short way of an ordinary training step by a rule of its own; None where there is none."""

    def extra_repr(self) -> str:
        """The arguments, activation and process group where there are any."""
        return super().extra_repr() + inputs.repr_activation(self.activation) + self._repr_group()


class BatchNorm1d(_BatchNorm, torch.nn.BatchNorm1d):
    """Batch norm over (N, C) or (N, C, L), a drop-in for `torch.nn.BatchNorm1d`.

    Equation, arguments and errors as in `normkit.functional.batch_norm`.

    Args:
        num_features: C.
        eps: added to the variance.
        momentum: weight of a batch in the running statistics; None for the cumulative average.
        affine: learn a weight, and a bias where `bias` is true.
        track_running_stats: keep running statistics and normalize by them in evaluation.
        device: of parameters and buffers.
        dtype: of parameters and buffers.
        bias: learn a bias.
        activation: applied at the end: relu, leaky_relu, silu, gelu, elu, sigmoid, tanh, relu6 or hardswish. Tools of
            torch that build a new layer from this one, such as `convert_sync_batchnorm`, know of none of what follows
            `bias`.
        process_group: processes whose batches are one in training, as in `SyncBatchNorm`: a group of
            torch.distributed, or "world" for all that there are then; None for this process alone.
        training_statistics: those that normalize in training: "batch", or "running".
        evaluation_statistics: those that normalize in evaluation: "running", "batch", or "blend", the weighted
            mean of both, in which n samples at hand have weight n and the running ones `prior` (Schneider et al.,
            "Improving robustness against common corruptions by covariate shift adaptation", 2020).
        prior: how many samples the running statistics count for in a blend.
        update_statistics: whether training moves the running statistics.
        guard: "nonfinite": a batch whose statistics are not finite leaves the running ones as they were, and is
            counted in the buffer num_batches_skipped, which is there with the guard.

    `forward(input, *, residual=None, mask=None)` adds a residual of the input's shape before the activation, and
    leaves positions out of the statistics where the mask, bool and of the shape (N) or (N, L), is false.

    >>> layer = BatchNorm1d(16, activation="relu")
    >>> layer(torch.randn(8, 16), residual=torch.randn(8, 16)).shape
    torch.Size([8, 16])
    """


class BatchNorm2d(_BatchNorm, torch.nn.BatchNorm2d):
    """Batch norm over (N, C, H, W), a drop-in for `torch.nn.BatchNorm2d`.

    Arguments as in `BatchNorm1d`: torch's, `activation=` and `process_group=`.
    `forward(input, *, residual=None, mask=None)` takes a residual of the input's shape and a mask (N, H, W).

    >>> BatchNorm2d(3, activation="silu")(torch.randn(2, 3, 8, 8)).shape
    torch.Size([2, 3, 8, 8])
    """


class BatchNorm3d(_BatchNorm, torch.nn.BatchNorm3d):
    """Batch norm over (N, C, D, H, W), a drop-in for `torch.nn.BatchNorm3d`.

    Arguments as in `BatchNorm1d`: torch's, `activation=` and `process_group=`.
    `forward(input, *, residual=None, mask=None)` takes a residual of the input's shape and a mask (N, D, H, W).
    """
