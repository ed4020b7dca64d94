"""Recurrent batch norm: batch norm whose running statistics belong to a time step."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from normkit import processes
from normkit.norms import inputs
from normkit.norms.batch_norm import batch_norm
from normkit.norms.mixing import Affine
from normkit.norms.switched import Switched
from normkit.norms.tracing import one_node
from normkit.norms.tracking import Tracking


def recurrent_batch_norm(
    input: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float | None = 0.1,
    eps: float = 1e-5,
    *,
    step: int,
    residual: Tensor | None = None,
    mask: Tensor | None = None,
    num_batches_tracked: Tensor | None = None,
    process_group: processes.Group = None,
    layer: processes.Layer = processes.NOBODY,
) -> Tensor:
    r"""Batch norm at one time step: statistics of that step, a scale and a shift that all steps share.

    .. math:: y_t = \gamma \frac{x_t - \mu_t}{\sqrt{\sigma_t^2 + \epsilon}} + \beta + r

    Statistics over time would be those of no step: the first steps of a recurrent network differ from the later
    ones. Steps from T on share the statistics of the last.

    Args:
        input: (N, C) or (N, C, *), floating: what the network computes at this step.
        running_mean: (T, C), the row of the step changed in place in training.
        running_var: (T, C), holds the unbiased variance.
        weight: :math:`\gamma`, (C), of the input's dtype, or float32 under half input.
        bias: :math:`\beta`, (C).
        training: normalize by the batch's statistics.
        momentum: weight of the batch in the running statistics; None for the cumulative average.
        eps: added to the variance.
        step: counts from 0.
        residual: :math:`r`, of the input's shape.
        mask: bool, broadcastable to the input without channels, false for sequences that have ended.
        num_batches_tracked: (T) int64, counts the batches; needed where momentum is None.
        process_group: processes whose batches are one in training, as in `batch_norm`.
        layer: how the processes of the group tell this call from others.

    Raises:
        ValueError: a negative step; running statistics without an axis of steps; what `batch_norm` raises.

    Cooijmans, Ballas, Laurent, Gülçehre and Courville, "Recurrent Batch Normalization", 2016.

    >>> mean, var = torch.zeros(2, 1), torch.ones(2, 1)
    >>> _ = recurrent_batch_norm(torch.tensor([[1.0], [3.0]]), mean, var, training=True, step=1)
    >>> mean.T
    tensor([[0.0000, 0.2000]])
    """
    row = _row(step, running_mean, running_var)
    return batch_norm(
        input,
        running_mean[row],
        running_var[row],
        weight,
        bias,
        training,
        momentum,
        eps,
        residual=residual,
        mask=mask,
        num_batches_tracked=None if num_batches_tracked is None else num_batches_tracked[row],
        process_group=process_group,
        layer=layer,
    )


def _row(step: int, running_mean: Tensor, running_var: Tensor) -> int:
    """Where the statistics of a step are."""
    if step < 0:
        raise ValueError(f"step counts from 0, got {step}: pass the place in the sequence")
    if running_mean.dim() != 2 or running_mean.shape != running_var.shape:
        raise ValueError(
            "running_mean and running_var have a row per step, (T, C), "
            f"got {list(running_mean.shape)} and {list(running_var.shape)}"
        )
    return min(step, running_mean.shape[0] - 1)


class RecurrentBatchNorm(Switched):
    """Batch norm inside a recurrent network: running statistics for each time step, one weight and bias.

    Equation and errors as in `normkit.functional.recurrent_batch_norm`.

    Args:
        num_features: C.
        max_length: how many steps have running statistics of their own; later steps use those of the last.
            No more than the sequences of the training set have: a step that training does not reach has none.
        eps: added to the variance.
        momentum: weight of a batch in the running statistics; None for the cumulative average.
        affine: learn a weight, and a bias where `bias` is true.
        device: of parameters and buffers.
        dtype: of parameters and buffers.
        bias: learn a bias.
        process_group: processes whose batches are one in training, as in `BatchNorm1d`; all take the same steps.
        guard: "nonfinite" keeps running statistics from batches that are not finite, as in `BatchNorm1d`.

    The weight starts at 0.1: at 1, a tanh or sigmoid that follows saturates and the gradient vanishes with time.

    `forward(input, *, step, residual=None, mask=None)` takes (N, C) or (N, C, *), the step from 0, a residual of
    the input's shape, and a mask (N) or (N, *), false for sequences that have ended.

    >>> layer = RecurrentBatchNorm(16, max_length=10)
    >>> layer(torch.randn(8, 16), step=3).shape
    torch.Size([8, 16])
    """

    track_running_stats = True
    weight: nn.Parameter | None
    bias: nn.Parameter | None

    def __init__(
        self,
        num_features: int,
        max_length: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        bias: bool = True,
        process_group: processes.Group = None,
        guard: Literal["nonfinite"] | None = None,
    ) -> None:
        inputs.check_arguments(eps, momentum, num_features=num_features, max_length=max_length)
        if max_length < 1:
            raise ValueError(f"max_length must be 1 or more steps, got {max_length}")
        super().__init__()
        self.num_features = num_features
        self.max_length = max_length
        self.eps = eps
        self.momentum = momentum
        self.affine = affine
        for name, wanted in (("weight", affine), ("bias", affine and bias)):
            parameter = torch.empty(num_features, device=device, dtype=dtype) if wanted else None
            self.register_parameter(name, None if parameter is None else nn.Parameter(parameter))
        for name in ("running_mean", "running_var"):
            self.register_buffer(name, torch.empty(max_length, num_features, device=device, dtype=dtype))
        self.register_buffer("num_batches_tracked", torch.empty(max_length, device=device, dtype=torch.long))
        self.reset_parameters()
        self._share_with(process_group, num_features)
        self._follow(Tracking(guard=guard))

    def reset_parameters(self) -> None:
        """Reset the running statistics, set weights to 0.1 and biases to 0."""
        self.reset_running_stats()
        if self.weight is not None:
            nn.init.constant_(self.weight, 0.1)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    @one_node
    def forward(
        self, input: Tensor, *, step: int, residual: Tensor | None = None, mask: Tensor | None = None
    ) -> Tensor:
        """Normalize at a step; see `normkit.functional.recurrent_batch_norm`."""
        assert self.running_mean is not None
        assert self.running_var is not None
        row = _row(step, self.running_mean, self.running_var)
        return self._switched(input, Affine(self.weight, self.bias, self.eps, None, residual, mask), row)

    def extra_repr(self) -> str:
        """The arguments."""
        return (
            f"{self.num_features}, max_length={self.max_length}, eps={self.eps}, momentum={self.momentum}, "
            f"affine={self.affine}, bias={self.bias is not None}{self.tracking}{self._repr_group()}"
        )
