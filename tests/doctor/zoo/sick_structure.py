"""Models whose norms stand wrongly: NK1."""

from __future__ import annotations

from collections.abc import Callable

import architectures
import torch
import torch.nn.functional as F
from architectures import CLASSES, Block, conv, head, named
from patients import Case, Patient, batches_of
from torch import Tensor, nn

import normkit as nk


def _built(build: Callable[[], nn.Module], data: str | None = None) -> Callable[[], Patient]:
    def make() -> Patient:
        torch.manual_seed(0)
        return Patient(build(), None if data is None else batches_of(data))

    return make


def biased_stem() -> nn.Module:
    model = architectures.resnet()
    model.stem[0] = nn.Conv2d(3, 8, 3, padding=1)
    return model


def biased_transposed() -> nn.Module:
    model = architectures.generator()
    model[4] = nn.ConvTranspose2d(16, 8, 4, 2, 1)
    return model


class BiasedOverTime(nn.Module):
    """A bias that reaches its norm through a transpose."""

    def __init__(self) -> None:
        super().__init__()
        self.project, self.norm, self.out = nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm(self.project(x).transpose(1, 2)))
        return self.out(y.mean(2))


def generator_normalized_at_the_end() -> nn.Module:
    model = architectures.generator()
    return nn.Sequential(
        *model[:7], nn.ConvTranspose2d(8, 3, 4, 2, 1, bias=False), nn.BatchNorm2d(3), nn.Tanh()
    )


def normalized_logits() -> nn.Module:
    return nn.Sequential(*architectures.mlp(), nn.LayerNorm(CLASSES))


def dropout_in_mlp() -> nn.Module:
    model = architectures.mlp()
    return nn.Sequential(*model[:3], nn.Dropout(0.5), *model[3:])


class DropoutByFunction(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv, self.norm, self.head = conv(3, 8), conv(8, 8), nn.BatchNorm2d(8), head(8)

    def forward(self, x: Tensor) -> Tensor:
        x = F.dropout2d(F.relu(self.stem(x)), p=0.3, training=self.training)
        return self.head(F.relu(self.norm(self.conv(x))))


def one_block_activated_first() -> nn.Module:
    def block(*middle: nn.Module) -> nn.Module:
        return nn.Sequential(conv(8, 8), *middle)

    usual = [block(nn.BatchNorm2d(8), nn.ReLU()) for _ in range(3)]
    return named(
        stem=conv(3, 8), usual=nn.Sequential(*usual), odd=block(nn.ReLU(), nn.BatchNorm2d(8)), head=head(8)
    )


class SharedHeads(nn.Module):
    """One norm over the outputs of two branches."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.norm, self.head = conv(3, 8), conv(3, 8), nn.BatchNorm2d(8), head(16)

    def forward(self, x: Tensor) -> Tensor:
        both = self.norm(self.left(x)), self.norm(self.right(x) * 3 + 1)
        return self.head(torch.cat(both, 1).relu())


class SharedInBlocks(nn.Module):
    """A norm registered in two blocks: one object, two names."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = (
            Block(3, 8, nn.BatchNorm2d),
            Block(3, 8, nn.BatchNorm2d),
            head(16),
        )
        self.second.norm1 = self.first.norm1

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.cat([self.first(x), self.second(x)], 1))


def group_norm_in_mlp() -> nn.Module:
    return architectures.mlp(lambda c: nn.GroupNorm(c, c))


def group_norm_behind_pooling() -> nn.Module:
    return nn.Sequential(
        conv(3, 8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nk.GroupNorm(8, 8), nn.Flatten(), nn.Linear(8, 4)
    )


def layer_norm_over_width() -> nn.Module:
    return nn.Sequential(conv(3, 8), nn.LayerNorm(12), nn.ReLU(), head(8))


def layer_norm_over_height_and_width() -> nn.Module:
    return nn.Sequential(conv(3, 8), nn.ReLU(), nn.LayerNorm([12, 12]), head(8))


class LayerNormOverTime(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.project, self.norm, self.out = nn.Linear(5, 8), nn.LayerNorm(12), nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.norm(self.project(x).transpose(1, 2)).mean(2))


class BatchNormCell(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inputs, self.state = nn.Linear(5, 8, bias=False), nn.Linear(8, 8, bias=False)
        self.norm, self.out = nn.BatchNorm1d(8), nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(x.shape[0], 8)
        for t in range(x.shape[1]):
            h = torch.tanh(self.norm(self.inputs(x[:, t]) + self.state(h)))
        return self.out(h)


STRUCTURE = [
    Case("bias in a stem", _built(biased_stem), frozenset({("NK101", "stem.0")})),
    Case("bias in a generator", _built(biased_transposed, "generator"), frozenset({("NK101", "4")})),
    Case("bias behind a transpose", _built(BiasedOverTime), frozenset({("NK101", "project")})),
    Case("norm at a generator's end", _built(generator_normalized_at_the_end), frozenset({("NK102", "8")})),
    Case("norm on logits", _built(normalized_logits, "mlp"), frozenset({("NK102", "7")})),
    Case("dropout in a table's network", _built(dropout_in_mlp), frozenset({("NK103", "5")})),
    Case("dropout by function", _built(DropoutByFunction, "resnet"), frozenset({("NK103", "norm")})),
    Case("one block in another order", _built(one_block_activated_first), frozenset({("NK104", "odd.2")})),
    Case("shared by branches", _built(SharedHeads, "resnet"), frozenset({("NK105", "norm")})),
    Case("shared by blocks", _built(SharedInBlocks), frozenset({("NK105", "first.norm1")})),
    Case("group norm without space", _built(group_norm_in_mlp), frozenset({("NK106", "1"), ("NK106", "4")})),
    Case("group norm behind pooling", _built(group_norm_behind_pooling, "resnet"), frozenset({("NK106", "3")})),
    Case("layer norm over width", _built(layer_norm_over_width), frozenset({("NK107", "1")})),
    Case("layer norm over space", _built(layer_norm_over_height_and_width, "resnet"), frozenset({("NK107", "2")})),
    Case("layer norm over time", _built(LayerNormOverTime, "RNN"), frozenset({("NK107", "norm")})),
    Case("batch norm in a cell", _built(BatchNormCell, "RNN"), frozenset({("NK108", "norm")})),
]  # fmt: skip
