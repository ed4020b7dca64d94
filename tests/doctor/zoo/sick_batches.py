"""Models whose statistics count what they should not, drift, or are one of many: NK4, NK6, and copies left behind."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import architectures
import torch
import torch.nn.functional as F
from architectures import CLASSES, Plus, named
from patients import Case, Patient, batches_of, train, trained
from torch import Tensor, nn

STEPS, FEATURES = 12, 5  # of sequences


def padded(x: Tensor) -> Tensor:
    """Sequences (N, L, C) that end after 3 to 11 positions."""
    x = x.clone()
    for i, sequence in enumerate(x):
        sequence[3 + i % 9 :] = 0.0
    return x


def to_the_largest(x: Tensor) -> Tensor:
    """Images at the near sides, each as large as it is."""
    x = x.clone()
    for i, image in enumerate(x):
        image[:, 12 - 2 * (i % 4) :] = 0.0
        image[:, :, 12 - 2 * (i % 3) :] = 0.0
    return x


def letterboxed(x: Tensor) -> Tensor:
    x = x.clone()
    for i, image in enumerate(x):
        edge = i % 4
        image[:, : edge + 1 if edge else 0] = 0.0
        image[:, 11 - edge if edge else 12 :] = 0.0
    return x


class Sequence(nn.Module):
    """(N, L, C) through a layer and a norm, which gets what `lay` makes of it."""

    def __init__(self, norm: nn.Module, lay: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.project, self.norm, self.lay, self.head = (
            nn.Linear(FEATURES, 8),
            norm,
            lay,
            nn.Linear(8, CLASSES),
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.lay(self.project(x)))
        y = y.transpose(1, 2) if y.shape[1:] == (8, STEPS) else y.reshape(-1, STEPS, 8)
        return self.head(y.relu().mean(1))


def learned(model: nn.Module, network: str, change: Callable[[Tensor], Tensor], steps: int = 20) -> Patient:
    """Trained on such data, and shown others of the kind."""
    made = [(change(x), y) for x, y in batches_of(network, steps, seed=0)]
    shown = [(change(x), y) for x, y in batches_of(network)]
    return Patient(train(model, made, F.cross_entropy), shown, F.cross_entropy)


def over(norm: Callable[[], nn.Module], lay: Callable[[Tensor], Tensor]) -> Callable[[], Patient]:
    def make() -> Patient:
        torch.manual_seed(0)
        return learned(Sequence(norm(), lay), "Sequences", padded)

    return make


def images(change: Callable[[Tensor], Tensor], norm: Any = nn.BatchNorm2d) -> Callable[[], Patient]:
    def make() -> Patient:
        torch.manual_seed(0)
        return learned(architectures.resnet(norm), "resnet", change)

    return make


def drifting() -> Patient:
    """A sensor that warms up."""
    patient = trained("mlp")
    patient.batches = [(x + 0.4 * i, y) for i, (x, y) in enumerate(patient.batches or [])]
    return patient


def deep() -> nn.Module:
    """Twenty norms, each beside a shortcut: blocks.0.body.1 to blocks.19.body.1."""
    torch.manual_seed(0)
    blocks = [Plus(nn.Linear(6, 6, bias=False), nn.BatchNorm1d(6), nn.ReLU()) for _ in range(20)]
    return named(blocks=nn.Sequential(*blocks), head=nn.Linear(6, CLASSES))


def one_of_twenty() -> Patient:
    patient = learned(deep(), "mlp", lambda x: x, 40)
    norm: Any = patient.model.get_submodule("blocks.13.body.1")
    norm.running_mean -= 20 * norm.running_var.sqrt()
    return patient


def left_behind() -> Patient:
    """A moving average of the weights alone, and the model that it follows."""
    patient = trained("mlp", data=False)
    source = copy.deepcopy(patient.model)
    average = copy.deepcopy(patient.model)
    for layer in average.modules():
        if isinstance(layer, nn.BatchNorm1d):
            layer.reset_running_stats()
    source[4].running_mean += 4 * source[4].running_var.sqrt()
    return Patient(average, reference=source)


def saturated_norms() -> Patient:
    """Layer norms in front of sigmoids, whose slope is a quarter at most, without shortcuts."""
    torch.manual_seed(0)
    layers = [part for _ in range(16) for part in (nn.LayerNorm(32), nn.Sigmoid(), nn.Linear(32, 32))]
    for layer in layers[::3]:
        nn.init.constant_(layer.weight, 0.5)  # pyright: ignore[reportArgumentType]
    model = nn.Sequential(nn.Linear(6, 32), *layers, nn.Linear(32, CLASSES))
    for layer in model:
        if isinstance(layer, nn.LayerNorm):
            layer.eps = 1.0
    return Patient(model, batches_of("mlp"), F.cross_entropy)


def _ill(name: str, make: Callable[[], Patient], *ills: tuple[str, str]) -> Case:
    return Case(name, make, frozenset(ills))


PADDED = ("NK403", "norm")
BATCHES = [
    _ill("padding, flattened", over(lambda: nn.BatchNorm1d(8), lambda x: x.reshape(-1, 8)), PADDED),
    _ill("padding in group norm", over(lambda: nn.GroupNorm(2, 8), lambda x: x.transpose(1, 2)), PADDED),
    _ill("padding in instance norm", over(lambda: nn.InstanceNorm1d(8), lambda x: x.transpose(1, 2)), PADDED),
    _ill("padding in layer norm", over(lambda: nn.LayerNorm([STEPS, 8]), lambda x: x), PADDED),
    _ill("positions as channels", over(lambda: nn.BatchNorm1d(STEPS), lambda x: x), PADDED),
    _ill("images padded to the largest", images(to_the_largest), ("NK403", "stem.1")),
    _ill("letterboxed images", images(letterboxed), ("NK403", "stem.1")),
    _ill("padded images in group norm", images(to_the_largest, lambda c: nn.GroupNorm(4, c)), ("NK403", "stem.1")),
    _ill("data that drift", drifting, ("NK402", "1")),
    _ill("one norm of twenty", one_of_twenty, ("NK202", "blocks.13.body.1"), ("NK601", "blocks.13.body.1")),
    _ill("an average without buffers", left_behind, ("NK205", "4")),
    _ill("gradients that vanish at norms", saturated_norms, ("NK604", "1")),
]  # fmt: skip
