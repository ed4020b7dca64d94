"""Small networks of the usual kinds, whose norm is the caller's; each takes what `data.py` has for it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

import torch
from torch import Tensor, nn

Norm = Callable[[int], nn.Module]
CLASSES = 4


def conv(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)


def head(features: int) -> nn.Sequential:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(features, CLASSES))


class Block(nn.Module):
    """Two convolutions and a shortcut."""

    def __init__(self, inputs: int, outputs: int, norm: Norm) -> None:
        super().__init__()
        self.conv1, self.norm1 = conv(inputs, outputs), norm(outputs)
        self.conv2, self.norm2 = conv(outputs, outputs), norm(outputs)
        self.shortcut = nn.Identity() if inputs == outputs else conv(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.norm1(self.conv1(x)))
        return torch.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


def named(**modules: nn.Module) -> nn.Sequential:
    return nn.Sequential(OrderedDict(modules))


def resnet(norm: Norm = nn.BatchNorm2d) -> nn.Module:
    """stem.0 conv, stem.1 norm; blocks.0 and blocks.1."""
    stem = nn.Sequential(conv(3, 8), norm(8), nn.ReLU())
    blocks = nn.Sequential(Block(8, 8, norm), Block(8, 16, norm))
    return named(stem=stem, blocks=blocks, head=head(16))


class Plus(nn.Module):
    def __init__(self, *body: nn.Module) -> None:
        super().__init__()
        self.body = nn.Sequential(*body)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


def mobilenet(norm: Norm = nn.BatchNorm2d) -> nn.Module:
    """An inverted residual: wide, depthwise, narrow."""
    stem = nn.Sequential(conv(3, 8, stride=2), norm(8), nn.ReLU6())
    inverted = Plus(
        conv(8, 24, 1),
        norm(24),
        nn.ReLU6(),
        conv(24, 24, groups=24),
        norm(24),
        nn.ReLU6(),
        conv(24, 8, 1),
        norm(8),
    )
    return named(stem=stem, inverted=inverted, head=head(8))


class Grow(nn.Module):
    def __init__(self, *body: nn.Module) -> None:
        super().__init__()
        self.body = nn.Sequential(*body)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.body(x)], 1)


def densenet(norm: Norm = nn.BatchNorm2d) -> nn.Module:
    """Norm before activation before convolution, three times, channels growing."""
    grow = [Grow(norm(c), nn.ReLU(), conv(c, 4)) for c in (8, 12, 16)]
    return named(stem=conv(3, 8), grow=nn.Sequential(*grow), norm=norm(20), act=nn.ReLU(), head=head(20))


class UNet(nn.Module):
    """Down, and up again beside a shortcut; predicts its input without the noise."""

    def __init__(self, norm: Norm = nn.BatchNorm2d) -> None:
        super().__init__()
        self.down = nn.Sequential(conv(3, 8), norm(8), nn.ReLU())
        self.deep = nn.Sequential(
            nn.MaxPool2d(2), conv(8, 16), norm(16), nn.ReLU(), nn.Upsample(scale_factor=2)
        )
        self.up = nn.Sequential(conv(24, 8), norm(8), nn.ReLU(), nn.Conv2d(8, 3, 1))

    def forward(self, x: Tensor) -> Tensor:
        shallow = self.down(x)
        return self.up(torch.cat([shallow, self.deep(shallow)], 1))


class Attention(nn.Module):
    """Pre-norm: attention, then an MLP."""

    def __init__(self, norm: Norm) -> None:
        super().__init__()
        self.norm1, self.norm2 = norm(16), norm(16)
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        return x + self.mlp(self.norm2(x))


class ViT(nn.Module):
    def __init__(self, norm: Norm = nn.LayerNorm) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 4, 4)
        self.place = nn.Parameter(torch.zeros(1, 9, 16))
        self.blocks = nn.Sequential(Attention(norm), Attention(norm))
        self.norm, self.head = norm(16), nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2) + self.place
        return self.head(self.norm(self.blocks(x)).mean(1))


class RNN(nn.Module):
    """An LSTM, the last state normalized."""

    def __init__(self, norm: Norm = nn.BatchNorm1d) -> None:
        super().__init__()
        self.lstm = nn.LSTM(5, 16, batch_first=True)
        self.norm, self.head = norm(16), nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.lstm(x)[0][:, -1]))


class Sequences(nn.Module):
    """Convolutions over time (N, C, L)."""

    def __init__(self, norm: Norm = nn.BatchNorm1d) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv1d(5, 8, 1, bias=False), norm(8), nn.ReLU(), nn.Conv1d(8, 8, 1))
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x.transpose(1, 2)).mean(2))


def generator(norm: Norm = nn.BatchNorm2d) -> nn.Module:
    """Noise to images, as DCGAN does."""
    return nn.Sequential(
        nn.Unflatten(1, (8, 1, 1)),
        nn.ConvTranspose2d(8, 16, 3, bias=False), norm(16), nn.ReLU(),
        nn.ConvTranspose2d(16, 8, 4, 2, 1, bias=False), norm(8), nn.ReLU(),
        nn.ConvTranspose2d(8, 3, 4, 2, 1), nn.Tanh(),
    )  # fmt: skip


def mlp(norm: Norm = nn.BatchNorm1d) -> nn.Module:
    """0, 3, 6 linear; 1, 4 norms."""
    return nn.Sequential(
        nn.Linear(6, 32, bias=False), norm(32), nn.ReLU(), nn.Linear(32, 32, bias=False), norm(32), nn.ReLU(),
        nn.Linear(32, CLASSES),
    )  # fmt: skip
