"""Dynamic tanh: what layer norm does to large values, without a statistic."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from normkit.norms import inputs
from normkit.norms.tracing import one_node


def dynamic_tanh(
    input: Tensor,
    normalized_shape: Sequence[int],
    alpha: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    r"""Squash each element of the last axes by a tanh of learned slope, then scale and shift it.

    .. math:: y = \gamma \tanh(\alpha x) + \beta

    Args:
        input: (*, normalized_shape), floating; any strides.
        normalized_shape: the sizes of the last axes, along which weight and bias run.
        alpha: (1), of the input's dtype, or float32 under half input.
        weight: :math:`\gamma`, of normalized_shape, likewise.
        bias: :math:`\beta`, likewise.

    Returns:
        Tensor of the input's shape and dtype.

    Raises:
        RuntimeError: an input that does not end in normalized_shape; parameters of another shape or dtype.

    Zhu, Chen, He, LeCun and Liu, "Transformers without Normalization", 2025.

    >>> dynamic_tanh(torch.tensor([-100.0, 0.0, 100.0]), [3], torch.tensor([0.5]))
    tensor([-1.,  0.,  1.])
    """
    inputs.check_last_axes("dynamic tanh", input, normalized_shape, weight=weight, bias=bias)
    if alpha.numel() != 1:
        raise RuntimeError(
            f"alpha is one number, got shape {list(alpha.shape)}: one alpha serves all features"
        )
    inputs.check_device("alpha", alpha, input)
    for name, parameter in (("alpha", alpha), ("weight", weight), ("bias", bias)):
        inputs.check_mixed(name, parameter, input)
    wide = torch.promote_types(input.dtype, torch.float32)
    y = (input.to(wide) * alpha.to(wide)).tanh_()  # in place, for fresh memory costs more than the tanh
    if weight is not None:
        y = y * weight.to(wide) if bias is None else torch.addcmul(bias.to(wide), y, weight.to(wide))
    elif bias is not None:
        y = y + bias.to(wide)
    return y.to(input.dtype)


class DynamicTanh(nn.Module):
    """Dynamic tanh over the last axes, in the place of `LayerNorm` or `RMSNorm` in a transformer.

    Equation and errors as in `normkit.functional.dynamic_tanh`.

    Args:
        normalized_shape: the sizes of the last axes, along which weight and bias run.
        alpha_init_value: where alpha, one learned number, starts. The paper takes 0.5, and less for large
            language models.
        elementwise_affine: learn a weight, and a bias where `bias` is true.
        bias: learn a bias.
        device: of the parameters.
        dtype: of the parameters.

    >>> DynamicTanh(64)(torch.randn(2, 10, 64)).shape
    torch.Size([2, 10, 64])
    """

    normalized_shape: tuple[int, ...]
    weight: nn.Parameter | None
    bias: nn.Parameter | None

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        alpha_init_value: float = 0.5,
        elementwise_affine: bool = True,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        inputs.check_real(alpha_init_value=alpha_init_value)
        super().__init__()
        self.normalized_shape = inputs.sizes_of(normalized_shape)
        self.alpha_init_value = alpha_init_value
        self.elementwise_affine = elementwise_affine
        self.alpha = nn.Parameter(torch.empty(1, device=device, dtype=dtype))
        for name, wanted in (("weight", elementwise_affine), ("bias", elementwise_affine and bias)):
            parameter = torch.empty(self.normalized_shape, device=device, dtype=dtype) if wanted else None
            self.register_parameter(name, None if parameter is None else nn.Parameter(parameter))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set alpha to its first value, weights to 1 and biases to 0."""
        nn.init.constant_(self.alpha, self.alpha_init_value)
        if self.weight is not None:
            nn.init.ones_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    @one_node
    def forward(self, input: Tensor) -> Tensor:
        """Squash; see `normkit.functional.dynamic_tanh`."""
        return dynamic_tanh(input, self.normalized_shape, self.alpha, self.weight, self.bias)

    def extra_repr(self) -> str:
        """The arguments."""
        return (
            f"{self.normalized_shape}, alpha_init_value={self.alpha_init_value}, "
            f"elementwise_affine={self.elementwise_affine}, bias={self.bias is not None}"
        )
