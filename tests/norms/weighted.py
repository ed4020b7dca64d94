"""Modules with weights to normalize, and the ways to normalize them, ours and torch's."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import normkit as nk

UNIT = {torch.float64: 2.0**-53, torch.float32: 2.0**-24, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
U32 = UNIT[torch.float32]

# Module, the name of its weight, the axis that counts outputs, an input.
MODULES = {
    "linear": (lambda: nn.Linear(6, 4), "weight", 0, (3, 6)),
    "conv1d": (lambda: nn.Conv1d(4, 6, 3), "weight", 0, (2, 4, 9)),
    "conv2d": (lambda: nn.Conv2d(4, 6, 3), "weight", 0, (2, 4, 7, 7)),
    "conv2d-groups": (lambda: nn.Conv2d(4, 6, 3, groups=2), "weight", 0, (2, 4, 7, 7)),
    "conv3d": (lambda: nn.Conv3d(2, 3, 2), "weight", 0, (2, 2, 4, 4, 4)),
    "transposed1d": (lambda: nn.ConvTranspose1d(4, 6, 3), "weight", 1, (2, 4, 9)),
    "transposed2d": (lambda: nn.ConvTranspose2d(4, 6, 3), "weight", 1, (2, 4, 5, 5)),
    "transposed3d": (lambda: nn.ConvTranspose3d(2, 3, 2), "weight", 1, (2, 2, 3, 3, 3)),
    "lstm": (lambda: nn.LSTM(4, 5), "weight_hh_l0", 0, (3, 2, 4)),
    "gru": (lambda: nn.GRU(4, 5), "weight_ih_l0", 0, (3, 2, 4)),
}
every_module = pytest.mark.parametrize("kind", list(MODULES))

Put = Callable[[nn.Module, str, int], nn.Module]
OURS: dict[str, Put] = {
    "weight_norm": lambda m, name, dim: nk.weight_norm(m, name, dim),
    "weight_standardization": lambda m, name, dim: nk.weight_standardization(m, name),
    "spectral_norm": lambda m, name, dim: nk.spectral_norm(m, name),
}
TORCH: dict[str, Put] = {
    "weight_norm": lambda m, name, dim: parametrizations.weight_norm(m, name, dim),
    "spectral_norm": lambda m, name, dim: parametrizations.spectral_norm(m, name),
}
every_norm = pytest.mark.parametrize("norm", list(OURS))
every_twin = pytest.mark.parametrize("norm", list(TORCH))


def made(kind: str, put: Put | None = None, *, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    make, name, dim, _ = MODULES[kind]
    module = make()
    return module if put is None else put(module, name, dim)


def output(module: nn.Module, kind: str, *, seed: int = 7) -> Tensor:
    x = torch.randn(MODULES[kind][3], generator=torch.Generator().manual_seed(seed))
    y = module(x)
    return y[0] if isinstance(y, tuple) else y


def state_of(module: nn.Module) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in module.state_dict().items()}
