"""Synchronized batch norm: batch norm whose batch is that of all processes together."""

from __future__ import annotations

import torch
from torch import Tensor

from normkit.norms.batch_norm import _BatchNorm  # pyright: ignore[reportPrivateUsage]
from normkit.processes import Group


class SyncBatchNorm(_BatchNorm):
    r"""Batch norm over the batches of all processes, with `torch.nn.SyncBatchNorm`'s arguments and state_dict.

    As `BatchNorm1d`, `BatchNorm2d` and `BatchNorm3d` with `process_group="world"`, for input of any dimension; on any
    device and any backend of torch.distributed. In training each process brings count, mean and variance of its own
    values, in one all-gather, and normalizes by those of all values together; the backward pass takes one
    all-reduce. Batches may differ in size, and be empty; masks may differ. Evaluation is local, and so is training
    where torch.distributed is not initialized or there is one process.

    Where processes disagree, in a layer's channels or in the order of layers, or one does not come, all that take
    part raise a `ProcessError` that names layer, group and ranks, at once or when the group's timeout has passed. A
    process in evaluation mode takes no part; while others wait for it in training, it learns that from its next call
    once they have given up. Under `torch.compile` the graph breaks where processes meet.

    It is a `torch.nn.modules.batchnorm._BatchNorm`, and no `torch.nn.SyncBatchNorm`: DistributedDataParallel refuses
    every module on the CPU that has one of those. `normkit.synchronize(model)` converts the layers of a model.

    Args:
        num_features: C.
        eps: added to the variance.
        momentum: weight of a batch in the running statistics; None for the cumulative average.
        affine: learn a weight, and a bias where `bias` is true.
        track_running_stats: keep running statistics and normalize by them in evaluation.
        process_group: whose batches count together; None for all processes.
        device: of parameters and buffers.
        dtype: of parameters and buffers.
        bias: learn a bias.
        activation: applied at the end: relu, leaky_relu, silu, gelu, elu, sigmoid, tanh, relu6 or hardswish.

    `forward(input, *, residual=None, mask=None)` takes (N, C) or (N, C, *).

    >>> SyncBatchNorm(3, activation="relu")(torch.randn(2, 3, 8, 8)).shape
    torch.Size([2, 3, 8, 8])
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        process_group: Group = None,
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
            process_group="world" if process_group is None else process_group,
        )

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"expected at least 2D input (got {input.dim()}D input)")

    def _repr_group(self) -> str:
        return "" if self.process_group == "world" else super()._repr_group() or ", process_group=None"
