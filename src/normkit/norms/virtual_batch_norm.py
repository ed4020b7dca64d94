"""Virtual batch norm: each sample by a reference batch that is chosen once, and by itself."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from normkit import processes
from normkit.norms import inputs, mixing
from normkit.norms.batch_moments import by_batch
from normkit.norms.mixing import Affine
from normkit.norms.naming import for_all_dimensions
from normkit.norms.sharing import Sharing
from normkit.norms.tracing import one_node


def virtual_batch_norm(
    input: Tensor,
    reference_mean: Tensor,
    reference_var: Tensor,
    reference_size: int | Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    activation: str | None = None,
    residual: Tensor | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    r"""Normalize each sample by the statistics of a reference batch and of itself, taken together.

    .. math::
        y = f\left(\gamma \frac{x - m}{\sqrt{v + \epsilon}} + \beta + r\right), \quad
        m = (1 - s) \mu_R + s \mu_x, \quad v = (1 - s) \sigma_R^2 + s \sigma_x^2 + s (1 - s) (\mu_x - \mu_R)^2

    The sample's own moments, over space, count as those of one more sample of the reference batch,
    :math:`s = 1 / (n_R + 1)`, so that no sample's output depends on another. The reference is a constant.

    Args:
        input: (N, C) or (N, C, *), floating; any strides.
        reference_mean: :math:`\mu_R`, (C).
        reference_var: :math:`\sigma_R^2`, (C), biased.
        reference_size: :math:`n_R`, how many samples the reference batch has.
        weight: :math:`\gamma`, (C), of the input's dtype, or float32 under half input.
        bias: :math:`\beta`, (C).
        eps: added to the variance.
        activation: :math:`f`: relu, leaky_relu, silu, gelu, elu, sigmoid, tanh, relu6 or hardswish; None: identity.
        residual: :math:`r`, of the input's shape, added before the activation.
        mask: bool, broadcastable to the input without channels, true where it is valid. Padded positions
            enter no statistic, come out as 0, and pass no gradient.

    Returns:
        Tensor of the input's shape, dtype and memory format.

    Raises:
        ValueError: eps not positive; an unknown activation; a residual or a mask of another shape.
        RuntimeError: statistics or parameters of another length, dtype or device.

    Salimans et al., "Improved Techniques for Training GANs", 2016.

    >>> virtual_batch_norm(torch.tensor([[3.0]]), torch.zeros(1), torch.ones(1), 2)
    tensor([[1.2247]])
    """
    affine = Affine(weight, bias, eps, activation, residual, mask)
    mixing.check("virtual batch norm", input, reference_mean, reference_var, affine, training=False)
    affine = affine._replace(mask=inputs.expand_mask(mask, input))
    size = reference_size if isinstance(reference_size, Tensor) else torch.tensor(reference_size)
    tensors = {"reference_mean": reference_mean, "reference_var": reference_var, "size": size}
    return mixing.mix(input, _rule, tensors, affine)[0]


def _rule(
    mean: Tensor,
    var: Tensor,
    count: int | Tensor,
    reference_mean: Tensor,
    reference_var: Tensor,
    size: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """The moments of the reference batch with one sample more."""
    share = 1 / (size.to(mean.dtype) + 1)
    reference_mean, reference_var = reference_mean.to(mean.dtype), reference_var.to(mean.dtype)
    apart = mean - reference_mean
    merged = (1 - share) * reference_var + share * var + share * (1 - share) * apart.square()
    return reference_mean + share * apart, merged, weight, bias


@contextmanager
def reference_batch(model: torch.nn.Module) -> Generator[torch.nn.Module]:
    """While it is open, each virtual batch norm of the model takes what it is given as its reference batch.

    The reference batch runs through the model once, each layer normalizing it by its own statistics alone. Where
    the weights before a layer have changed, its reference has too: the paper runs the batch at every step. An
    error inside gives all layers the references back that they had.

    Raises:
        ValueError: a model without a virtual batch norm.

    >>> model = torch.nn.Sequential(torch.nn.Linear(3, 4), VirtualBatchNorm1d(4))
    >>> with reference_batch(model):
    ...     _ = model(torch.randn(8, 3))
    >>> model(torch.randn(2, 3)).shape
    torch.Size([2, 4])
    """
    layers = [module for module in model.modules() if isinstance(module, _VirtualBatchNorm)]
    if not layers:
        raise ValueError(
            f"reference_batch needs a model with virtual batch norm, got {type(model).__name__} without: "
            "build it with nk.VirtualBatchNorm1d/2d/3d"
        )
    before = [layer.saved_reference() for layer in layers]
    for layer in layers:
        layer.taking_reference = True
    try:
        yield model
    except BaseException:
        for layer, reference in zip(layers, before, strict=True):
            layer.restore_reference(*reference)
        raise
    finally:
        for layer in layers:
            layer.taking_reference = False


@for_all_dimensions
class _VirtualBatchNorm(Sharing):
    """What virtual batch norm of every dimension shares."""

    _check_input_dim: Callable[[Tensor], None]
    weight: torch.nn.Parameter | None
    bias: torch.nn.Parameter | None
    taking_reference: bool = False
    has_reference: bool = False  # known without a look at the buffer, for a graph that branches on no data
    reference_mean: Tensor
    reference_var: Tensor
    reference_size: Tensor

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        affine: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        bias: bool = True,
        activation: str | None = None,
        process_group: processes.Group = None,
    ) -> None:
        inputs.check_arguments(eps, num_features=num_features)
        inputs.check_activation(activation)
        super().__init__()
        self._share_with(process_group, num_features)
        self.num_features, self.eps, self.activation = num_features, eps, activation
        for name, learned in (("weight", affine), ("bias", affine and bias)):
            empty = torch.empty(num_features, device=device, dtype=dtype)
            self.register_parameter(name, torch.nn.Parameter(empty) if learned else None)
        self.register_buffer("reference_mean", torch.empty(num_features, device=device, dtype=dtype))
        self.register_buffer("reference_var", torch.empty(num_features, device=device, dtype=dtype))
        self.register_buffer("reference_size", torch.empty((), device=device, dtype=torch.long))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Weight one, bias zero, and no reference."""
        for value, tensors in ((1, (self.weight, self.reference_var)), (0, (self.bias, self.reference_mean))):
            for tensor in tensors:
                if tensor is not None:
                    torch.nn.init.constant_(tensor, value)
        self.reference_size.zero_()
        self.has_reference = False

    @one_node
    def forward(self, input: Tensor, *, residual: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """Normalize, add the residual, activate; see `normkit.functional.virtual_batch_norm`."""
        self._check_input_dim(input)
        if self.taking_reference:
            return self._take_reference(input, residual, mask)
        if not self.has_reference:
            raise RuntimeError(
                f"{type(self).__name__} normalizes by its reference batch, and none was set: call "
                "set_reference(x), or run the model on the batch inside `with nk.reference_batch(model):`"
            )
        return virtual_batch_norm(
            input,
            self.reference_mean,
            self.reference_var,
            self.reference_size,
            self.weight,
            self.bias,
            self.eps,
            activation=self.activation,
            residual=residual,
            mask=mask,
        )

    @torch.no_grad()
    def set_reference(self, input: Tensor, *, mask: Tensor | None = None) -> None:
        """Take the statistics of a batch, of the layer's input, as the reference.

        In a process group the reference batch is that of all its processes, which all call this; one may bring none.

        Args:
            input: (N, C) or (N, C, *), several values per channel.
            mask: bool, broadcastable to the input without channels, true where it is valid.
        """
        self._check_input_dim(input)
        self._take_reference(input, None, mask)

    def _take_reference(self, input: Tensor, residual: Tensor | None, mask: Tensor | None) -> Tensor:
        """Normalize the reference batch by its own statistics alone, and keep these."""
        reference = self.reference_mean, self.reference_var
        affine = Affine(self.weight, self.bias, self.eps, self.activation, residual, mask)
        group = self.process_group
        shared = processes.several(group)
        mixing.check("virtual batch norm", input, *reference, affine, training=True, shared=shared)
        affine = affine._replace(mask=inputs.expand_mask(mask, input))
        size, there = mixing.samples(input, affine.mask), input.shape[0]
        if shared:
            size = there = processes.total(group, self.identity, size, input.device)
        if there == 0:
            raise ValueError(f"a reference batch needs samples, got input size {list(input.shape)}")
        y, stats, _ = by_batch(input, affine, group, self.identity)
        self.restore_reference(stats[0].detach(), stats[1].detach(), size, True)
        return y

    def saved_reference(self) -> tuple[Tensor, Tensor, Tensor, bool]:
        """Copies of the reference's mean and biased variance (C) and of its size, and whether it was set."""
        buffers = (self.reference_mean, self.reference_var, self.reference_size)
        mean, var, size = (buffer.clone() for buffer in buffers)
        return mean, var, size, self.has_reference

    @torch.no_grad()
    def restore_reference(self, mean: Tensor, var: Tensor, size: int | Tensor, has_reference: bool) -> None:
        """Set the reference from its statistics, such as those of `saved_reference()`."""
        self.reference_mean.copy_(mean)
        self.reference_var.copy_(var)
        self.reference_size.copy_(size) if isinstance(size, Tensor) else self.reference_size.fill_(size)
        self.has_reference = has_reference

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        size = state_dict.get(f"{prefix}reference_size")
        if size is not None and not size.is_meta:
            self.has_reference = bool(size > 0)

    def extra_repr(self) -> str:
        """The arguments, activation and process group where there are any."""
        affine = f"affine={self.weight is not None}, bias={self.bias is not None}"
        activation = inputs.repr_activation(self.activation)
        return f"{self.num_features}, eps={self.eps}, {affine}{activation}{self._repr_group()}"


class VirtualBatchNorm1d(_VirtualBatchNorm):
    """Virtual batch norm over (N, C) or (N, C, L): each sample by a fixed reference batch and by itself.

    Equation and errors as in `normkit.functional.virtual_batch_norm`. The reference is set by `set_reference(x)`, or
    for all layers of a network by `with nk.reference_batch(model): model(batch)`; it is a constant to the gradient,
    and part of the state dict as `reference_mean`, `reference_var` (biased) and `reference_size`. Training and
    evaluation are the same.

    Args:
        num_features: C.
        eps: added to the variance.
        affine: learn a weight, and a bias where `bias` is true.
        device: of parameters and buffers.
        dtype: of parameters and buffers.
        bias: learn a bias.
        activation: applied at the end: relu, leaky_relu, silu, gelu, elu, sigmoid, tanh, relu6 or hardswish.
        process_group: processes whose reference batches are one, as in `BatchNorm1d`; whatever else is normalized
            stays with its process.

    Raises:
        RuntimeError: in the forward pass, as long as no reference was set.

    `forward(input, *, residual=None, mask=None)` as in `BatchNorm1d`.

    >>> layer = VirtualBatchNorm1d(16)
    >>> layer.set_reference(torch.randn(64, 16))
    >>> layer(torch.randn(1, 16)).shape
    torch.Size([1, 16])
    """

    _check_input_dim = torch.nn.BatchNorm1d._check_input_dim  # pyright: ignore


class VirtualBatchNorm2d(_VirtualBatchNorm):
    """Virtual batch norm over (N, C, H, W); arguments as in `VirtualBatchNorm1d`."""

    _check_input_dim = torch.nn.BatchNorm2d._check_input_dim  # pyright: ignore


class VirtualBatchNorm3d(_VirtualBatchNorm):
    """Virtual batch norm over (N, C, D, H, W); arguments as in `VirtualBatchNorm1d`."""

    _check_input_dim = torch.nn.BatchNorm3d._check_input_dim  # pyright: ignore
