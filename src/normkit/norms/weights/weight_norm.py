"""Weight norm: the length of each filter of a weight is a parameter of its own, apart from its direction."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.utils import parametrizations

from normkit import kernels
from normkit.norms import inputs
from normkit.norms.weights.axes import axis


def weight_norm(v: Tensor, g: Tensor, dim: int | None = 0) -> Tensor:
    r"""A weight of the direction v and of the length g in each slice along dim.

    .. math:: w_o = g_o \frac{v_o}{\lVert v_o \rVert}

    Args:
        v: floating, any shape.
        g: of the shape of v with every axis but dim at 1; () where dim is None.
        dim: the axis that counts filters; None, or -1 as in torch, for one length of the whole weight.

    Returns:
        Tensor of the shape and dtype of v.

    Raises:
        IndexError: no such axis.
        RuntimeError: a g of another shape.

    Salimans and Kingma, "Weight Normalization: A Simple Reparameterization to Accelerate Training of Deep Neural
    Networks", 2016.

    >>> weight_norm(torch.tensor([[3.0, 4.0]]), torch.tensor([[10.0]]))
    tensor([[6., 8.]])
    """
    if dim is None or dim == -1:
        if g.numel() != 1:
            raise RuntimeError(f"g of a whole weight is one number, got shape {list(g.shape)}")
        return _of_length(v.reshape(1, 1, -1), g.reshape(1)).view(v.shape)
    dim = axis(v, dim)
    shape = [size if d == dim else 1 for d, size in enumerate(v.shape)]
    if list(g.shape) != shape:
        raise RuntimeError(
            f"g must have the shape {shape}, one length for each slice of v, got {list(g.shape)}"
        )
    # Not [0], whose gradient is a copy.
    return _of_length(v.movedim(dim, 0).unsqueeze(0), g.flatten()).squeeze(0).movedim(0, dim)


def _of_length(v: Tensor, g: Tensor) -> Tensor:
    """Each channel of v (1, C, *) at the length g (C)."""
    # The root mean square of n values is their length divided by the root of n.
    root = math.sqrt(inputs.count(v.shape[2:]))
    return kernels.groups(v, v.shape[1], g / root, None, 0.0, centered=False)[0]


class WeightNorm(parametrizations._WeightNorm):  # pyright: ignore[reportPrivateUsage]
    """The parametrization: original0 is g, original1 is v, as torch has them."""

    def forward(self, weight_g: Tensor, weight_v: Tensor) -> Tensor:
        """The weight."""
        return weight_norm(weight_v, weight_g, self.dim)

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Length and direction of a weight."""
        exact = weight if weight.device.type == "mps" else weight.double()
        if self.dim == -1:
            return torch.linalg.vector_norm(exact).to(weight.dtype), weight
        dims = [d for d in range(weight.dim()) if d != axis(weight, self.dim)]
        # Without axes to sum over vector_norm would take all of them.
        length = torch.linalg.vector_norm(exact, dim=dims, keepdim=True) if dims else exact.abs()
        return length.to(weight.dtype), weight
