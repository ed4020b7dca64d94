"""Switch norm: the statistics of instance, layer and batch norm, mixed by weights that it learns."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from normkit import processes
from normkit.norms import inputs, mixed_norm, mixing
from normkit.norms.mixing import Affine
from normkit.norms.naming import as_its_own, for_all_dimensions
from normkit.statistics import pooled


def switch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    mean_weight: Tensor,
    var_weight: Tensor,
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
    r"""Normalize by a mean and a variance mixed of those of instance, layer and batch norm.

    .. math::
        y = f\left(\gamma \frac{x - \sum_k a_k \mu_k}{\sqrt{\sum_k b_k \sigma_k^2 + \epsilon}} + \beta + r\right),
        \quad a = \mathrm{softmax}(\mathrm{mean\_weight}), \; b = \mathrm{softmax}(\mathrm{var\_weight})

    All three pairs of statistics are made of one, the moments of each sample's channels. Where a sample has one
    value per channel it has no instance statistic, and the softmax is of the other two, as in the authors'
    layer for vectors.

    Args:
        input: (N, C) or (N, C, *), floating; any strides.
        running_mean: (C), of the batch part; changed in place in training, in evaluation in that part's place.
        running_var: (C), holds the unbiased variance.
        mean_weight: (3), in the order instance, layer, batch.
        var_weight: (3), likewise.
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
        process_group: processes whose batches are one in training, as in `batch_norm`.
        layer: how the processes of the group tell this call from others.

    Returns:
        Tensor of the input's shape, dtype and memory format.

    Raises:
        ValueError: one value per channel in training; only one running statistic given; eps not positive.
        RuntimeError: parameters of another length, dtype or device; no running statistics in evaluation.

    Luo, Ren, Peng, Zhang and Li, "Differentiable Learning-to-Normalize via Switchable Normalization", 2018.

    >>> x = torch.tensor([[[1.0, 3.0], [10.0, 30.0]]])
    >>> instance = torch.tensor([0.0, -torch.inf, -torch.inf])
    >>> switch_norm(x, None, None, instance, instance, training=True, eps=1e-12)
    tensor([[[-1.,  1.],
             [-1.,  1.]]])
    """
    running = running_mean, running_var
    affine = Affine(weight, bias, eps, activation, residual, mask)
    shares = mean_weight, var_weight
    y, stats, count = _switch(input, *shares, running, training, affine, process_group, layer)
    if training:
        mixed_norm.move(running, stats, count, momentum, num_batches_tracked)
    return y


def _switch(
    input: Tensor,
    mean_weight: Tensor,
    var_weight: Tensor,
    running: tuple[Tensor | None, Tensor | None],
    training: bool,
    affine: Affine,
    group: processes.Group,
    layer: processes.Layer,
) -> tuple[Tensor, Tensor, int | Tensor]:
    """Check and normalize: the output; mean and biased variance of the batch as rows of C; their count."""
    group = group if training else None
    mixing.check("switch norm", input, *running, affine, training, shared=processes.several(group))
    for name, logits in (("mean_weight", mean_weight), ("var_weight", var_weight)):
        if logits.shape != (3,):
            raise RuntimeError(
                f"{name} has shape [3], for instance, layer and batch, got {list(logits.shape)}"
            )
        inputs.check_device(name, logits, input)
    affine = affine._replace(mask=inputs.expand_mask(affine.mask, input))
    mixture = _OF_ALL if inputs.count(input.shape[2:]) > 1 else _OF_TWO
    learned = {"mean_weight": mean_weight, "var_weight": var_weight}
    return mixed_norm.mix(input, mixture, learned, running, training, affine, group, layer)


def _rule(
    first: int,
    mean: Tensor,
    var: Tensor,
    batch_mean: Tensor,
    batch_var: Tensor,
    mean_weight: Tensor,
    var_weight: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Mixed mean and variance (N, C), of the statistics from the first one on that is there.

    The channels of a sample are equally large sets.
    """
    parts = [(mean, var), pooled(mean, var, 1, 1), (batch_mean, batch_var)][first:]
    a, b = (logits[first:].to(mean.dtype).softmax(0) for logits in (mean_weight, var_weight))
    # From one of them towards the others: where all agree, no rounding moves the mean.
    mixed_mean, mixed_var = parts[0][0], b[0] * parts[0][1]
    for k in range(1, len(parts)):
        mixed_mean = mixed_mean + a[k] * (parts[k][0] - parts[0][0])
        mixed_var = mixed_var + b[k] * parts[k][1]
    return mixed_mean, mixed_var, weight, bias


_OF_ALL, _OF_TWO = (mixed_norm.Mixture("switched", partial(_rule, first)) for first in (0, 1))


@for_all_dimensions
@as_its_own
class _SwitchNorm(mixed_norm.MixedNorm):
    """What switch norm of every dimension shares."""

    mean_weight: Tensor
    var_weight: Tensor

    def _shares(self) -> dict[str, int]:
        return {"mean_weight": 3, "var_weight": 3}

    def _mix(
        self,
        input: Tensor,
        running: tuple[Tensor | None, Tensor | None],
        training: bool,
        affine: Affine,
        group: processes.Group,
    ) -> tuple[Tensor, Tensor, int | Tensor]:
        return _switch(
            input, self.mean_weight, self.var_weight, running, training, affine, group, self.identity
        )


class SwitchNorm1d(_SwitchNorm):
    """Switch norm over (N, C) or (N, C, L): instance, layer and batch statistics mixed by learned weights.

    Equation and errors as in `normkit.functional.switch_norm`. It is no `torch.nn.BatchNorm1d`, so that tools that
    fuse or convert batch norms leave it alone.

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

    `mean_weight` and `var_weight`, (3) each, are learned: the softmax of each gives the shares of instance, layer
    and batch. `forward(input, *, residual=None, mask=None)` as in `BatchNorm1d`.

    >>> SwitchNorm1d(16, activation="relu")(torch.randn(8, 16)).shape
    torch.Size([8, 16])
    """

    _check_input_dim = torch.nn.BatchNorm1d._check_input_dim  # pyright: ignore


class SwitchNorm2d(_SwitchNorm):
    """Switch norm over (N, C, H, W); arguments as in `SwitchNorm1d`.

    >>> SwitchNorm2d(3)(torch.randn(2, 3, 8, 8)).shape
    torch.Size([2, 3, 8, 8])
    """

    _check_input_dim = torch.nn.BatchNorm2d._check_input_dim  # pyright: ignore


class SwitchNorm3d(_SwitchNorm):
    """Switch norm over (N, C, D, H, W); arguments as in `SwitchNorm1d`."""

    _check_input_dim = torch.nn.BatchNorm3d._check_input_dim  # pyright: ignore
