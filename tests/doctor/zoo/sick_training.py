"""Models that are trained or used wrongly: NK4 to NK7."""

from __future__ import annotations

from collections.abc import Callable

import architectures
import torch
import torch.nn.functional as F
from patients import Case, Patient, batches_of, train, trained
from torch import nn


def _ill(name: str, make: Callable[[], Patient], *ills: tuple[str, str]) -> Case:
    return Case(name, make, frozenset(ills))


def decayed() -> Patient:
    patient = trained("resnet")
    patient.optimizer = torch.optim.SGD(patient.model.parameters(), lr=0.01, weight_decay=5e-2)
    return patient


def left_out() -> Patient:
    """Groups by the number of axes, which lose whatever is a vector."""
    patient = trained("ViT", data=False)
    patient.optimizer = torch.optim.AdamW([p for p in patient.model.parameters() if p.dim() > 1], lr=1e-3)
    return patient


def accumulated() -> Patient:
    """Four micro-batches for each step."""
    torch.manual_seed(0)
    model = architectures.mlp()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)
    for i, (x, y) in enumerate(batches_of("mlp", 24, size=16, seed=0)):
        F.cross_entropy(model(x), y).backward()
        if i % 4 == 3:
            optimizer.step()
            optimizer.zero_grad()
    return Patient(model, batches_of("mlp"), F.cross_entropy, optimizer)


def step_too_large() -> Patient:
    patient = trained("mlp")
    patient.optimizer = torch.optim.SGD(patient.model.parameters(), lr=300.0, momentum=0.9)
    return patient


def weights_too_long() -> Patient:
    """Grown without decay until a step turns them no more."""
    patient = trained("mlp")
    patient.model[3].weight.data *= 1e5
    patient.optimizer = torch.optim.SGD(patient.model.parameters(), lr=0.1)
    return patient


def dead_channels() -> Patient:
    """Slimmed: the smallest weights of a norm set to 0, and the channels kept."""
    patient = trained("resnet")
    weight = patient.model.blocks[0].norm1.weight.data
    weight[weight.abs().argsort()[:4]] = 0.0
    return patient


def coupled() -> Patient:
    patient = trained("mlp", data=False)
    patient.optimizer = torch.optim.Adam(patient.model.parameters(), lr=1e-3, weight_decay=0.1)
    return patient


def everything_reset() -> Patient:
    patient = trained("UNet")
    for layer in patient.model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.fill_(2.0)
    return patient


def dead_units() -> Patient:
    patient = trained("resnet")
    patient.model.stem[1].bias.data[:5] = -20.0
    return patient


def dead_by_function() -> Patient:
    patient = trained("resnet")
    patient.model.blocks[0].norm1.bias.data[:5] = -20.0
    return patient


def saturated() -> Patient:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 32, bias=False), nn.BatchNorm1d(32), nn.Sigmoid(), nn.Linear(32, 4))
    model[1].weight.data.fill_(30.0)
    return Patient(train(model, batches_of("mlp", 20, seed=0), F.cross_entropy), batches_of("mlp"))


def vanishing() -> Patient:
    torch.manual_seed(0)
    layers = [layer for _ in range(16) for layer in (nn.Linear(32, 32), nn.Sigmoid())]
    return Patient(
        nn.Sequential(nn.Linear(6, 32), *layers, nn.Linear(32, 4)), batches_of("mlp"), F.cross_entropy
    )


def exploding() -> Patient:
    """Batch norm without shortcuts, 60 layers deep."""
    torch.manual_seed(0)
    layers = [m for _ in range(60) for m in (nn.Linear(32, 32, bias=False), nn.BatchNorm1d(32), nn.ReLU())]
    return Patient(
        nn.Sequential(nn.Linear(6, 32), *layers, nn.Linear(32, 4)), batches_of("mlp"), F.cross_entropy
    )


def pixels() -> Patient:
    """0 to 255, as they come from the file."""
    patient = trained("mobilenet")
    patient.batches = [(60 * x + 128, y) for x, y in patient.batches or []]
    return patient


def uneven_columns() -> Patient:
    patient = trained("mlp")
    columns = torch.tensor([1.0, 1.0, 1.0, 1.0, 1e-3, 1e3])
    patient.batches = [(x * columns, y) for x, y in patient.batches or []]
    return patient


def padded() -> Patient:
    patient = trained("Sequences")
    for x, _ in patient.batches or []:
        for i, sequence in enumerate(x):
            sequence[3 + i % 9 :] = 0.0
    return patient


def last_batch_of_one() -> Patient:
    patient = trained("mlp")
    patient.batches = [*(patient.batches or []), batches_of("mlp", 1, size=1)[0]]
    return patient


def images_one_by_one() -> Patient:
    patient = trained("resnet")
    patient.batches = batches_of("resnet", count=6, size=1)
    return patient


def unfolded() -> Patient:
    patient = trained("mobilenet", data=False)
    patient.model.eval()
    return patient


def eps_too_small() -> Patient:
    torch.manual_seed(0)
    return Patient(architectures.ViT(lambda c: nn.LayerNorm(c, eps=1e-12)).half())


def eps_zero() -> Patient:
    torch.manual_seed(0)
    return Patient(architectures.generator(lambda c: nn.InstanceNorm2d(c, eps=0.0)))


TRAINING = [
    _ill("decay on norms", decayed, ("NK501", "stem.1"), ("NK501", "blocks.1.norm2")),
    _ill("norms left out of the optimizer", left_out, ("NK502", "blocks.0.norm1"), ("NK502", "norm")),
    _ill("accumulation", accumulated, ("NK503", "1"), ("NK503", "4")),
    _ill("a step too large", step_too_large, ("NK504", "0"), ("NK504", "3")),
    _ill("weights too long to turn", weights_too_long, ("NK504", "3")),
    _ill("dead weights of a norm", dead_channels, ("NK505", "blocks.0.norm1")),
    _ill("decay through Adam", coupled, ("NK506", "0"), ("NK506", "3")),
    _ill("all means moved", everything_reset, ("NK202", "deep.2"), ("NK601", "down.1")),
    _ill("dead units", dead_units, ("NK602", "stem.1")),
    _ill("dead units, relu by function", dead_by_function, ("NK602", "blocks.0.norm1")),
    _ill("saturated", saturated, ("NK603", "1")),
    _ill("vanishing gradients", vanishing, ("NK604", "0")),
    _ill("exploding gradients", exploding, ("NK604", "2")),
    _ill("pixels", pixels, ("NK405", "")),
    _ill("uneven columns", uneven_columns, ("NK405", "")),
    _ill("padding", padded, ("NK403", "body.1")),
    _ill("a last batch of one", last_batch_of_one, ("NK404", "1"), ("NK404", "4")),
    _ill("images one by one", images_one_by_one, ("NK404", "stem.1")),
    _ill("unfolded", unfolded, ("NK701", "stem.1"), ("NK701", "inverted.body.7")),
    _ill("eps too small for float16", eps_too_small, ("NK703", "norm")),
    _ill("eps of 0", eps_zero, ("NK703", "2")),
]
