"""Batch norm: one statistic per channel, shared over batch and space."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from normkit import kernels, processes
from normkit.kernels.recomputation import recomputing
from normkit.norms import inputs, mixing, tracking
from normkit.norms.tracing import one_node
from normkit.norms.tracking import Running, Tracked, Tracking
from normkit.statistics import pooled, update_running_


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
        activation: :math:`f`: relu, leaky_relu, silu, gelu, elu, sigmoid or tanh; None: identity.
        residual: :math:`r`, of the input's shape, added before the activation.
        mask: bool, broadcastable to the input without channels, true where it is valid. Padded positions
            enter no statistic, come out as 0, and pass no gradient.
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
    shared = training and processes.several(process_group)
    each = inputs.per_sample(weight, bias)
    if each and not shared:
        running = running_mean, running_var, num_batches_tracked, momentum
        affine = {"weight": weight, "bias": bias}
        return _conditional(input, *running, affine, training, eps, activation, residual, mask)
    one = (None, None) if each else (weight, bias)
    _check(input, running_mean, running_var, *one, training, eps, shared)
    if each:
        inputs.check_per_sample(input, input.shape[1:2], weight, bias)
    if activation is not None:
        inputs.check_activation(activation)
    if residual is not None:
        inputs.check_residual(residual, input)
    if mask is not None:
        mask = inputs.expand_mask(mask, input)
    if not training:
        assert running_mean is not None
        assert running_var is not None
        return kernels.channels_given(
            input, running_mean, running_var, weight, bias, eps, activation, residual, mask
        )
    tracking.check_momentum(momentum, running_mean, num_batches_tracked)
    running = None
    if running_mean is not None and running_var is not None and not recomputing():
        running = running_mean, running_var, momentum, num_batches_tracked
    if not shared:
        return kernels.channels(input, weight, bias, eps, activation, residual, mask, running)[0]
    y, stats, count = _by_batch(input, weight, bias, eps, activation, residual, mask, process_group, layer)
    if running is not None:
        update_running_(*running[:2], stats, count, *running[2:])
    return y


def _conditional(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    num_batches_tracked: Tensor | None,
    momentum: float | None,
    affine: dict[str, Tensor | None],
    training: bool,
    eps: float,
    activation: str | None,
    residual: Tensor | None,
    mask: Tensor | None,
) -> Tensor:
    """Batch norm with an affine map for each sample: from moments of each sample, as the engine has both alike."""
    running = running_mean, running_var
    mixing.check("batch norm", input, *running, None, None, training, eps, activation, residual)
    inputs.check_per_sample(input, input.shape[1:2], affine["weight"], affine["bias"])
    mask = inputs.expand_mask(mask, input)
    given = {"batch_mean": running_mean, "batch_var": running_var}
    tensors = {**(dict.fromkeys(given) if training else given), **affine}
    y, stats, count = mixing.mix(input, _rule, tensors, eps, activation, residual, mask)
    if training:
        mixing.track(*running, stats, count, momentum, num_batches_tracked)
    return y


def _rule(
    mean: Tensor,
    var: Tensor,
    count: int | Tensor,
    batch_mean: Tensor | None,
    batch_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """The batch's statistics, or the running ones, for every sample."""
    if batch_mean is None or batch_var is None:
        batch_mean, batch_var = pooled(mean, var, count, 0)
    return batch_mean.to(mean.dtype).expand_as(mean), batch_var.to(mean.dtype).expand_as(mean), weight, bias


def _by_batch(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    activation: str | None,
    residual: Tensor | None,
    mask: Tensor | None,
    process_group: processes.Group,
    layer: processes.Layer,
) -> tuple[Tensor, Tensor, int | Tensor]:
    """By the statistics of the batch, or of those of all processes: y; mean and biased variance; count."""
    if not processes.several(process_group):
        return kernels.channels(input, weight, bias, eps, activation, residual, mask)
    shared = _outside_of_graphs(_shared)
    return shared(input, weight, bias, eps, activation, residual, mask, process_group, layer)


def _outside_of_graphs(function: Callable[..., Any]) -> Callable[..., Any]:
    """Processes wait for each other where torch.compile breaks its graph; to say so beforehand would import it."""
    if torch.compiler.is_compiling():
        return torch.compiler.disable(function, reason="processes meet outside of graphs")
    return function


def _shared(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    activation: str | None,
    residual: Tensor | None,
    mask: Tensor | None,
    process_group: processes.Group,
    layer: processes.Layer,
) -> tuple[Tensor, Tensor, int]:
    """By the statistics of all processes: y; mean and biased variance as rows of C; count."""
    share = processes.share(process_group, layer, _values(input))

    each = inputs.per_sample(weight, bias)

    def combine(mean: Tensor, var: Tensor, count: int | Tensor, *affine: Tensor) -> Any:
        own_mean, own_var = mean, var
        if each:  # moments of each sample, as the engine has both alike
            own_mean, own_var = (row.squeeze(0) for row in pooled(mean, var, count, 0))
            count = count.sum() if isinstance(count, Tensor) else count * mean.shape[0]
        merged_mean, merged_var, _ = share.merge(own_mean, own_var, count)
        given = iter(affine)
        maps = (None if p is None else next(given) for p in (weight, bias))
        return merged_mean.expand_as(mean), merged_var.expand_as(var), *maps

    parameters = [p for p in (weight, bias) if p is not None]
    y, _, _ = kernels.combined(
        input, combine, parameters, eps, per_sample=each, activation=activation, residual=residual, mask=mask
    )
    assert share.stats is not None
    return y, share.stats, share.count


def _values(input: Tensor) -> int:
    """Positions per channel."""
    return inputs.count([*input.shape[:1], *input.shape[2:]])


def _check(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    training: bool,
    eps: float,
    shared: bool = False,
) -> None:
    """Everything that all batch norms ask for; training: statistics of the batch are taken."""
    if input.dim() < 2:
        raise ValueError(f"batch norm takes (N, C) or (N, C, *), got input size {list(input.shape)}")
    inputs.check_dtype("batch norm", input)
    if eps < 0 or (training and eps == 0):
        raise ValueError(f"batch norm eps must be positive in training and never negative, got {eps}")
    inputs.check_running(running_mean, running_var, needed=not training)
    inputs.check_channels(input, running_mean=running_mean, running_var=running_var, weight=weight, bias=bias)
    if training and not shared and input.numel() == input.shape[1]:
        inputs.check_several_values(_values(input), input, what="value per channel")


class _BatchNorm(Tracked, torch.nn.modules.batchnorm._BatchNorm):  # pyright: ignore[reportPrivateUsage]
    """What batch norm of every dimension shares; each class below adds torch's class of its dimension."""

    activation: str | None = None
    process_group: processes.Group = None
    identity = processes.NOBODY
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
        inputs.check_activation(activation)
        processes.check_group(process_group)
        switches = Tracking(training_statistics, evaluation_statistics, prior, update_statistics, guard)
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device, dtype, bias=bias)
        self.activation = activation
        self.process_group = process_group
        self.identity = processes.new_layer(f"{type(self).__name__}({num_features})")
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
    ) -> Tensor:
        """Normalize, add the residual, activate; see `normkit.functional.batch_norm`.

        A weight or bias given here, (C) or (N, C), stands in for the layer's own.
        """
        self._check_input_dim(input)
        if self._by_own_rule or not (self.tracking.plain and tracking.scope.plain):
            if weight is not None or bias is not None:
                raise NotImplementedError(
                    "a weight or bias given to forward goes with the default switches, outside of domain and "
                    f"accumulate; this layer has{str(self.tracking)[1:] or ' such a block around it'}"
                )
            return self._forward_tracked(input, residual, mask)
        if self.process_group is not None and not self.training:
            processes.evaluates(self.process_group, self.identity)
        own_weight, own_bias = inputs.own_affine(self)
        running_mean = running_var = batches = None
        # Statistics that are there normalize in evaluation even where they are no longer tracked.
        if self.track_running_stats or not self.training:
            running_mean, running_var, batches = inputs.own_running(self)
        return batch_norm(
            input,
            running_mean,
            running_var,
            own_weight if weight is None else weight,
            own_bias if bias is None else bias,
            self.training or (running_mean is None and running_var is None),
            self.momentum,
            self.eps,
            activation=self.activation,
            residual=residual,
            mask=mask,
            num_batches_tracked=batches if self.training else None,
            process_group=self.process_group if self.training else None,
            layer=self.identity,
        )

    def _forward_tracked(self, input: Tensor, residual: Tensor | None, mask: Tensor | None) -> Tensor:
        """The same by the switches and the scope of `tracking`."""
        by, moves = self._statistics(), self._moves()
        running = self._normalizing(moves) if moves or by != "batch" else None
        mean, var = (None, None) if running is None else running[:2]
        measured = self.training and by == "batch"
        if self.process_group is not None and not measured:
            if moves and processes.several(self.process_group):
                raise NotImplementedError(
                    "training_statistics='running' with process_group: local statistics alone"
                )
            processes.evaluates(self.process_group, self.identity)
        shared = measured and processes.several(self.process_group)
        _check(input, mean, var, self.weight, self.bias, by != "running", self.eps, shared)
        inputs.check_residual(residual, input)
        mask = inputs.expand_mask(mask, input)
        if by == "batch":
            y, stats, count = self._by_batch(input, running, residual, mask)
        elif by == "blend" or moves:
            assert running is not None
            prior = self.tracking.prior if by == "blend" else None
            y, stats, count = self._by_blend(input, running, residual, mask, prior)
        else:
            assert mean is not None
            assert var is not None
            return kernels.channels_given(
                input, mean, var, self.weight, self.bias, self.eps, self.activation, residual, mask
            )
        if moves:
            self._track(stats, count)
        return y

    def _by_batch(
        self, input: Tensor, running: Running | None, residual: Tensor | None, mask: Tensor | None
    ) -> tuple[Tensor, Tensor, int | Tensor]:
        """Normalize by the batch's own statistics: output, statistics, count."""
        group = self.process_group if self.training else None
        affine = self.weight, self.bias
        return _by_batch(input, *affine, self.eps, self.activation, residual, mask, group, self.identity)

    def _by_blend(
        self,
        input: Tensor,
        running: Running,
        residual: Tensor | None,
        mask: Tensor | None,
        prior: float | None,
    ) -> tuple[Tensor, Tensor, int | Tensor]:
        """Normalize by a blend, or by running statistics alone without a prior; and take the batch's."""
        samples = input.shape[0] if mask is None else mask.flatten(1).any(1).sum().to(torch.float32)

        def combine(
            mean: Tensor, var: Tensor, count: object, weight: Tensor | None = None, bias: Tensor | None = None
        ) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
            known = running.mean.to(mean.dtype), running.var.to(var.dtype)
            if prior is None:
                return *known, weight, bias
            share = samples / (samples + prior)
            mean, var = (old + share * (new - old) for old, new in zip(known, (mean, var), strict=True))
            return mean, var, weight, bias

        return kernels.combined(
            input, combine, self._affine(), self.eps, activation=self.activation, residual=residual, mask=mask
        )

    def _affine(self) -> list[Tensor]:
        """Weight and bias, as far as they are there."""
        return [p for p in (self.weight, self.bias) if p is not None]  # pyright: ignore[reportUnnecessaryComparison]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "process_group": processes.packed(self.process_group)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__({**state, "process_group": processes.unpacked(state.get("process_group"))})

    def extra_repr(self) -> str:
        """The arguments, activation and process group where there are any."""
        return super().extra_repr() + inputs.repr_activation(self.activation) + self._repr_group()

    def _repr_group(self) -> str:
        return (
            "" if self.process_group is None else f", process_group={processes.name_of(self.process_group)!r}"
        )


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
        activation: applied at the end: relu, leaky_relu, silu, gelu, elu, sigmoid or tanh. Tools of torch that
            build a new layer from this one, such as `convert_sync_batchnorm`, know of none of what follows `bias`.
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

    Arguments as in `BatchNorm1d`: torch's, `activation=` (relu, leaky_relu, silu, gelu, elu, sigmoid, tanh) and
    `process_group=`.
    `forward(input, *, residual=None, mask=None)` takes a residual of the input's shape and a mask (N, H, W).

    >>> BatchNorm2d(3, activation="silu")(torch.randn(2, 3, 8, 8)).shape
    torch.Size([2, 3, 8, 8])
    """


class BatchNorm3d(_BatchNorm, torch.nn.BatchNorm3d):
    """Batch norm over (N, C, D, H, W), a drop-in for `torch.nn.BatchNorm3d`.

    Arguments as in `BatchNorm1d`: torch's, `activation=` (relu, leaky_relu, silu, gelu, elu, sigmoid, tanh) and
    `process_group=`.
    `forward(input, *, residual=None, mask=None)` takes a residual of the input's shape and a mask (N, D, H, W).
    """
