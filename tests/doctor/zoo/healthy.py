"""Models that nothing is wrong with: no finding of severity error is allowed on them."""

from __future__ import annotations

from functools import partial

import architectures
import torch
from patients import Case, Patient, batches_of, loss_of, train, trained
from torch import nn

import normkit as nk


def _fresh(network: str) -> Patient:
    """As it is before training, with its data."""
    torch.manual_seed(0)
    return Patient(getattr(architectures, network)(), batches_of(network), loss_of(network))


def _evaluating(network: str) -> Patient:
    patient = trained(network)
    patient.model.eval()
    return patient


def _with_optimizer(network: str) -> Patient:
    """In the middle of training, the optimizer's state included; norms without decay."""
    torch.manual_seed(0)
    model, loss = getattr(architectures, network)(), loss_of(network)
    norms = [p for p in model.parameters() if p.dim() == 1]
    others = [p for p in model.parameters() if p.dim() > 1]
    groups = [{"params": others, "weight_decay": 0.01}, {"params": norms, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=3e-3)
    train(model, batches_of(network, 30, seed=0), loss, optimizer)
    return Patient(model, batches_of(network), loss, optimizer)


def _frozen(network: str) -> Patient:
    """Fine-tuning with a frozen backbone, as `nk.freeze` does it."""
    patient = trained(network)
    nk.freeze(patient.model)
    return patient


def _untrained_alone() -> Patient:
    torch.manual_seed(0)
    return Patient(architectures.resnet())


def _siamese() -> Patient:
    """One encoder for two inputs, put together in one batch."""
    patient = trained("mlp")
    batches = [(torch.cat([x, -x]), torch.cat([y, y])) for x, y in patient.batches or []]
    return Patient(patient.model, batches, patient.loss)


GROUP = partial(nn.GroupNorm, 4)
HEALTHY = [
    *(Case(f"{name} trained", partial(trained, name)) for name in
      ("resnet", "mobilenet", "densenet", "UNet", "ViT", "RNN", "Sequences", "generator", "mlp")),
    Case("resnet with our batch norm", partial(trained, "resnet", nk.BatchNorm2d)),
    Case("resnet with group norm", partial(trained, "resnet", GROUP)),
    Case("resnet with ghost batch norm", partial(trained, "resnet", partial(nk.GhostBatchNorm2d, ghost_size=32))),
    Case("UNet with instance norm", partial(trained, "UNet", partial(nn.InstanceNorm2d, affine=True))),
    Case("ViT with RMS norm", partial(trained, "ViT", nn.RMSNorm)),
    Case("mlp with layer norm", partial(trained, "mlp", nn.LayerNorm)),
    Case("generator evaluating", partial(_evaluating, "generator")),
    Case("densenet evaluating", partial(_evaluating, "densenet")),
    Case("resnet with its optimizer", partial(_with_optimizer, "resnet")),
    Case("mlp with its optimizer", partial(_with_optimizer, "mlp")),
    Case("mobilenet frozen", partial(_frozen, "mobilenet")),
    Case("resnet untrained, without data", _untrained_alone),
    Case("ViT untrained", partial(_fresh, "ViT")),
    Case("pairs of inputs in one batch", _siamese),
]  # fmt: skip
