"""Layer norm: one statistic per sample and position, shared over the last axes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from normkit import kernels
from normkit.norms import inputs, rows
from normkit.norms.tracing import one_node


def layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    mask: Tensor | None = None,
) -> Tensor:
    r"""Normalize the last axes of each sample by their own mean and biased variance.

    .. math:: y = \gamma \frac{x - \mu}{\sqrt{\sigma^2 + \epsilon}} + \beta

    Args:
        input: (*, normalized_shape), floating; any strides.
        normalized_shape: the sizes of the last axes, which share a statistic.
        weight: :math:`\gamma`, of normalized_shape, or (N, normalized_shape) for one per sample, along the first
            axis of the input; of the input's dtype, or float32 under half input.
        bias: :math:`\beta`, likewise.
        eps: added to the variance.
        mask: bool, broadcastable to the input without its last axis, true where it is valid. Padded positions
            enter no statistic, come out as 0, and pass no gradient.

    Returns:
        Tensor of the input's shape and dtype.

    Raises:
        RuntimeError: an input that does not end in normalized_shape; parameters of another shape or dtype.

    Ba, Kiros and Hinton, "Layer Normalization", 2016.

    >>> layer_norm(torch.tensor([[1.0, 3.0], [10.0, 30.0]]), [2], eps=0.0)
    tensor([[-1.,  1.],
            [-1.,  1.]])
    """
    if mask is None:
        y = kernels.straight_rows(input, normalized_shape, weight, bias, eps, True)
        if y is not None:
            return y
    if mask is not None or inputs.per_sample(weight, bias, len(normalized_shape)):
        return rows.general("layer norm", input, normalized_shape, weight, bias, eps, mask, centered=True)
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

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        eps: float = 1e-5,
        elementwise_affine: bool = True,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        inputs.check_arguments(eps)
        super().__init__([*inputs.sizes_of(normalized_shape)], eps, elementwise_affine, bias, device, dtype)

    @one_node
    def forward(
        self,
        input: Tensor,
        *,
        mask: Tensor | None = None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
    ) -> Tensor:
        """Normalize; see `normkit.functional.layer_norm`.

        A weight or bias given here, of normalized_shape or one per sample, stands in for the layer's own.
        """
        own_weight, own_bias = inputs.own_affine(self)
        weight = own_weight if weight is None else weight
        bias = own_bias if bias is None else bias
        return layer_norm(input, self.normalized_shape, weight, bias, self.eps, mask=mask)
