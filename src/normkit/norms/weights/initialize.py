"""The first values of weight norm's lengths and biases, from data."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from normkit.norms.weights.weight_norm import WeightNorm
from normkit.statistics import Moments

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@contextlib.contextmanager
def initialize_from_data(model: nn.Module) -> Generator[None]:
    r"""Set the lengths and biases of weight norm so that the first batch has mean 0 and variance 1.

    .. math:: g \leftarrow \frac{g}{\sigma[t]}, \quad b \leftarrow -\frac{\mu[t]}{\sigma[t]}, \quad t = w x

    Run one batch through the model inside; each linear or convolution layer whose weight has weight norm puts out,
    channel by channel, mean 0 and variance 1, and so the next one sees it. When the context ends without an error
    the parameters have their new values; with one, they keep the old. A layer without a bias keeps its mean.
    A layer that runs more than once goes by the first time. It is what Salimans and Kingma do, in section 3, once
    before training.

    Args:
        model: has layers with weight norm, from `normkit.weight_norm` with one length per output.

    Raises:
        ValueError: no such layer, or weight norm on what is neither a linear nor a convolution layer, or with
            one length for several outputs; an output without variance in this batch.
        RuntimeError: a layer that the batch did not reach.

    Salimans and Kingma, "Weight Normalization: A Simple Reparameterization to Accelerate Training of Deep Neural
    Networks", 2016.

    >>> from normkit import weight_norm
    >>> layer = weight_norm(nn.Linear(4, 3))
    >>> x = torch.randn(100, 4) + 5
    >>> with initialize_from_data(layer):
    ...     _ = layer(x)
    >>> layer(x).std(0, correction=0).allclose(torch.ones(3))
    True
    """
    layers = _layers(model)
    found: dict[str, tuple[Tensor, Tensor]] = {}

    def hook(name: str) -> Callable[..., Tensor]:
        def normalize(layer: Any, _: tuple[Tensor, ...], output: Tensor) -> Tensor:
            axis = output.dim() - 1 if isinstance(layer, nn.Linear) else output.dim() - layer.weight.dim() + 1
            shape = [-1 if d == axis else 1 for d in range(output.dim())]
            bias = None if layer.bias is None else layer.bias.detach()
            if name not in found:
                found[name] = _first(name, output, axis, bias)
            scale, shift = (t.to(output.dtype).view(shape) for t in found[name])
            return (output if bias is None else output - bias.view(shape)) * scale + shift

        return normalize

    handles = [layer.register_forward_hook(hook(name)) for name, layer in layers.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
    missed = [name for name in layers if name not in found]
    if missed:
        raise RuntimeError(f"the batch did not reach {_listed(missed)}: run one through the model inside")
    for name, layer in layers.items():
        _settle(layer, *found[name])


def _layers(model: nn.Module) -> dict[str, Any]:
    """The linear and convolution layers with weight norm, by name."""
    layers: dict[str, Any] = {}
    for name, module in model.named_modules():
        chains: Any = module.parametrizations if parametrize.is_parametrized(module) else {}
        for tensor, chain in chains.items():
            if isinstance(chain[0], WeightNorm):
                _check(name, module, tensor, chain[0].dim, len(chain))
                layers[name] = module
    if not layers:
        raise ValueError("no layer has weight norm: call normkit.weight_norm on those that shall")
    return layers


def _check(name: str, module: Any, tensor: str, dim: int, length: int) -> None:
    place = f"{name or 'the model'} ({type(module).__name__}.{tensor})"
    if not isinstance(module, (nn.Linear, *_CONVOLUTIONS, *_TRANSPOSED)) or tensor != "weight" or length > 1:
        raise ValueError(
            f"data initializes weights of linear and convolution layers with nothing but weight norm, not {place}: "
            "pass the part of the model without it"
        )
    outputs = 1 if isinstance(module, _TRANSPOSED) else 0
    if dim == -1 or dim % module.weight.dim() != outputs or (outputs == 1 and module.groups != 1):
        raise ValueError(
            f"data initializes one length for each output, {place} has dim={dim}: use weight_norm(dim={outputs})"
        )


def _first(name: str, output: Tensor, axis: int, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """Scale and shift that give the output without its bias mean 0 and variance 1."""
    batch = output.unsqueeze(0)  # a vector has no other axis than that of its features
    moments = Moments.of(batch, [d for d in range(batch.dim()) if d != axis + 1])
    var = moments.var(unbiased=False)
    if not bool((var > 0).all()) or not bool(var.isfinite().all()):
        raise ValueError(
            f"{name or 'the model'} has outputs whose variance is 0 or not finite in this batch: "
            "use a larger batch"
        )
    scale = var.rsqrt()
    if bias is None:
        return scale, torch.zeros_like(scale)
    return scale, -(moments.mean - bias.double()) * scale


@torch.no_grad()
def _settle(layer: Any, scale: Tensor, shift: Tensor) -> None:
    g = layer.parametrizations.weight.original0
    g.copy_(g * scale.view(g.shape))
    if layer.bias is not None:
        layer.bias.copy_(shift)


def _listed(names: list[str]) -> str:
    return ", ".join(name or "the model" for name in names)
