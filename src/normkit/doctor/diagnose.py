"""The doctor's one function."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypedDict

import torch
from torch import Tensor, nn

from normkit import processes
from normkit.doctor.batches import Loss, paired, telling
from normkit.doctor.checks import chosen, judge
from normkit.doctor.diagnosis import Diagnosis
from normkit.doctor.probe import probe
from normkit.errors import InputError
from normkit.surgery.feed import Forward


class Options(TypedDict):
    """What of a diagnosis stays the same from one to the next."""

    forward: Forward | None
    reference: nn.Module | Mapping[str, Tensor] | None
    select: Iterable[str]
    ignore: Iterable[str]


def diagnose(
    model: nn.Module,
    batches: Iterable[Any] | None = None,
    loss: Loss | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    *,
    forward: Forward | None = None,
    reference: nn.Module | Mapping[str, Tensor] | None = None,
    process_group: processes.Group = None,
    select: Iterable[str] = (),
    ignore: Iterable[str] = (),
) -> Diagnosis:
    """What normalization does wrong in a model: each illness with its layer, numbers and remedy.

    The model alone shows how norms stand in it and what their statistics hold. Batches show whether these are those of
    the data, what differs between training and evaluation and which layer makes the difference; a loss, gradients; an
    optimizer, decay and learning rates. The model, its buffers, gradients and flags are as they were afterwards, and
    random numbers come as they would have.

    Args:
        model: any module, in the mode that it is used in; one in DistributedDataParallel by all its processes at once.
        batches: tensors, tuples (inputs..., target), or dicts, of which the model gets what its forward has names for;
            gone through once. Some 8 of the training batches do.
        loss: loss(output, target), a scalar. A dict's target is its `labels`, `label`, `targets`, `target` or `y`, that
            which forward does not take before that which it takes.
        optimizer: the one that trains the model.
        forward: a function of one batch that runs the model on it, where that is not how.
        reference: what the model is a copy of, a module or its state_dict: of a moving average or a target network its
            source. Running statistics are compared.
        process_group: processes that all call this, "world" for all there are; their running statistics are compared.
        select: beginnings of the codes to look for, "NK2" or "NK202"; all of them by default.
        ignore: of those to leave out.

    Returns:
        `Diagnosis`: its `findings`, the worst first, each with code, severity, module, message, evidence, remedy and
        fixable; true where there is one. `normkit doctor --explain CODE` tells more of a code.

    Raises:
        InputError: an unknown code; batches that cannot be read, or whose target the loss needs and cannot be told; a
            model or loss that raises on them, with the cause; a reference without running statistics of the same
            names and sizes.
        TypeError: a process_group that is none.

    >>> model = nn.Sequential(nn.Linear(4, 8, bias=False), nn.BatchNorm1d(8, momentum=0.99), nn.ReLU(), nn.Linear(8, 2))
    >>> diagnose(model)
    Diagnosis: 1 found
    NK301 warning 1: momentum=0.99 keeps 0.01 of what came before the last batch
    """
    if not isinstance(model, nn.Module):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InputError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    checks = chosen(select, ignore)
    processes.check_group(process_group)
    if batches is not None and forward is None:
        batches = paired(model, batches)
    told = None if loss is None else telling(loss)
    read = probe(
        model, batches, told, optimizer, forward=forward, reference=reference, process_group=process_group
    )
    return judge(read, checks)
