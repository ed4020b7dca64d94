"""Norms of weights put on a module, as torch.nn.utils.parametrizations does it, under its keys."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from normkit.norms import inputs
from normkit.norms.weights.axes import axis
from normkit.norms.weights.spectral_norm import SpectralNorm
from normkit.norms.weights.weight_norm import WeightNorm
from normkit.norms.weights.weight_standardization import WeightStandardization


def weight_norm(module: nn.Module, name: str = "weight", dim: int | None = 0) -> nn.Module:
    r"""Learn the length of each filter of a weight apart from its direction.

    .. math:: w_o = g_o \frac{v_o}{\lVert v_o \rVert}

    The module has `parametrizations.weight.original0` (g) and `.original1` (v) instead of its weight, under torch's
    keys; `torch.nn.utils.parametrize.remove_parametrizations(module, name)` makes it a parameter again. The
    weight itself stays what it was; `initialize_from_data` sets g and the bias as the paper does.

    Args:
        module: linear, convolution, recurrent, or any other that has the tensor; changed in place.
        name: of the parameter, such as `weight`, or `weight_hh_l0` of a recurrent layer.
        dim: the axis of the weight that counts filters: 0, or 1 for transposed convolutions; None for one length
            of the whole weight.

    Returns:
        The module.

    Raises:
        ValueError: no floating tensor of this name, or one that is parametrized already.
        IndexError: no such axis.

    Salimans and Kingma, "Weight Normalization: A Simple Reparameterization to Accelerate Training of Deep Neural
    Networks", 2016.

    >>> layer = weight_norm(nn.Linear(20, 40))
    >>> layer.parametrizations.weight.original0.shape
    torch.Size([40, 1])
    """
    if parametrize.is_parametrized(module, name):
        raise ValueError(
            f"weight norm keeps two tensors for one, so it is the first parametrization of a weight: {name!r} of "
            f"{type(module).__name__} has one already, remove that or put it on afterwards"
        )
    weight = _weight_of(module, name)
    if dim is not None:
        axis(weight, dim)
    parametrize.register_parametrization(module, name, WeightNorm(dim), unsafe=True)  # no g changes its shape

    # A partial, not a closure: once the parametrization is removed the module is pickled as before.
    module.register_load_state_dict_pre_hook(partial(_rename, name))
    return module


def weight_standardization(
    module: nn.Module, name: str = "weight", eps: float = 1e-10, dim: int | None = None
) -> nn.Module:
    r"""Give each filter of a weight mean 0 and variance 1 whenever it is used.

    .. math:: \hat{w}_o = \frac{w_o - \mu_o}{\sqrt{\sigma_o^2 + \epsilon}}

    For convolutions before group norm or batch norm in small batches. The weight that is learned is
    `parametrizations.weight.original`; `torch.nn.utils.parametrize.remove_parametrizations(module, name)` makes the
    standardized one the parameter.

    Args:
        module: linear, convolution, or any other that has the tensor; changed in place.
        name: of the parameter.
        eps: added to the variance, which is biased: 1e-10 as in Big Transfer (Kolesnikov et al. 2020), for the
            variance of a weight of many inputs is small.
        dim: the axis of the weight that counts outputs; 0 by default, 1 for transposed convolutions, whose groups
            are told apart.

    Returns:
        The module.

    Raises:
        ValueError: no floating tensor of this name, one value per filter, or a negative eps.
        IndexError: no such axis.

    Qiao, Wang, Liu, Shen and Yuille, "Micro-Batch Training with Batch-Channel Normalization and Weight
    Standardization", 2019.

    >>> layer = weight_standardization(nn.Conv2d(3, 8, 3))
    >>> torch.var(layer.weight, (1, 2, 3), correction=0).allclose(torch.ones(8))
    True
    """
    weight = _weight_of(module, name)
    dim = axis(weight, _output_dim(module) if dim is None else dim)
    groups = getattr(module, "groups", 1) if _output_dim(module) == 1 and name == "weight" else 1
    parametrization = WeightStandardization(eps, dim, groups)
    with torch.no_grad():
        parametrization(weight)  # raises what is to be raised before the module is changed
    parametrize.register_parametrization(module, name, parametrization)
    return module


def spectral_norm(
    module: nn.Module,
    name: str = "weight",
    n_power_iterations: int = 1,
    eps: float = 1e-12,
    dim: int | None = None,
) -> nn.Module:
    r"""Divide a weight by its largest singular value whenever it is used.

    .. math:: \hat{w} = \frac{w}{\sigma(w)}

    A drop-in for `torch.nn.utils.parametrizations.spectral_norm`, under its keys: `original` is the weight as it is
    learned, `0._u` and `0._v` are its singular vectors, which each use in training brings nearer.

    Args:
        module: linear, convolution, recurrent, or any other that has the tensor; changed in place.
        name: of the parameter.
        n_power_iterations: steps of the power method at each use in training.
        eps: the least length of a vector that is normalized.
        dim: the axis of the weight that counts outputs; 0 by default, 1 for transposed convolutions.

    Returns:
        The module.

    Raises:
        ValueError: no floating tensor of this name, or fewer than one iteration.
        IndexError: no such axis.

    Miyato, Kataoka, Koyama and Yoshida, "Spectral Normalization for Generative Adversarial Networks", 2018.

    >>> layer = spectral_norm(nn.Linear(20, 40), n_power_iterations=50)
    >>> torch.linalg.matrix_norm(layer.weight, 2).allclose(torch.tensor(1.0), atol=1e-3)
    True
    """
    inputs.check_arguments(eps, n_power_iterations=n_power_iterations)
    weight = _weight_of(module, name)
    dim = _output_dim(module) if dim is None else dim
    parametrize.register_parametrization(module, name, SpectralNorm(weight, n_power_iterations, dim, eps))
    return module


def _rename(name: str, module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Take checkpoints of torch's older `torch.nn.utils.weight_norm` too."""
    old = [f"{prefix}{name}_g", f"{prefix}{name}_v"]
    if parametrize.is_parametrized(module, name) and all(key in state for key in old):
        for i, key in enumerate(old):
            state[f"{prefix}parametrizations.{name}.original{i}"] = state.pop(key)


def _weight_of(module: nn.Module, name: str) -> Tensor:
    """The floating parameter or buffer of this name, or why there is none."""
    weight = getattr(module, name, None)
    kind = type(module).__name__
    if not isinstance(weight, Tensor):
        raise ValueError(f"{kind} has no parameter or buffer with name {name!r}: pass name=")
    if is_lazy(weight):
        raise ValueError(f"{name!r} of {kind} has no shape yet: run a batch through the module first")
    if not weight.is_floating_point():
        raise ValueError(f"a normalized weight is floating-point, {name!r} of {kind} is {weight.dtype}")
    return weight


def _output_dim(module: nn.Module) -> int:
    """Transposed convolutions have their outputs in the second axis of the weight."""
    return 1 if isinstance(module, (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)) else 0
