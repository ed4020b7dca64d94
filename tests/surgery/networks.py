"""Small networks of the usual kinds, written as their authors write them, on which whole models are operated."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class BasicBlock(nn.Module):
    """ResNet's: one ReLU module for three call sites, a sum in place."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample = None
        if stride > 1 or inputs != outputs:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        identity = x
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.downsample is not None:
            identity = self.downsample(x)
        out += identity
        return self.relu(out)


class ResNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.layer1 = nn.Sequential(BasicBlock(8, 8), BasicBlock(8, 8))
        self.layer2 = nn.Sequential(BasicBlock(8, 16, 2))
        self.fc = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        x = self.layer2(self.layer1(x))
        return self.fc(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))


class InvertedResidual(nn.Module):
    """MobileNetV2's: grouped convolutions, ReLU6, a linear bottleneck."""

    def __init__(self, channels: int, expansion: int = 2) -> None:
        super().__init__()
        hidden = channels * expansion
        self.conv = nn.Sequential(
            nn.Sequential(nn.Conv2d(channels, hidden, 1, bias=False), nn.BatchNorm2d(hidden), nn.ReLU6(inplace=True)),
            nn.Sequential(
                nn.Conv2d(hidden, hidden, 3, 1, 1, groups=hidden, bias=False), nn.BatchNorm2d(hidden), nn.SiLU()
            ),
            nn.Conv2d(hidden, channels, 1, bias=False),
            nn.BatchNorm2d(channels),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x)


class DenseLayer(nn.Module):
    """DenseNet's: norm and activation before the convolution, features concatenated."""

    def __init__(self, channels: int, growth: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(channels)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv1 = nn.Conv2d(channels, 2 * growth, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(2 * growth)
        self.relu2 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(2 * growth, growth, 3, 1, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(self.relu1(self.norm1(x)))
        return torch.cat([x, self.conv2(self.relu2(self.norm2(y)))], 1)


class UNet(nn.Module):
    """Down, up by a transposed convolution, skipped connections; group norm at the bottom."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.LeakyReLU(inplace=True))
        self.bottom = nn.Sequential(nn.Conv2d(8, 8, 3, 1, 1), nn.GroupNorm(2, 8), nn.GELU())
        self.up = nn.ConvTranspose2d(16, 8, 2, 2, bias=False)
        self.up_norm = nn.BatchNorm2d(8)
        self.head = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        skip = self.down(x)
        y = torch.cat([skip, self.bottom(skip)], 1)
        return self.head(torch.tanh(self.up_norm(self.up(y))))


class ViTBlock(nn.Module):
    """Pre-norm attention and a perceptron."""

    def __init__(self, features: int = 8) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(features)
        self.attention = nn.MultiheadAttention(features, 2, batch_first=True)
        self.norm2 = nn.RMSNorm(features)
        self.mlp = nn.Sequential(nn.Linear(features, 16), nn.GELU(), nn.Linear(16, features))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        return x + self.mlp(self.norm2(x))


class ConvNorm(nn.Module):
    """A convolution and its norm, with a forward of their own."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x))


class RegBlock(nn.Module):
    """RegNet's: what is added comes out of a list within a list, or of a module, beside a projection or none."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.proj = nn.Sequential(nn.Conv2d(channels, channels, 1, bias=False), nn.BatchNorm2d(channels))
        first = nn.Sequential(nn.Conv2d(channels, channels, 1), nn.BatchNorm2d(channels), nn.Hardswish())
        self.f = nn.Sequential(
            first, nn.Sequential(nn.Conv2d(channels, channels, 1), nn.BatchNorm2d(channels))
        )
        self.g = ConvNorm(channels)
        self.shortcut = nn.Identity()
        self.activation = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.activation(self.proj(x) + self.f(x))
        return self.activation(self.g(x) + self.shortcut(x))


class Optional(nn.Module):
    """One with arguments that may be left out, a flag among them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU6(inplace=True))
        self.block = BasicBlock(8, 8)
        self.conv, self.bn, self.act = nn.Conv2d(8, 8, 1, bias=False), nn.BatchNorm2d(8), nn.SiLU()
        self.head, self.head_norm = nn.Linear(8, 3), nn.BatchNorm1d(3)

    def forward(
        self, x: Tensor, scale: Tensor | None = None, *, features: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        x = self.stem(x)
        if scale is not None:
            x = x * scale
        y = self.bn(self.conv(self.block(x)))
        z = self.head_norm(self.head(self.act(y).mean((2, 3))))
        return (z, y) if features else z


class RNN(nn.Module):
    """A recurrent network and a head with batch norm behind a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(4, 6, batch_first=True)
        self.hidden = nn.Linear(6, 8)
        self.norm = nn.BatchNorm1d(8)
        self.out = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        y, _ = self.gru(x)
        return self.out(torch.sigmoid(self.norm(self.hidden(y[:, -1]))))


class Untraceable(nn.Module):
    """One whose way depends on values."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.conv(x))
        return self.relu(y) if x.mean() < 1e9 else y


def _dense() -> nn.Module:
    stem = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(inplace=True)]
    return nn.Sequential(*stem, DenseLayer(8, 4), DenseLayer(12, 4), nn.BatchNorm2d(16), nn.Conv2d(16, 2, 1))


def _mobile() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU6(), InvertedResidual(8), InvertedResidual(8)
    )


# Each with the shape of an input.
NETWORKS = {
    "resnet": (ResNet, [6, 3, 12, 12]),
    "mobilenet": (_mobile, [6, 3, 12, 12]),
    "densenet": (_dense, [6, 3, 12, 12]),
    "unet": (UNet, [6, 3, 12, 12]),
    "vit": (ViTBlock, [6, 5, 8]),
    "rnn": (RNN, [6, 5, 4]),
    "regnet": (partial(RegBlock, 4), [6, 4, 7, 7]),
    "optional": (Optional, [6, 3, 12, 12]),
}


def batch(name: str, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """An input of a network."""
    return torch.randn(NETWORKS[name][1], generator=torch.Generator().manual_seed(seed), dtype=dtype)


def network(name: str, dtype: torch.dtype = torch.float64) -> nn.Module:
    """A network whose parameters and statistics are none that would hide a mistake."""
    torch.manual_seed(0)
    return lived(NETWORKS[name][0]()).to(dtype)


def lived(model: nn.Module) -> nn.Module:
    """A model with norms as after training."""
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._NormBase) and module.running_mean is not None:
            module.running_mean.normal_(generator=generator)
            module.running_var.uniform_(0.5, 2.0, generator=generator)
        if isinstance(module, (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)):
            for parameter in module.parameters(recurse=False):
                nn.init.uniform_(parameter, 0.5, 1.5, generator=generator)
    return model
