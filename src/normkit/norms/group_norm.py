"""Group norm: one statistic per sample and group of channels, shared over space."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from normkit import kernels
from normkit.norms import inputs, mixing
from normkit.norms.tracing import one_node
from normkit.statistics import pooled


def group_norm(
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    activation: str | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    r"""Normalize each group of channels of each sample by its own mean and biased variance.

    .. math:: y = f\left(\gamma \frac{x - \mu}{\sqrt{\sigma^2 + \epsilon}} + \beta\right)

    Args:
        input: (N, C) or (N, C, *), floating; any strides.
        num_groups: divides C; 1 is layer norm over a whole sample, C is instance norm.
        weight: :math:`\gamma`, (C), or (N, C) for one per sample; of the input's dtype, or float32 under half
            input.
        bias: :math:`\beta`, likewise.
        eps: added to the variance.
        activation: :math:`f`: relu, leaky_relu, silu, gelu, elu, sigmoid, tanh, relu6 or hardswish; None: identity.
        mask: bool, broadcastable to the input without channels, true where it is valid. Padded positions
            enter no statistic, come out as 0, and pass no gradient.

    Returns:
        Tensor of the input's shape, dtype and memory format.

    Raises:
        ValueError: one value per group in a batch of one, whose output would be the bias alone.
        RuntimeError: groups that do not divide the channels; parameters of another length or dtype.

    Wu and He, "Group Normalization", 2018.

    >>> group_norm(torch.tensor([[1.0, 3.0, 10.0, 30.0]]), 2, eps=0.0)
    tensor([[-1.,  1., -1.,  1.]])
    """
    if mask is None:
        y = kernels.straight_groups(input, num_groups, weight, bias, eps, activation)
        if y is not None:
            return y
    if input.dim() < 2:
        raise RuntimeError(f"Expected at least 2 dimensions for input tensor but received {input.dim()}")
    inputs.check_dtype("group norm", input)
    channels = input.shape[1]
    if num_groups < 1 or channels % num_groups != 0:
        raise RuntimeError(
            "Expected number of channels in input to be divisible by num_groups, but got input of shape "
            f"{list(input.shape)} and num_groups={num_groups}"
        )
    if mask is not None or inputs.per_sample(weight, bias):
        return _combined(input, num_groups, weight, bias, eps, activation, mask)
    inputs.check_channels(input, weight=weight, bias=bias)
    if activation is not None:
        inputs.check_activation(activation)
    # torch lets one value per group pass when there are several samples; so do we.
    if input.numel() == num_groups:
        values = inputs.count([input.shape[0], channels // num_groups, *input.shape[2:]])
        inputs.check_several_values(values, input, what="value per channel")
    return kernels.groups(input, num_groups, weight, bias, eps, activation)[0]


def _combined(
    input: Tensor,
    num_groups: int,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    activation: str | None,
    mask: Tensor | None,
) -> Tensor:
    """With a mask or an affine map for each sample: from the moments of each sample's channels."""
    inputs.check_per_sample(input, input.shape[1:2], weight, bias)
    inputs.check_activation(activation)
    values = inputs.count([input.shape[0], input.shape[1] // num_groups, *input.shape[2:]])
    inputs.check_several_values(values, input, what="value per channel")
    mask = inputs.expand_mask(mask, input)
    affine = mixing.Affine(weight, bias, eps, activation, mask=mask)
    return mixing.mix(input, partial(_rule, num_groups), {}, affine)[0]


def _rule(
    num_groups: int,
    mean: Tensor,
    var: Tensor,
    count: int | Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Mean and variance of each group, for each of its channels."""
    channels = [-1, num_groups, mean.shape[1] // num_groups]
    means, variances = mean.reshape(channels), var.reshape(channels)
    count = count.unsqueeze(-1) if isinstance(count, Tensor) else count
    group_mean, group_var = (s.expand_as(means).flatten(1) for s in pooled(means, variances, count, 2))
    return group_mean, group_var, weight, bias


class GroupNorm(torch.nn.GroupNorm):
    """Group norm over (N, C, *), a drop-in for `torch.nn.GroupNorm`.

    Equation and errors as in `normkit.functional.group_norm`.

    Args:
        num_groups: divides num_channels.
        num_channels: C.
        eps: added to the variance.
        affine: learn a weight, and a bias where `bias` is true.
        device: of the parameters.
        dtype: of the parameters.
        bias: learn a bias.
        activation: applied at the end: relu, leaky_relu, silu, gelu, elu, sigmoid, tanh, relu6 or hardswish.

    >>> GroupNorm(4, 16, activation="silu")(torch.randn(2, 16, 8, 8)).shape
    torch.Size([2, 16, 8, 8])
    """

    activation: str | None = None

    def __init__(
        self,
        num_groups: int,
        num_channels: int,
        eps: float = 1e-5,
        affine: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        bias: bool = True,
        activation: str | None = None,
    ) -> None:
        inputs.check_arguments(eps, num_groups=num_groups, num_channels=num_channels)
        inputs.check_activation(activation)
        super().__init__(num_groups, num_channels, eps, affine, device, dtype, bias=bias)
        self.activation = activation

    @one_node
    def forward(
        self,
        input: Tensor,
        *,
        mask: Tensor | None = None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        activation: str | None = None,
    ) -> Tensor:
        """Normalize, activate; see `normkit.functional.group_norm`.

        A weight or bias given here, (C) or (N, C), or an activation, stands in for the layer's own.
        """
        own_weight, own_bias = inputs.own_affine(self)
        return group_norm(
            input,
            self.num_groups,
            own_weight if weight is None else weight,
            own_bias if bias is None else bias,
            self.eps,
            activation=self.activation if activation is None else activation,
            mask=mask,
        )

    def extra_repr(self) -> str:
        """The arguments, the activation where there is one."""
        return super().extra_repr() + inputs.repr_activation(self.activation)
