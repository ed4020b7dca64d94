"""What the doctor is shown: a model, its batches, loss, optimizer and reference; and how models are trained for it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import architectures
import torch
import torch.nn.functional as F
from torch import Tensor, nn

STEPS, BATCH = 60, 64


@dataclass
class Patient:
    model: nn.Module
    batches: list[Any] | None = None
    loss: Callable[[Tensor, Tensor], Tensor] | None = None
    optimizer: torch.optim.Optimizer | None = None
    forward: Callable[[Any], Any] | None = None
    reference: nn.Module | None = None


@dataclass(frozen=True)
class Case:
    """A patient by name; `ills` are the codes that are to be found, each with its layer."""

    name: str
    make: Callable[[], Patient]
    ills: frozenset[tuple[str, str]] = field(default=frozenset())


def _labels(n: int, generator: torch.Generator) -> Tensor:
    return torch.randint(architectures.CLASSES, (n,), generator=generator)


def images(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """(N, 3, 12, 12): a pattern for each class under noise."""
    patterns = torch.randn(architectures.CLASSES, 3, 12, 12, generator=torch.Generator().manual_seed(5))
    y = _labels(n, generator)
    return patterns[y] + torch.randn(n, 3, 12, 12, generator=generator), y


def denoising(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    clean = F.interpolate(torch.randn(n, 3, 3, 3, generator=generator), scale_factor=4)
    return clean + 0.5 * torch.randn(n, 3, 12, 12, generator=generator), clean


def table(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    x = torch.randn(n, 6, generator=generator)
    return x, (x[:, 0] * x[:, 1] > 0).long() + 2 * (x[:, 2] > 0).long()


def sequences(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """(N, L, 5): the class shifts one feature."""
    y = _labels(n, generator)
    x = torch.randn(n, 12, 5, generator=generator)
    x[torch.arange(n), :, y] += 1
    return x, y


def noise(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    z = torch.randn(n, 8, generator=generator)
    return z, 0.5 * torch.tanh(z[:, :3, None, None]).expand(n, 3, 12, 12)


DATA: dict[str, Callable[[int, torch.Generator], tuple[Tensor, Tensor]]] = {
    "resnet": images, "mobilenet": images, "densenet": images, "ViT": images, "UNet": denoising,
    "RNN": sequences, "Sequences": sequences, "mlp": table, "generator": noise,
}  # fmt: skip


def loss_of(network: str) -> Callable[[Tensor, Tensor], Tensor]:
    return F.mse_loss if network in ("UNet", "generator") else F.cross_entropy


def batches_of(network: str, count: int = 6, size: int = BATCH, seed: int = 1) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [DATA[network](size, generator) for _ in range(count)]


@cache
def _trained(network: str, norm: Any) -> nn.Module:
    torch.manual_seed(0)
    build = getattr(architectures, network)
    model = build(norm) if norm else build()
    batches = batches_of(network, STEPS, seed=0)
    for part, lr in ((batches[: STEPS // 2], 3e-3), (batches[STEPS // 2 :], 3e-4)):
        train(model, part, loss_of(network), torch.optim.Adam(model.parameters(), lr=lr))
    return model


def train(
    model: nn.Module,
    batches: list[tuple[Tensor, Tensor]],
    loss: Callable[[Tensor, Tensor], Tensor],
    optimizer: torch.optim.Optimizer | None = None,
) -> nn.Module:
    """One step for each batch."""
    optimizer = optimizer or torch.optim.Adam(model.parameters(), lr=3e-3)
    for x, y in batches:
        optimizer.zero_grad()
        loss(model(x), y).backward()
        optimizer.step()
    return model


def trained(network: str, norm: Any = None, *, data: bool = True) -> Patient:
    """A network that has learned, as it is after training; with data of the same kind and the loss."""
    model = copy.deepcopy(_trained(network, norm))
    for parameter in model.parameters():
        parameter.grad = None
    return Patient(model, batches_of(network), loss_of(network)) if data else Patient(model)
