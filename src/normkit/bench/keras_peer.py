"""The same norms in Keras on its torch backend."""

from __future__ import annotations

import importlib
import importlib.util
import os
from typing import Any

import torch
from torch import Tensor

from normkit.bench.cases import groups_of


def absent() -> str | None:
    """Why Keras cannot run here in one line; None where it can. It is imported by this, on torch."""
    if importlib.util.find_spec("keras") is None:
        return "not installed"
    os.environ.setdefault("KERAS_BACKEND", "torch")  # which Keras reads when it is imported
    backend = importlib.import_module("keras").backend.backend()
    return None if backend == "torch" else f"runs on {backend}: set KERAS_BACKEND=torch"


def forward(norm: str, x: Tensor, eps: float) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Output of Keras's layer in training; in batch norm also the batch's mean and biased variance, float64.

    Momentum is 0, so that the moving statistics are those of the batch. They are of the biased variance.
    """
    layer = _layer(norm, x, eps)
    with torch.no_grad():
        y = layer(x, training=True) if norm == "batch" else layer(x)
    if norm != "batch":
        return y, None, None
    return y, *(moving.value.detach().double() for moving in (layer.moving_mean, layer.moving_variance))


def _layer(norm: str, x: Tensor, eps: float) -> Any:
    layers = importlib.import_module("keras").layers
    policy = {"epsilon": eps, "dtype": "float32" if x.dtype == torch.float32 else "mixed_bfloat16"}
    if norm == "batch":
        return layers.BatchNormalization(axis=1, momentum=0.0, **policy)
    if norm == "layer":
        return layers.LayerNormalization(axis=-1, **policy)
    if norm == "rms":
        return layers.RMSNormalization(axis=-1, **policy)
    groups = groups_of(x.shape[1]) if norm == "group" else x.shape[1]
    return layers.GroupNormalization(groups=groups, axis=1, **policy)
