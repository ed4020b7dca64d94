"""The doctor's one function."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from normkit.doctor.batches import Loss
from normkit.doctor.checks import chosen, judge
from normkit.doctor.diagnosis import Diagnosis
from normkit.doctor.probe import probe
from normkit.errors import InputError


def diagnose(
    model: nn.Module,
    batches: Iterable[Any] | None = None,
    loss: Loss | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    *,
    select: Iterable[str] = (),
    ignore: Iterable[str] = (),
) -> Diagnosis:
    """What normalization does wrong in a model: each illness with its layer, numbers and remedy.

    The model alone shows how norms stand in it and what their statistics hold. Batches show whether these are those of
    the data, what differs between training and evaluation and which layer makes the difference; a loss, gradients; an
    optimizer, decay and learning rates. The model, its buffers, gradients and flags are as they were afterwards, and
    random numbers come as they would have.

    Args:
        model: any module, in the mode that it is used in; in one process, or wrapped and called by all of them.
        batches: tensors, tuples (inputs..., target), or dicts; gone through once. Some 8 of the training batches do.
        loss: loss(output, target), a scalar.
        optimizer: the one that trains the model.
        select: beginnings of the codes to look for, "NK2" or "NK202"; all of them by default.
        ignore: of those to leave out.

    Returns:
        `Diagnosis`: its `findings`, the worst first, each with code, severity, module, message, evidence, remedy and
        fixable; true where there is one. `normkit doctor --explain CODE` tells more of a code.

    Raises:
        InputError: an unknown code; batches that cannot be read; a model or loss that raises on them, with the cause.

    >>> model = nn.Sequential(nn.Linear(4, 8, bias=False), nn.BatchNorm1d(8, momentum=0.99), nn.ReLU(), nn.Linear(8, 2))
    >>> diagnose(model)
    Diagnosis: 1 found
    NK301 warning 1: momentum=0.99 keeps 0.01 of what came before the last batch
    """
    if not isinstance(model, nn.Module):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InputError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    checks = chosen(select, ignore)
    return judge(probe(model, batches, loss, optimizer), checks)
