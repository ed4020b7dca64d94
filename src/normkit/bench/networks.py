"""Three image networks from torch.nn, whose batch norm is the caller's: torch's layer or ours.

Without dropout, which would draw random numbers within the measurement. Otherwise as published, and with as
many parameters.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

Norm = Callable[[int], nn.Module]  # from channels to the layer that normalizes them


def _conv(inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)


class _Plus(nn.Module):
    """shortcut(x) + body(x)."""

    def __init__(self, body: nn.Module, shortcut: nn.Module) -> None:
        super().__init__()
        self.body, self.shortcut = body, shortcut

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) + self.shortcut(x)


def _classifier(features: int, classes: int) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(features, classes)]


def resnet18(norm: Norm, classes: int = 1000) -> nn.Module:
    """ResNet-18. He, Zhang, Ren and Sun, "Deep Residual Learning for Image Recognition", 2016."""

    def block(inputs: int, outputs: int, stride: int) -> nn.Module:
        body = nn.Sequential(
            _conv(inputs, outputs, 3, stride), norm(outputs), nn.ReLU(inplace=True),
            _conv(outputs, outputs, 3), norm(outputs),
        )  # fmt: skip
        same = stride == 1 and inputs == outputs
        shortcut = nn.Identity() if same else nn.Sequential(_conv(inputs, outputs, 1, stride), norm(outputs))
        return nn.Sequential(_Plus(body, shortcut), nn.ReLU(inplace=True))

    blocks: list[nn.Module] = []
    inputs = 64
    for outputs, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
        blocks += [block(inputs, outputs, stride), block(outputs, outputs, 1)]
        inputs = outputs
    stem = [_conv(3, 64, 7, 2), norm(64), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)]
    return nn.Sequential(*stem, *blocks, *_classifier(512, classes))


def mobilenet_v2(norm: Norm, classes: int = 1000) -> nn.Module:
    """MobileNetV2. Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks", 2018."""

    def convolution(
        inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1
    ) -> nn.Module:
        return nn.Sequential(
            _conv(inputs, outputs, kernel, stride, groups), norm(outputs), nn.ReLU6(inplace=True)
        )

    def block(inputs: int, outputs: int, stride: int, expansion: int) -> nn.Module:
        hidden = inputs * expansion
        body = nn.Sequential(
            *([convolution(inputs, hidden)] if expansion > 1 else []),
            convolution(hidden, hidden, 3, stride, groups=hidden),
            _conv(hidden, outputs), norm(outputs),
        )  # fmt: skip
        return _Plus(body, nn.Identity()) if stride == 1 and inputs == outputs else body

    # expansion, channels, blocks, stride of the first block: table 2 of the paper
    stages = (
        (1, 16, 1, 1),
        (6, 24, 2, 2),
        (6, 32, 3, 2),
        (6, 64, 4, 2),
        (6, 96, 3, 1),
        (6, 160, 3, 2),
        (6, 320, 1, 1),
    )
    blocks: list[nn.Module] = []
    inputs = 32
    for expansion, outputs, count, stride in stages:
        for i in range(count):
            blocks.append(block(inputs, outputs, stride if i == 0 else 1, expansion))
            inputs = outputs
    return nn.Sequential(
        convolution(3, 32, 3, 2), *blocks, convolution(320, 1280), *_classifier(1280, classes)
    )


class _Dense(nn.Module):
    """x, and behind it the channels that body makes of it."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.body(x)], 1)


def densenet121(norm: Norm, classes: int = 1000) -> nn.Module:
    """DenseNet-121. Huang et al., "Densely Connected Convolutional Networks", 2017."""
    growth = 32

    def activated(channels: int) -> list[nn.Module]:
        return [norm(channels), nn.ReLU(inplace=True)]

    def layer(channels: int) -> nn.Module:
        wide = 4 * growth
        body = [*activated(channels), _conv(channels, wide), *activated(wide), _conv(wide, growth, 3)]
        return _Dense(nn.Sequential(*body))

    modules: list[nn.Module] = [_conv(3, 64, 7, 2), *activated(64), nn.MaxPool2d(3, 2, 1)]
    channels = 64
    for count in (6, 12, 24, 16):
        if channels > 64:  # a transition between the blocks
            modules += [*activated(channels), _conv(channels, channels // 2), nn.AvgPool2d(2)]
            channels //= 2
        for _ in range(count):
            modules.append(layer(channels))
            channels += growth
    return nn.Sequential(*modules, *activated(channels), *_classifier(channels, classes))


NETWORKS = {"MobileNetV2": mobilenet_v2, "DenseNet-121": densenet121, "ResNet-18": resnet18}
