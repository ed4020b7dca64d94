"""What `normkit doctor` does: a model by name in, a diagnosis out; with `--fix` also a treatment and a checkpoint."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from normkit.doctor.batches import Loss, usual_loss
from normkit.doctor.checkpoint import (
    check_output,
    is_checkpoint,
    keeps_others,
    read_checkpoint,
    read_weights,
    write_weights,
)
from normkit.doctor.checks import chosen
from normkit.doctor.diagnose import Options, diagnose
from normkit.doctor.diagnosis import Diagnosis
from normkit.doctor.graph import first_tensor
from normkit.doctor.hints import hints
from normkit.doctor.repair import Treatment, fix
from normkit.doctor.skeleton import skeleton
from normkit.doctor.target import blaming, load_batches, load_function, load_model
from normkit.errors import InputError
from normkit.surgery.feed import Forward, takes


@dataclass(frozen=True)
class Request:
    """The options of the command."""

    target: str
    data: str | None = None
    weights: Path | None = None
    loss: str | None = None
    optimizer: str | None = None
    forward: str | None = None
    reference: str | None = None
    batches: int = 8
    fix: bool = False
    out: Path | None = None
    select: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()


@dataclass(frozen=True)
class Result:
    """What came of it.

    Attributes:
        diagnosis: after the treatment, where there was one.
        hints: what could not be seen, and how it can.
        written: the file of repaired weights.
        dropped: what it lacks of the file before.
    """

    diagnosis: Diagnosis
    hints: tuple[str, ...]
    treatment: Treatment | None = None
    written: Path | None = None
    dropped: tuple[str, ...] = ()


class _Batches:
    """Batches by name, made anew each time."""

    def __init__(self, target: str) -> None:
        self.target = target

    def __iter__(self) -> Iterator[object]:
        batches = load_batches(self.target)
        with blaming(f"{self.target} fails"):
            yield from batches


def consult(request: Request) -> Result:
    """Diagnose, and repair where that is asked for.

    Raises:
        InputError: whatever the user has to change: targets, options, code that raises.
    """
    _check(request)
    bare = is_checkpoint(request.target)
    source = Path(request.target) if bare else request.weights
    out = _output(request, source)
    file = None if source is None else read_checkpoint(source)
    model = skeleton(file.weights) if bare and file else load_model(request.target, request.weights)
    data = None if request.data is None else _Batches(request.data)
    loss, optimizer = _loss(request), _optimizer(request, model)
    options = Options(
        forward=_forward(request, model),
        reference=_reference(request),
        select=request.select,
        ignore=request.ignore,
    )
    if not request.fix:
        some = None if data is None else islice(data, request.batches)
        diagnosis = diagnose(model, some, loss, optimizer, **options)
        return Result(diagnosis, _hints(request, diagnosis))
    treatment = fix(model, data, loss, optimizer, probed=request.batches, **options)
    known = _hints(request, treatment.before)
    if out is None or not treatment.repairs:
        return Result(treatment.after, known, treatment)
    state = model.state_dict()
    if bare and file:
        state = {key: state.get(key, value) for key, value in file.weights.items()}
    write_weights(state, out, file)
    dropped = file.others if file and not keeps_others(out) else []
    return Result(treatment.after, known, treatment, out, tuple(dropped))


def _hints(request: Request, diagnosis: Diagnosis) -> tuple[str, ...]:
    bare = request.target if is_checkpoint(request.target) else None
    return tuple(hints(diagnosis, bare, request.weights))


def _check(request: Request) -> None:
    """Before anything is loaded."""
    chosen(request.select, request.ignore)
    if request.batches < 1:
        raise InputError(f"--batches must be 1 or more, got {request.batches}")
    if request.out is not None and not request.fix:
        raise InputError("-o is for the weights that --fix writes: give --fix too")
    for option, value in (("--loss", request.loss), ("--forward", request.forward)):
        if value is not None and request.data is None:
            raise InputError(f"{option} is taken on batches: give --data too")
    if is_checkpoint(request.target):
        for option, value in (("--data", request.data), ("--optimizer", request.optimizer)):
            if value is not None:
                raise InputError(f"{option} needs the model: name it, and give {request.target} as --weights")


def _output(request: Request, source: Path | None) -> Path | None:
    """Where repaired weights go: never over what is there unless that was named."""
    if not request.fix:
        return None
    if request.out is not None:
        check_output(request.out, source)
        return request.out
    if source is None:
        return None
    beside = source.with_name(f"{source.stem}.fixed{source.suffix}")
    if beside.exists():
        raise InputError(f"{beside} is there already: name a file for the repaired weights by -o")
    return beside


def _loss(request: Request) -> Loss | None:
    """The one that was named: of torch.nn.functional, or the user's; else the usual one, as far as it fits."""
    if request.data is None:
        return None
    if request.loss is None:
        return usual_loss
    if ":" not in request.loss:
        known: Any = getattr(F, request.loss, None)
        if not inspect.isroutine(known):
            raise InputError(
                f"--loss must be a function of torch.nn.functional or FILE.py:NAME, got {request.loss!r}"
            )
        return lambda output, target: known(first_tensor(output), target)
    return load_function(request.loss)


def _optimizer(request: Request, model: nn.Module) -> torch.optim.Optimizer | None:
    """What the user's function makes of the model."""
    if request.optimizer is None:
        return None
    make: Callable[..., Any] = load_function(request.optimizer)
    with blaming(f"{request.optimizer}(model) raised"):
        made = make(model)
    if not isinstance(made, torch.optim.Optimizer):
        raise InputError(f"{request.optimizer}(model) must give an optimizer, got {type(made).__name__}")
    return made


def _forward(request: Request, model: nn.Module) -> Forward | None:
    """The user's function of model and batch."""
    if request.forward is None:
        return None
    run = load_function(request.forward)
    if not takes(run, 2):
        raise InputError(
            f"--forward must be a function of model and batch, got {request.forward}{inspect.signature(run)}: "
            "def forward(model, batch)"
        )
    return lambda batch: run(model, batch)


def _reference(request: Request) -> nn.Module | Mapping[str, Tensor] | None:
    """A model by name, or the weights in a file."""
    if request.reference is None:
        return None
    if is_checkpoint(request.reference):
        return read_weights(Path(request.reference))
    return load_model(request.reference)
