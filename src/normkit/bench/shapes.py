"""The inputs that are measured: layers of real networks, in batches of about 1 to 100 MB, and tiny ones."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Shape:
    """The input of one normalization layer; `quick` ones are those of the short run."""

    network: str
    size: tuple[int, ...]
    quick: bool = False

    def __str__(self) -> str:
        return f"{self.network} {'x'.join(map(str, self.size))}"


# (N, C, H, W) and (N, C, D, H, W): batch, group and instance norm.
IMAGES = (
    Shape("ResNet-50", (32, 64, 112, 112)),
    Shape("ResNet-50", (32, 64, 56, 56), quick=True),
    Shape("ResNet-50", (16, 256, 56, 56)),
    Shape("ResNet-50", (32, 512, 14, 14)),
    Shape("ResNet-50", (32, 2048, 7, 7)),
    Shape("VGG-16", (4, 64, 224, 224)),
    Shape("VGG-16", (16, 512, 14, 14)),
    Shape("MobileNetV2", (16, 96, 112, 112)),
    Shape("MobileNetV2", (16, 144, 56, 56)),
    Shape("MobileNetV2", (16, 960, 7, 7)),
    Shape("DenseNet-121", (16, 512, 28, 28)),
    Shape("DenseNet-121", (16, 128, 28, 28)),
    Shape("DenseNet-121", (8, 928, 14, 14), quick=True),
    Shape("3-D U-Net", (2, 32, 64, 64, 64)),
    Shape("3-D U-Net", (2, 64, 32, 32, 32)),
    Shape("3-D U-Net", (2, 256, 8, 8, 8)),
    Shape("tiny", (8, 16, 4, 4), quick=True),
)

# (N, C): batch norm after a dense layer.
TABLES = (
    Shape("table", (65536, 64)),
    Shape("table", (4096, 256)),
    Shape("table", (1024, 512)),
    Shape("tiny", (32, 64)),
)

# (N, tokens, features): layer and RMS norm, over the features.
TOKENS = (
    Shape("ViT-B/16", (128, 197, 768)),
    Shape("ViT-B/16", (64, 197, 768), quick=True),
    Shape("ViT-B/16", (16, 197, 768)),
    Shape("ViT-B/16", (2, 197, 768)),
    Shape("ViT-B/16 at 384", (16, 577, 768)),
    Shape("ViT-B/32", (32, 50, 768)),
    Shape("tiny", (1, 32, 64), quick=True),
)
