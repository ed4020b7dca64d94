"""Weight standardization: each filter of a weight has mean 0 and variance 1."""

from __future__ import annotations

from torch import Tensor, nn

from normkit import kernels
from normkit.norms import inputs
from normkit.norms.weights.axes import axis


def weight_standardization(weight: Tensor, eps: float = 1e-10, *, dim: int = 0) -> Tensor:
    r"""Subtract the mean of each slice along dim and divide by its deviation.

    .. math:: \hat{w}_o = \frac{w_o - \mu_o}{\sqrt{\sigma_o^2 + \epsilon}}

    Args:
        weight: floating, two axes or more.
        eps: added to the variance, which is biased. Weights are small: theirs is about the reciprocal of the
            number of inputs.
        dim: the axis that counts filters.

    Returns:
        Tensor of the weight's shape and dtype.

    Raises:
        IndexError: no such axis.
        ValueError: one value per filter, or a negative eps.

    Qiao, Wang, Liu, Shen and Yuille, "Micro-Batch Training with Batch-Channel Normalization and Weight
    Standardization", 2019.

    >>> import torch
    >>> weight_standardization(torch.tensor([[1.0, 3.0], [10.0, 30.0]]))
    tensor([[-1.,  1.],
            [-1.,  1.]])
    """
    dim = axis(weight, dim)
    if eps < 0:
        raise ValueError(f"eps must not be negative, got {eps}")
    if weight.dim() < 2 or weight.numel() == weight.shape[dim] > 0:
        raise ValueError(
            f"a filter needs more than one value to have a variance, got a weight of shape {list(weight.shape)}"
        )
    filters = weight.movedim(dim, 0)
    return kernels.rows(filters, weight.dim() - 1, None, None, eps, centered=True).movedim(0, dim)


class WeightStandardization(nn.Module):
    """The parametrization: original is the weight as it is learned."""

    def __init__(self, eps: float, dim: int, groups: int) -> None:
        inputs.check_real(eps=eps)
        super().__init__()
        self.eps = eps
        self.dim = dim
        self.groups = groups

    def forward(self, weight: Tensor) -> Tensor:
        """The standardized weight."""
        if self.dim == 0 or self.groups == 1:
            return weight_standardization(weight, self.eps, dim=self.dim)
        # A transposed convolution stacks its groups in the first axis, which counts inputs.
        stacked = weight.unflatten(0, (self.groups, -1)).transpose(1, 2)
        filters = weight_standardization(stacked.flatten(0, 1), self.eps)
        return filters.unflatten(0, (self.groups, -1)).transpose(1, 2).flatten(0, 1)

    def right_inverse(self, weight: Tensor) -> Tensor:
        """Itself: assigned weights are standardized when they are used."""
        return weight

    def extra_repr(self) -> str:
        """The arguments."""
        return f"eps={self.eps}, dim={self.dim}"
