"""A layer in one configuration: how it is made and called, and what the specification says of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import magnitudes
import numpy as np
import torch
from torch import Tensor, nn

import normkit as nk
from normkit import reference

# Unit roundoff of each dtype: half the distance from 1 to the next number.
UNIT = {torch.float64: 2.0**-53, torch.float32: 2.0**-24, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
DTYPES = tuple(UNIT)


@dataclass(frozen=True)
class Case:
    """One layer in one configuration.

    forward is a function of `reference`, (x, weight=, bias=, **other) -> (y, cache), other being what else the
    layer learns, by name. `reference.backward(dy, cache)` returns the gradients in that order, x first.
    """

    name: str
    ours: Callable[..., nn.Module]
    shape: tuple[int, ...]
    forward: Callable[..., tuple[np.ndarray, Any]]
    twin: Callable[..., nn.Module] | None = None
    activation: str | None = None
    base: type | None = None  # of torch, what it is an instance of, where that is not the twin's class
    options: dict[str, Any] = field(default_factory=dict)
    centered: bool = True  # a constant input comes out as the bias
    feature_axis: int = 1  # its size is fixed by the layer
    span: dict[str, tuple[float, float]] = field(default_factory=dict)  # of parameters, where not [0.5, 1.5]
    least_batch: int = 2  # that an exported program takes
    # (cache, dz, parameters) -> what error bounds refer to, for a cache that `magnitudes.of_norm` cannot read
    magnitudes: Callable[..., dict[str, np.ndarray]] | None = None

    def make(self, *, seed: int = 0, **kwargs: Any) -> nn.Module:
        """Our layer, its affine parameters away from one and zero."""
        return _shake(self.ours(**self.options, **self._activation(), **kwargs), seed, self.span)

    def make_twin(self, *, seed: int = 0, **kwargs: Any) -> nn.Module:
        """torch's layer with the same parameters; the activation is not part of it."""
        assert self.twin is not None, "for the cases of every_twin"
        return _shake(self.twin(**self.options, **kwargs), seed)

    def input(self, dtype: torch.dtype = torch.float32, *, seed: int = 1, offset: float = 0.0) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return (torch.randn(self.shape, generator=generator, dtype=torch.float64) + offset).to(dtype)

    def activate(self, y: Tensor) -> Tensor:
        """What our layer does after what its twin does."""
        return y if self.activation is None else nk.kernels.composed.ACTIVATIONS[self.activation](y)

    def expected(self, layer: nn.Module, x: Tensor, dy: Tensor) -> dict[str, np.ndarray]:
        """Output and gradients by the specification; under "|y|", "|dx|"... what error bounds refer to."""
        names = ["weight", "bias", *(n for n, _ in layer.named_parameters() if n not in ("weight", "bias"))]
        parameters = {name: _array(getattr(layer, name, None)) for name in names}
        z, cache = self.forward(_array(x), **parameters)
        activate, derivative = reference.ACTIVATIONS.get(self.activation, (lambda v: v, np.ones_like))
        dz = _array(dy) * derivative(z)
        dx, *rest = reference.backward(dz, cache)
        gradients = {f"d{name}": gradient for name, gradient in zip(names, rest, strict=True)}
        terms = (self.magnitudes or magnitudes.of_norm)(cache, dz, parameters)
        return {"y": activate(z), "dx": dx, **gradients, **terms}

    def _activation(self) -> dict[str, str]:
        return {} if self.activation is None else {"activation": self.activation}


def _shake(layer: nn.Module, seed: int, span: dict[str, tuple[float, float]] | None = None) -> nn.Module:
    """Distinct parameters, so that a forgotten or exchanged one shows."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in layer.named_parameters():
        if not parameter.is_meta:
            noise = torch.rand(parameter.shape, generator=generator, dtype=torch.float64)
            low, high = (span or {}).get(name, (0.5, 1.5))
            parameter.data.copy_(low + (high - low) * noise)
    return layer


def _array(x: Tensor | None) -> np.ndarray | None:
    return None if x is None else x.detach().double().numpy()
