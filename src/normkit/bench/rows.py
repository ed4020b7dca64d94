"""The rows of the table that the kernels must reach: what is measured in each, and the ratios it requires."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from normkit.bench.shapes import IMAGES, TABLES, TOKENS, Shape

# At most this many times the floor, where the data do not fit the last-level cache.
FORWARD_BOUND = 1.3
BACKWARD_BOUND = 1.5


@dataclass(frozen=True)
class Row:
    """One operation on one dtype and layout, over many shapes.

    `geomean` and `worst` are the required speeds against torch eager, as ratios of times: over the shapes
    together, and for each of them. In evaluation the forward pass is measured, else forward and backward.
    """

    key: str
    title: str
    norm: str
    dtype: torch.dtype
    geomean: float
    worst: float
    channels_last: bool = False
    evaluation: bool = False
    activation: str | None = None
    residual: bool = False

    @property
    def shapes(self) -> tuple[Shape, ...]:
        """Tables have no layout to choose; statistics within a sample need space or tokens."""
        if self.norm in {"layer", "rms"}:
            return TOKENS
        return IMAGES if self.norm != "batch" or self.channels_last else IMAGES + TABLES


F32, BF16 = torch.float32, torch.bfloat16

ROWS = (
    Row("bn-f32", "BN f32 contiguous", "batch", F32, 2.5, 1.1),
    Row("bn-f32-last", "BN f32 channels_last", "batch", F32, 1.5, 1.0, channels_last=True),
    Row("bn-bf16", "BN bf16 contiguous", "batch", BF16, 2.0, 1.0),
    Row("bn-bf16-last", "BN bf16 channels_last", "batch", BF16, 2.0, 1.0, channels_last=True),
    Row("bn-relu", "BN+ReLU f32", "batch", F32, 3.0, 1.2, activation="relu"),
    Row("bn-add-relu", "BN+add+ReLU f32", "batch", F32, 3.0, 1.2, activation="relu", residual=True),
    Row("bn-eval", "BN evaluation f32", "batch", F32, 1.1, 0.95, evaluation=True),
    Row("ln-f32", "LN f32", "layer", F32, 1.6, 1.0),
    Row("ln-bf16", "LN bf16", "layer", BF16, 1.8, 1.0),
    Row("rms-f32", "RMS f32", "rms", F32, 6.0, 2.0),
    Row("rms-bf16", "RMS bf16", "rms", BF16, 15.0, 2.0),
    Row("gn-f32", "GN f32", "group", F32, 1.2, 0.95),
    Row("in-f32", "IN f32", "instance", F32, 2.0, 1.1),
)
