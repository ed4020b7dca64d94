"""Forward passes that are surgery's own: they leave no trace in the model, and no hook sees them."""

from __future__ import annotations

import copy
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from normkit.errors import InputError
from normkit.surgery.dtypes import telling_dtypes

_HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
)


def hooked(module: nn.Module) -> bool:
    """Whether somebody looks at what goes through a module."""
    return any(vars(module).get(hooks) for hooks in _HOOKS)


@contextmanager
def mode(model: nn.Module, *, training: bool) -> Generator[None, None, None]:
    """Let all modules be in training or in evaluation, each as it was again afterwards."""
    before = [(vars(module), vars(module)["training"]) for module in model.modules()]
    try:
        for attributes, _ in before:
            attributes["training"] = training  # not by train(), which a user's class may have made its own
        yield
    finally:
        for attributes, was in before:
            attributes["training"] = was


@contextmanager
def without_hooks(model: nn.Module) -> Generator[None, None, None]:
    """Let no hook run: for a pass that is none of the user's."""
    before = [(module, key, vars(module)[key]) for module in model.modules() for key in _HOOKS]
    for module, key, hooks in before:
        vars(module)[key] = type(hooks)()
    try:
        yield
    finally:
        for module, key, hooks in before:
            vars(module)[key] = hooks


@contextmanager
def undisturbed(model: nn.Module) -> Generator[None, None, None]:
    """Evaluation that leaves no trace: no hooks, no gradients, and what changes a buffer changes a copy of it."""
    before = [(vars(module)["_buffers"], dict(vars(module)["_buffers"])) for module in model.modules()]
    copies = {id(buffer): buffer.clone() for buffer in model.buffers()}
    for holder, buffers in before:
        holder.update({name: copies.get(id(buffer)) for name, buffer in buffers.items()})
    try:
        with torch.no_grad(), mode(model, training=False), without_hooks(model):
            yield
    finally:
        for holder, buffers in before:
            holder.update(buffers)


def call(model: nn.Module, batch: Any) -> Any:
    """A forward pass: a tuple or list gives positional arguments, a dict named ones, all else is one argument."""
    if isinstance(batch, dict):
        return model(**batch)
    return model(*batch) if isinstance(batch, (tuple, list)) else model(batch)


def evaluate(model: nn.Module, batch: Any) -> Any:
    """The output in evaluation, which leaves no trace: not in the model, the batch, or the random numbers to come."""
    if isinstance(batch, np.ndarray):
        raise InputError("example must hold tensors, got a NumPy array: torch.from_numpy(example)")
    tensors = (*model.parameters(), *model.buffers())
    devices = sorted({tensor.device.index for tensor in tensors if tensor.is_cuda})
    with undisturbed(model), torch.random.fork_rng(devices), telling_dtypes(model, batch, "the example"):
        return call(model, copy.deepcopy(batch))
