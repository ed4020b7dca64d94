"""One row on one shape: its tensors, and its layer from normkit or torch.nn, whose names are the same."""

from __future__ import annotations

import math
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

import normkit as nk
from normkit.bench.rows import Row
from normkit.bench.shapes import Shape


def layer(
    library: ModuleType, norm: str, size: tuple[int, ...], dtype: torch.dtype, **options: Any
) -> nn.Module:
    """The layer of `library` (normkit or torch.nn) that normalizes an input of this size and dtype.

    Group norm has `groups_of` groups; instance norm is affine.
    Under bf16, batch norm keeps float32 parameters, as in autocast; the others are cast, as in a bf16 model.
    """
    if norm in {"layer", "rms"}:
        name = {"layer": "LayerNorm", "rms": "RMSNorm"}[norm]
        return getattr(library, name)(size[-1], **options).to(dtype)
    if norm == "group":
        return library.GroupNorm(groups_of(size[1]), size[1], **options).to(dtype)
    dim = max(1, len(size) - 2)
    if norm == "instance":
        return getattr(library, f"InstanceNorm{dim}d")(size[1], affine=True, **options).to(dtype)
    return getattr(library, f"BatchNorm{dim}d")(size[1], **options)


def groups_of(channels: int) -> int:
    """Groups of the group norm of so many channels: 32, or the most below with two channels or more in each.

    >>> groups_of(64), groups_of(16), groups_of(144)
    (32, 8, 16)
    """
    fitting = (g for g in (32, 16, 8, 4, 2) if channels % g == 0 and channels >= 2 * g)
    return next(fitting, 1)


class Separate(nn.Module):
    """torch's layer, then the operations that ours fuses: in place, as torchvision's networks have them."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """relu(norm(x) + residual), as separate operations."""
        y = self.norm(x)
        if residual is not None:
            y += residual
        return torch.relu_(y)


@dataclass(frozen=True)
class Case:
    """One row of the benchmark on one shape."""

    row: Row
    shape: Shape

    def tensor(self, seed: int) -> Tensor:
        """Standard normal values in the row's dtype and layout."""
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(self.shape.size, generator=generator).to(self.row.dtype)
        return x.to(memory_format=self.memory_format)

    @property
    def memory_format(self) -> torch.memory_format:
        """The layout of input and gradient."""
        if not self.row.channels_last:
            return torch.contiguous_format
        return torch.channels_last if len(self.shape.size) == 4 else torch.channels_last_3d

    def ours(self) -> nn.Module:
        """normkit's layer, which adds and activates itself."""
        options = {} if self.row.activation is None else {"activation": self.row.activation}
        module = layer(nk, self.row.norm, self.shape.size, self.row.dtype, **options)
        return module.train(not self.row.evaluation)

    def theirs(self) -> nn.Module:
        """torch's layer, followed by the operations that ours fuses."""
        module = layer(nn, self.row.norm, self.shape.size, self.row.dtype)
        if self.row.activation is not None:
            module = Separate(module)
        return module.train(not self.row.evaluation)

    @property
    def tensor_bytes(self) -> int:
        """Size of the input, which is that of the output and of each gradient."""
        return math.prod(self.shape.size) * self.row.dtype.itemsize

    def least_bytes(self) -> tuple[int, int]:
        """The least that any implementation moves between memory and processor, forward and backward.

        Forward reads x (and the residual) and writes y. Backward reads x and dy and writes dx (and the
        residual's gradient). Not counted, as the bound holds without: parameters, statistics, and the
        mask of an activation behind a residual, which one bit per element can hold.
        """
        forward = 2 + self.row.residual
        backward = 0 if self.row.evaluation else 3 + self.row.residual
        return forward * self.tensor_bytes, backward * self.tensor_bytes
