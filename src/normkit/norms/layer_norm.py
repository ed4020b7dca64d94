"""Layer norm: one statistic per sample and position, shared over the last axes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from normkit import kernels
from normkit.norms import inputs
from normkit.norms.tracing import one_node


def layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    r"""Normalize the last axes of each sample by their own mean and biased variance.

    .. math:: y = \gamma \frac{x - \mu}{\sqrt{\sigma^2 + \epsilon}} + \beta

    Args:
        input: (*, normalized_shape), floating; any strides.
        normalized_shape: the sizes of the last axes, which share a statistic.
        weight: :math:`\gamma`, of normalized_shape and of the input's dtype, or float32 under half input.
        bias: :math:`\beta`, likewise.
        eps: added to the variance.

    Returns:
        Tensor of the input's shape and dtype.

    Raises:
        RuntimeError: an input that does not end in normalized_shape; parameters of another shape or dtype.

    Ba, Kiros and Hinton, "Layer Normalization", 2016.

    >>> layer_norm(torch.tensor([[1.0, 3.0], [10.0, 30.0]]), [2], eps=0.0)
    tensor([[-1.,  1.],
            [-1.,  1.]])
    """
    inputs.check_last_axes("layer norm", input, normalized_shape, weight=weight, bias=bias)
    inputs.check_mixed("weight", weight, input)
    inputs.check_mixed("bias", bias, input)
    return kernels.rows(input, len(normalized_shape), weight, bias, eps, centered=True)


class LayerNorm(torch.nn.LayerNorm):
    """Layer norm over the last axes, a drop-in for `torch.nn.LayerNorm`, whose arguments it takes.

    Equation and errors as in `normkit.functional.layer_norm`.

    >>> LayerNorm(64)(torch.randn(2, 10, 64)).shape
    torch.Size([2, 10, 64])
    """

    @one_node
    def forward(self, input: Tensor) -> Tensor:
        """Normalize; see `normkit.functional.layer_norm`."""
        return layer_norm(input, self.normalized_shape, self.weight, self.bias, self.eps)
