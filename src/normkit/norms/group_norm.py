"""Group norm: one statistic per sample and group of channels, shared over space."""

from __future__ import annotations

import torch
from torch import Tensor

from normkit import kernels
from normkit.norms import inputs
from normkit.norms.tracing import one_node


def group_norm(
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    activation: str | None = None,
) -> Tensor:
    r"""Normalize each group of channels of each sample by its own mean and biased variance.

    .. math:: y = f\left(\gamma \frac{x - \mu}{\sqrt{\sigma^2 + \epsilon}} + \beta\right)

    Args:
        input: (N, C) or (N, C, *), floating; any strides.
        num_groups: divides C; 1 is layer norm over a whole sample, C is instance norm.
        weight: :math:`\gamma`, (C), of the input's dtype, or float32 under half input.
        bias: :math:`\beta`, (C).
        eps: added to the variance.
        activation: :math:`f`: relu, leaky_relu, silu, gelu, elu, sigmoid or tanh; None: identity.

    Returns:
        Tensor of the input's shape, dtype and memory format.

    Raises:
        ValueError: one value per group in a batch of one, whose output would be the bias alone.
        RuntimeError: groups that do not divide the channels; parameters of another length or dtype.

    Wu and He, "Group Normalization", 2018.

    >>> group_norm(torch.tensor([[1.0, 3.0, 10.0, 30.0]]), 2, eps=0.0)
    tensor([[-1.,  1., -1.,  1.]])
    """
    if input.dim() < 2:
        raise RuntimeError(f"Expected at least 2 dimensions for input tensor but received {input.dim()}")
    inputs.check_dtype("group norm", input)
    channels = input.shape[1]
    if num_groups < 1 or channels % num_groups != 0:
        raise RuntimeError(
            "Expected number of channels in input to be divisible by num_groups, but got input of shape "
            f"{list(input.shape)} and num_groups={num_groups}"
        )
    inputs.check_channels(input, weight=weight, bias=bias)
    inputs.check_activation(activation)
    # torch lets one value per group pass when there are several samples; so do we.
    values = inputs.count([input.shape[0], channels // num_groups, *input.shape[2:]])
    inputs.check_several_values(values, input, what="value per channel")
    return kernels.groups(input, num_groups, weight, bias, eps, activation)[0]


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
        activation: applied at the end: relu, leaky_relu, silu, gelu, elu, sigmoid or tanh.

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
        inputs.check_activation(activation)
        super().__init__(num_groups, num_channels, eps, affine, device, dtype, bias=bias)
        self.activation = activation

    @one_node
    def forward(self, input: Tensor) -> Tensor:
        """Normalize, activate; see `normkit.functional.group_norm`."""
        return group_norm(
            input, self.num_groups, self.weight, self.bias, self.eps, activation=self.activation
        )

    def extra_repr(self) -> str:
        """The arguments, the activation where there is one."""
        return super().extra_repr() + inputs.repr_activation(self.activation)
