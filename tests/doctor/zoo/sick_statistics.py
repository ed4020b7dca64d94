"""Models with wrong statistics or wrongly kept ones: NK2 to NK4, most of them trained first."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import architectures
import torch
from patients import Case, Patient, batches_of, loss_of, train, trained
from torch import Tensor, nn


def _damaged(
    network: str, damage: Callable[[nn.Module], object], *, data: bool = True
) -> Callable[[], Patient]:
    """A trained network that something was done to."""

    def make() -> Patient:
        patient = trained(network, data=data)
        damage(patient.model)
        return patient

    return make


def _ill(name: str, make: Callable[[], Patient], *ills: tuple[str, str]) -> Case:
    return Case(name, make, frozenset(ills))


def reset(*layers: str) -> Callable[[nn.Module], object]:
    """As if buffers had not been loaded."""

    def damage(model: nn.Module) -> None:
        for layer in layers:
            model.get_submodule(layer).reset_running_stats()

    return damage


def moved(layer: str, mean: float = 0.0, var: float = 1.0) -> Callable[[nn.Module], object]:
    """Statistics so many deviations away, and so many times as wide."""

    def damage(model: nn.Module) -> None:
        norm: Any = model.get_submodule(layer)
        norm.running_mean += mean * norm.running_var.sqrt()
        norm.running_var *= var

    return damage


def buffer(
    layer: str, name: str, value: float, channels: slice = slice(0, 1)
) -> Callable[[nn.Module], object]:
    def damage(model: nn.Module) -> None:
        getattr(model.get_submodule(layer), name)[channels] = value

    return damage


def set_to(layer: str, **attributes: object) -> Callable[[nn.Module], object]:
    def damage(model: nn.Module) -> None:
        for name, value in attributes.items():
            setattr(model.get_submodule(layer), name, value)

    return damage


def without_buffers() -> Patient:
    """A checkpoint of parameters alone, loaded into a model that evaluates."""
    patient = trained("densenet")
    fresh = architectures.densenet()
    fresh.load_state_dict(dict(patient.model.named_parameters()), strict=False)
    patient.model = fresh.eval()
    return patient


def averaged() -> Patient:
    """A soup of two runs, without recalibration: the variances of averaged weights are smaller than either's."""
    patient = trained("mobilenet")
    torch.manual_seed(1)
    other = train(architectures.mobilenet(), batches_of("mobilenet", 60, seed=0), loss_of("mobilenet"))
    average = torch.optim.swa_utils.AveragedModel(other)
    average.update_parameters(other)
    average.update_parameters(patient.model)
    patient.model = average
    return patient


def another_domain() -> Patient:
    """Data three times as bright as in training."""
    patient = trained("resnet")
    patient.batches = [(3 * x + 2, y) for x, y in patient.batches or []]
    return patient


def trained_by(momentum: float) -> Callable[[], Patient]:
    def make() -> Patient:
        torch.manual_seed(0)
        model = architectures.mlp(lambda c: nn.BatchNorm1d(c, momentum=momentum))
        train(model, batches_of("mlp", 20, seed=0), loss_of("mlp"))
        return Patient(model, batches_of("mlp"), loss_of("mlp"))

    return make


def small_batches() -> Patient:
    patient = trained("RNN")
    patient.batches = batches_of("RNN", count=8, size=4)
    return patient


def similar_positions() -> Patient:
    """Sequences whose positions repeat each other: 96 values that are worth 8."""
    patient = trained("Sequences")
    patient.batches = [(x[:, :1].repeat(1, 12, 1), y) for x, y in batches_of("Sequences", count=8, size=8)]
    return patient


def frozen_backbone(layers: str) -> Callable[[nn.Module], object]:
    def damage(model: nn.Module) -> None:
        model.get_submodule(layers).requires_grad_(False)

    return damage


def target_network() -> Patient:
    """A moving average of parameters, whose buffers nobody moved."""
    torch.manual_seed(0)
    online = architectures.mlp()
    target = copy.deepcopy(online).requires_grad_(False)
    data = [(2 * x + 3, y) for x, y in batches_of("mlp", 30, seed=0)]
    for batch in data:
        train(online, [batch], loss_of("mlp"), torch.optim.SGD(online.parameters(), lr=0.01))
        with torch.no_grad():
            for mine, theirs in zip(target.parameters(), online.parameters(), strict=True):
                mine.lerp_(theirs, 0.2)

    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.online, self.target = online, target

        def forward(self, x: Tensor) -> Tensor:
            return self.online(x)

    return Patient(Pair(), data[:6])


def sorted_by_class() -> Patient:
    patient = trained("Sequences")
    x, y = (torch.cat(part) for part in zip(*patient.batches or [], strict=True))
    order = y.argsort()
    patient.batches = list(zip(x[order].split(48), y[order].split(48), strict=True))
    return patient


def two_domains() -> Patient:
    patient = trained("resnet")
    patient.batches = [(x if i % 2 else 2 * x + 3, y) for i, (x, y) in enumerate(patient.batches or [])]
    return patient


UNLOADED = [("NK201", "norm"), *(("NK201", f"grow.{i}.body.0") for i in range(3))]
STATISTICS = [
    _ill("statistics not loaded", without_buffers, *UNLOADED),
    _ill("one layer reset", _damaged("resnet", reset("blocks.1.norm1")), ("NK201", "blocks.1.norm1")),
    _ill("one mean moved", _damaged("resnet", moved("blocks.0.norm2", mean=3)), ("NK202", "blocks.0.norm2"),
         ("NK601", "blocks.0.norm2")),
    _ill("one variance moved", _damaged("mobilenet", moved("inverted.body.4", var=30)), ("NK202", "inverted.body.4"),
         ("NK601", "inverted.body.4")),
    _ill("generator with stale statistics", _damaged("generator", moved("2", mean=2, var=4)), ("NK202", "2")),
    _ill("weights averaged", averaged, ("NK202", "module.inverted.body.1")),
    _ill("data of another domain", another_domain, ("NK202", "stem.1")),
    _ill("a NaN in a mean", _damaged("UNet", buffer("deep.2", "running_mean", float("nan")), data=False),
         ("NK203", "deep.2")),
    _ill("an infinite variance", _damaged("mlp", buffer("4", "running_var", float("inf"))), ("NK203", "4")),
    _ill("a negative variance", _damaged("mlp", buffer("1", "running_var", -0.1), data=False), ("NK203", "1")),
    _ill("variances of zero", _damaged("RNN", buffer("norm", "running_var", 0.0), data=False), ("NK203", "norm")),
    _ill("momentum of Keras", trained_by(0.99), ("NK301", "1"), ("NK301", "4")),
    _ill("momentum of 0", trained_by(0.0), ("NK302", "1"), ("NK302", "4")),
    _ill("batches of four", small_batches, ("NK401", "norm")),
    _ill("positions that repeat", similar_positions, ("NK401", "body.1")),
    _ill("half frozen", _damaged("resnet", set_to("stem.1", track_running_stats=False)), ("NK303", "stem.1")),
    _ill("frozen but moving", _damaged("mobilenet", frozen_backbone("stem"), data=False), ("NK304", "stem.1")),
    _ill("thawed by train()", _damaged("UNet", lambda model: model.down.eval()), ("NK305", "down.1")),
    _ill("float16 buffers", _damaged("mlp", lambda model: model.half(), data=False), ("NK204", "1"), ("NK204", "4")),
    _ill("bfloat16 layer", _damaged("resnet", lambda model: model.stem[1].bfloat16(), data=False), ("NK204", "stem.1")),
    _ill("target network", target_network, ("NK205", "target")),
    _ill("sorted by class", sorted_by_class, ("NK402", "body.1")),
    _ill("two domains in turns", two_domains, ("NK402", "stem.1"), ("NK601", "stem.1")),
]  # fmt: skip
