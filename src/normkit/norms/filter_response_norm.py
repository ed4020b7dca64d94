"""Filter response norm: each channel of each sample by its root mean square over space, and a learned threshold."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from normkit import kernels
from normkit.norms import inputs
from normkit.norms.tracing import one_node


def filter_response_norm(
    input: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    threshold: Tensor | None = None,
    eps: float = 1e-6,
    *,
    learned_eps: Tensor | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    r"""Divide each channel of each sample by its root mean square over space; cut the result off below.

    .. math::
        z = \max(y, \tau), \quad y = \gamma \frac{x}{\sqrt{\nu^2 + \epsilon + |\epsilon_l|}} + \beta, \quad
        \nu^2 = \frac{1}{S} \sum_i x_i^2

    No mean is subtracted and no sample meets another. The threshold takes the place of a ReLU, which would cut
    off at zero what has no reason to lie about zero.

    Args:
        input: (N, C) or (N, C, *), floating; any strides.
        weight: :math:`\gamma`, (C), of the input's dtype, or float32 under half input.
        bias: :math:`\beta`, (C), likewise.
        threshold: :math:`\tau`, (C), likewise; None: z = y.
        eps: added to the mean square.
        learned_eps: :math:`\epsilon_l`, (1), likewise; for activations of one or few positions, where y would
            else be the sign of x alone.
        mask: bool, broadcastable to the input without channels, true where it is valid. Padded positions
            enter no statistic, come out as 0, and pass no gradient.

    Returns:
        Tensor of the input's shape, dtype and memory format.

    Raises:
        ValueError: eps negative; a mask of another shape.
        TypeError: a mask that is not bool.
        RuntimeError: parameters of another length, dtype or device.

    Singh and Krishnan, "Filter Response Normalization Layer: Eliminating Batch Dependence in the Training of Deep
    Neural Networks", 2020.

    >>> x = torch.tensor([[[6.0, -8.0, 0.0, 0.0]]])
    >>> filter_response_norm(x, threshold=torch.tensor([-1.0]), eps=0.0)
    tensor([[[ 1.2000, -1.0000,  0.0000,  0.0000]]])
    """
    _check(input, eps, learned_eps, weight=weight, bias=bias, threshold=threshold)
    mask = inputs.expand_mask(mask, input)
    if threshold is None:
        return _normalize(input, weight, bias, eps, learned_eps, None, mask)
    # max(y, tau) = relu(y - tau) + tau. Half types are rounded once, when the threshold is back.
    wide = input.to(torch.promote_types(input.dtype, torch.float32))
    threshold = threshold.to(wide.dtype)
    shift = -threshold if bias is None else bias.to(wide.dtype) - threshold
    weight = None if weight is None else weight.to(wide.dtype)
    y = _normalize(wide, weight, shift, eps, learned_eps, "relu", mask)
    return kernels.shifted(y, threshold, mask).to(input.dtype)


def _normalize(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    learned_eps: Tensor | None,
    activation: str | None,
    mask: Tensor | None,
) -> Tensor:
    if mask is None and learned_eps is None:
        return kernels.groups(input, input.shape[1], weight, bias, eps, activation, centered=False)[0]
    given = {"weight": weight, "bias": bias, "learned_eps": learned_eps}
    parameters = {name: parameter for name, parameter in given.items() if parameter is not None}

    def combine(
        mean: Tensor, var: Tensor, _: int | Tensor, *tensors: Tensor
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        by = dict(zip(parameters, tensors, strict=True))
        square = mean.square() + var
        if "learned_eps" in by:
            square = square + by["learned_eps"].to(square.dtype).abs()
        return torch.zeros_like(mean), square, by.get("weight"), by.get("bias")

    return kernels.combined(
        input, combine, list(parameters.values()), eps, per_sample=True, activation=activation, mask=mask
    )[0]


def _check(input: Tensor, eps: float, learned_eps: Tensor | None, **parameters: Tensor | None) -> None:
    if input.dim() < 2:
        raise ValueError(
            f"filter response norm takes (N, C) or (N, C, *), got input size {list(input.shape)}"
        )
    inputs.check_dtype("filter response norm", input)
    if eps < 0:
        raise ValueError(f"filter response norm eps must not be negative, got {eps}")
    inputs.check_channels(input, **parameters)
    if learned_eps is not None:
        if learned_eps.numel() != 1:
            raise RuntimeError(f"learned_eps is one number, got shape {list(learned_eps.shape)}")
        inputs.check_device("learned_eps", learned_eps, input)
        inputs.check_mixed("learned_eps", learned_eps, input)


class FilterResponseNorm(nn.Module):
    """Filter response norm over (N, C) or (N, C, *), with its thresholded linear unit as the activation.

    Equation and errors as in `normkit.functional.filter_response_norm`.

    Args:
        num_features: C.
        eps: added to the mean square.
        affine: learn a weight and a bias.
        threshold: learn a threshold, from 0 on; otherwise what follows may be any activation.
        learn_eps: learn what is added to eps, from 1e-4 on: for activations of one position, as those of a dense
            layer or of a 1x1 map.
        device: of the parameters.
        dtype: of the parameters.

    `forward(input, *, mask=None)` takes a mask, bool and of the shape (N, *), false where the input is padding.

    >>> FilterResponseNorm(16)(torch.randn(2, 16, 8, 8)).shape
    torch.Size([2, 16, 8, 8])
    """

    weight: nn.Parameter | None
    bias: nn.Parameter | None
    threshold: nn.Parameter | None
    learned_eps: nn.Parameter | None

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-6,
        affine: bool = True,
        threshold: bool = True,
        learn_eps: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        inputs.check_arguments(eps, num_features=num_features)
        super().__init__()
        self.num_features = num_features
        self.eps = eps
        self.affine = affine
        for name, wanted, size in (
            ("weight", affine, num_features),
            ("bias", affine, num_features),
            ("threshold", threshold, num_features),
            ("learned_eps", learn_eps, 1),
        ):
            parameter = torch.empty(size, device=device, dtype=dtype) if wanted else None
            self.register_parameter(name, None if parameter is None else nn.Parameter(parameter))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set weights to 1, biases and thresholds to 0, the learned eps to 1e-4."""
        for parameter, value in (
            (self.weight, 1.0),
            (self.bias, 0.0),
            (self.threshold, 0.0),
            (self.learned_eps, 1e-4),
        ):
            if parameter is not None:
                nn.init.constant_(parameter, value)

    @one_node
    def forward(self, input: Tensor, *, mask: Tensor | None = None) -> Tensor:
        """Normalize, cut off; see `normkit.functional.filter_response_norm`."""
        return filter_response_norm(
            input, self.weight, self.bias, self.threshold, self.eps, learned_eps=self.learned_eps, mask=mask
        )

    def extra_repr(self) -> str:
        """The arguments."""
        return (
            f"{self.num_features}, eps={self.eps}, affine={self.affine}, "
            f"threshold={self.threshold is not None}, learn_eps={self.learned_eps is not None}"
        )
