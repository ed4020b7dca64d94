"""Models that nothing is wrong with: no finding of severity error is allowed on them."""

from __future__ import annotations

import copy
from functools import partial

import architectures
import torch
from patients import Case, Patient, batches_of, loss_of, train, trained
from sick_batches import Sequence, deep, learned, padded
from torch import Tensor, nn

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


class Masked(nn.Module):
    """A norm that is told which positions are padding."""

    def __init__(self) -> None:
        super().__init__()
        self.project, self.norm, self.head = (
            nn.Linear(5, 8),
            nk.BatchNorm1d(8),
            nn.Linear(8, architectures.CLASSES),
        )

    def forward(self, x: Tensor) -> Tensor:
        mask = (x != 0).any(2)
        y = self.norm(self.project(x).transpose(1, 2), mask=mask).relu() * mask[:, None]
        return self.head(y.sum(2) / mask.sum(1, keepdim=True))


def _masked() -> Patient:
    torch.manual_seed(0)
    return learned(Masked(), "Sequences", padded)


def _by_features() -> Patient:
    """Padded sequences, and a norm over the features of each position alone."""
    torch.manual_seed(0)
    return learned(Sequence(nn.LayerNorm(8), lambda x: x), "Sequences", padded)


def _on_plain_ground() -> Patient:
    """Objects anywhere in black images, as scans of digits are."""

    def placed(x: Tensor) -> Tensor:
        framed = torch.zeros_like(x)
        for i, image in enumerate(x):
            top, left, size = 1 + i % 4, 1 + i % 3, 5 + i % 3
            framed[i, :, top : top + size, left : left + size + 1] = image[:, :size, : size + 1]
        return framed

    torch.manual_seed(0)
    return learned(architectures.resnet(), "resnet", placed, 40)


def _average_with_buffers() -> Patient:
    patient = trained("resnet")
    patient.reference = copy.deepcopy(patient.model)
    return patient


def _batches_of_its_own() -> Patient:
    """Dictionaries that only the user's code can open."""
    patient = trained("mlp")
    patient.batches = [{"row": {"x": x}, "target": y} for x, y in patient.batches or []]
    patient.forward = lambda batch: patient.model(batch["row"]["x"])
    return patient


def _deep() -> Patient:
    patient = learned(deep(), "mlp", lambda x: x, 40)
    slowly = torch.optim.SGD(patient.model.parameters(), lr=1e-3)
    train(patient.model, batches_of("mlp", 40, seed=2), loss_of("mlp"), slowly)
    return patient


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
    Case("padding with a mask", _masked),
    Case("padding, a norm of features", _by_features),
    Case("objects on a plain ground", _on_plain_ground),
    Case("an average with its buffers", _average_with_buffers),
    Case("batches of its own kind", _batches_of_its_own),
    Case("twenty norms beside shortcuts", _deep),
]  # fmt: skip
