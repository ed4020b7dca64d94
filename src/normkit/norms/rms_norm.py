"""RMS norm: layer norm without the mean."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from normkit import kernels
from normkit.norms import inputs, rows
from normkit.norms.tracing import one_node

_EPS32, _EPS64 = torch.finfo(torch.float32).eps, torch.finfo(torch.float64).eps


def rms_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
    *,
    mask: Tensor | None = None,
) -> Tensor:
    r"""Divide the last axes of each sample by the root of their mean square.

    .. math:: y = \gamma \frac{x}{\sqrt{\frac{1}{M} \sum_i x_i^2 + \epsilon}}

    Args:
        input: (*, normalized_shape), floating; any strides.
        normalized_shape: the sizes of the last axes, which share a statistic.
        weight: :math:`\gamma`, of normalized_shape; any floating dtype, as in torch.
        eps: added to the mean square; None for the machine epsilon of the arithmetic, which is
            float32 under half input.
        mask: bool, broadcastable to the input without its last axis, true where it is valid. Padded positions
            enter no statistic, come out as 0, and pass no gradient.

    Returns:
        Tensor of the input's shape and dtype.

    Raises:
        RuntimeError: an input that does not end in normalized_shape, a weight of another shape.

    Zhang and Sennrich, "Root Mean Square Layer Normalization", 2019.

    >>> rms_norm(torch.tensor([3.0, 4.0]), [2], eps=0.0).square().mean()
    tensor(1.)
    """
    if eps is None:
        eps = _EPS64 if input.dtype == torch.float64 else _EPS32
    if mask is None:
        y = kernels.straight_rows(input, normalized_shape, weight, None, eps, False)
        if y is not None:
            return y
    inputs.check_last_axes("RMS norm", input, normalized_shape, weight=weight)
    if mask is not None:
        return rows.general("RMS norm", input, normalized_shape, weight, None, eps, mask, centered=False)
    return kernels.rows(input, len(normalized_shape), weight, None, eps, centered=False)


class RMSNorm(torch.nn.RMSNorm):
    """RMS norm over the last axes, a drop-in for `torch.nn.RMSNorm`, whose arguments it takes.

    Equation and errors as in `normkit.functional.rms_norm`.

    >>> RMSNorm(64)(torch.randn(2, 10, 64)).shape
    torch.Size([2, 10, 64])
    """

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        eps: float | None = None,
        elementwise_affine: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if eps is not None:
            inputs.check_arguments(eps)
        super().__init__([*inputs.sizes_of(normalized_shape)], eps, elementwise_affine, device, dtype)

    @one_node
    def forward(self, x: Tensor, *, mask: Tensor | None = None) -> Tensor:
        """Normalize; see `normkit.functional.rms_norm`."""
        return rms_norm(x, self.normalized_shape, inputs.own_weight(self), self.eps, mask=mask)
