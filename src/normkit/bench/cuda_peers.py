"""Other libraries' layers on a GPU, where they are installed and have the operation."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from normkit.bench.cases import Case, groups_of

APEX, LIGER, QUACK = "apex", "Liger", "QuACK"
_MODULES = {APEX: "apex", LIGER: "liger_kernel", QUACK: "quack"}


def absent() -> dict[str, str]:
    """The peers that are not installed."""
    return {name: "not installed" for name, module in _MODULES.items() if not _there(module)}


def peers(case: Case) -> list[tuple[str, nn.Module]]:
    """Layers of installed peers for this case, in its dtype, on the GPU."""
    size, dtype, row = case.shape.size, case.row.dtype, case.row
    plain = row.activation is None and not row.residual
    found: list[tuple[str, nn.Module]] = []
    if _there("apex"):
        if row.norm == "batch" and row.channels_last and len(size) == 4:
            found += _layer(APEX, "apex.contrib.groupbn", "BatchNorm2d_NHWC", size[1], fuse_relu=not plain)
        elif row.norm == "group" and row.channels_last:
            found += _layer(APEX, "apex.contrib.group_norm", "GroupNorm", groups_of(size[1]), size[1])
        elif row.norm in ("layer", "rms"):
            name = {"layer": "FusedLayerNorm", "rms": "FusedRMSNorm"}[row.norm]
            found += _layer(APEX, "apex.normalization", name, size[-1])
    if _there("liger_kernel") and row.norm in ("layer", "rms"):
        name = {"layer": "LigerLayerNorm", "rms": "LigerRMSNorm"}[row.norm]
        found += _layer(LIGER, "liger_kernel.transformers", name, size[-1])
    if _there("quack") and row.norm == "rms":
        found.append((QUACK, _Function(importlib.import_module("quack").rmsnorm, size[-1])))
    return [
        (name, module.cuda().to(dtype) if row.norm != "batch" else module.cuda()) for name, module in found
    ]


class _Function(nn.Module):
    """A function of x and a weight as a layer."""

    def __init__(self, function: Callable[..., Tensor], size: int) -> None:
        super().__init__()
        self.function, self.weight = function, nn.Parameter(torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, self.weight)


def _layer(peer: str, module: str, name: str, *arguments: Any, **options: Any) -> list[tuple[str, nn.Module]]:
    """The layer, or none where this installation was built without it."""
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError):
        return []
    return [(peer, found(*arguments, **options))]


def _there(module: str) -> bool:
    return importlib.util.find_spec(module) is not None
