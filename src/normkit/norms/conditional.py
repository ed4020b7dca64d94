"""Conditional norm: each class has a weight and a bias of its own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from normkit.norms import inputs
from normkit.norms.batch_norm import BatchNorm1d, BatchNorm2d, BatchNorm3d
from normkit.norms.group_norm import GroupNorm
from normkit.norms.instance_norm import InstanceNorm1d, InstanceNorm2d, InstanceNorm3d
from normkit.norms.layer_norm import LayerNorm
from normkit.norms.tracing import one_node

_ByFeatures = BatchNorm1d | BatchNorm2d | BatchNorm3d | InstanceNorm1d | InstanceNorm2d | InstanceNorm3d


class Conditional(torch.nn.Module):
    r"""A batch, instance, layer or group norm whose affine map is that of the sample's class.

    .. math:: y = \gamma_k \frac{x - \mu}{\sqrt{\sigma^2 + \epsilon}} + \beta_k, \quad k = \text{condition}_n

    For maps that come from elsewhere, such as a network over a style or a question, give them to the norm itself:
    `norm(x, weight=gamma, bias=beta)`, one per sample.

    Args:
        norm: a layer of normkit without weight and bias (affine=False; elementwise_affine=False of `LayerNorm`).
        num_classes: how many maps are learned; they start as the identity.
        device: of the parameters.
        dtype: of the parameters.

    Raises:
        TypeError: a norm of another kind.
        ValueError: a norm with weight and bias of its own.

    `weight` and `bias` are learned, one row for each class. `forward(input, condition, **kwargs)` takes the class of
    each sample, int64 (N), and passes what else it is given (`residual=`, `mask=`) on to the norm.

    Dumoulin, Shlens and Kudlur, "A Learned Representation For Artistic Style", 2017; de Vries et al., "Modulating
    early visual processing by language", 2017.

    >>> layer = Conditional(GroupNorm(2, 8, affine=False), num_classes=10)
    >>> layer(torch.randn(4, 8, 5, 5), torch.tensor([3, 1, 4, 1])).shape
    torch.Size([4, 8, 5, 5])
    """

    def __init__(
        self,
        norm: torch.nn.Module,
        num_classes: int,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        inputs.check_whole(num_classes=num_classes)
        super().__init__()
        shape = _shape(norm)
        if list(norm.parameters(recurse=False)):
            raise ValueError(
                f"a conditional norm has weight and bias for each class, got a {type(norm).__name__} with its own: "
                "make it with affine=False (LayerNorm: elementwise_affine=False)"
            )
        self.norm = norm
        self.weight = torch.nn.Parameter(torch.ones(num_classes, *shape, device=device, dtype=dtype))
        self.bias = torch.nn.Parameter(torch.zeros(num_classes, *shape, device=device, dtype=dtype))

    def reset_parameters(self) -> None:
        """Every map the identity."""
        torch.nn.init.ones_(self.weight)
        torch.nn.init.zeros_(self.bias)

    @one_node
    def forward(self, input: Tensor, condition: Tensor, **kwargs: Any) -> Tensor:
        """Normalize with the affine map of each sample's class."""
        if condition.shape != input.shape[:1] or condition.dtype not in (torch.int64, torch.int32):
            raise ValueError(
                f"condition is the class of each sample, int64 of shape {list(input.shape[:1])}, got "
                f"{condition.dtype} of shape {list(condition.shape)}"
            )
        # The gradients of the samples of a class add up: of half types in float32.
        weight, bias = (p.float() if p.dtype.itemsize == 2 else p for p in (self.weight, self.bias))
        return self.norm(input, weight=weight[condition], bias=bias[condition], **kwargs)

    def extra_repr(self) -> str:
        """How many classes."""
        return f"num_classes={self.weight.shape[0]}"


def _shape(norm: torch.nn.Module) -> tuple[int, ...]:
    """Of an affine map of the norm."""
    if isinstance(norm, _ByFeatures):
        return (norm.num_features,)
    if isinstance(norm, GroupNorm):
        return (norm.num_channels,)
    if isinstance(norm, LayerNorm):
        return tuple(norm.normalized_shape)
    raise TypeError(
        f"a conditional norm takes a BatchNorm, InstanceNorm, GroupNorm or LayerNorm of normkit, got a "
        f"{type(norm).__name__}"
    )
