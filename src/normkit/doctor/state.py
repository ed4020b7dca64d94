"""Whatever the doctor does to a model in order to read it is undone."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def same_modes(model: nn.Module) -> Generator[None]:
    """Training flags are as before; a frozen norm shows False, and its own flag is what counts."""
    flags = {module: module.__dict__.get("training", module.training) for module in model.modules()}
    try:
        yield
    finally:
        for module, flag in flags.items():
            module.training = flag


@contextmanager
def untouched(model: nn.Module) -> Generator[None]:
    """Flags, buffers and gradients are as before, and random numbers come as they would have."""
    tables = {module: dict(module._buffers) for module in model.modules()}  # pyright: ignore[reportPrivateUsage]
    values = {
        buffer: buffer.clone() for table in tables.values() for buffer in table.values() if buffer is not None
    }
    gradients = {parameter: parameter.grad for parameter in model.parameters()}
    try:
        with same_modes(model), torch.random.fork_rng():
            yield
    finally:
        for module, table in tables.items():
            module._buffers.clear()  # pyright: ignore[reportPrivateUsage]
            module._buffers.update(table)  # pyright: ignore[reportPrivateUsage]
        with torch.no_grad():
            for buffer, value in values.items():
                buffer.copy_(value)
        for parameter, gradient in gradients.items():
            parameter.grad = gradient
