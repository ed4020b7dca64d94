"""What `--fix` does: the repairs that are safe, in order, and the diagnosis again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from normkit.doctor.batches import Loss
from normkit.doctor.diagnose import Options, diagnose
from normkit.doctor.diagnosis import Diagnosis, Finding
from normkit.errors import InputError
from normkit.surgery.feed import Forward
from normkit.surgery.freeze import freeze, unfreeze
from normkit.surgery.recalibrate import recalibrate

_BY_DATA = ("NK201", "NK202", "NK203", "NK301", "NK302", "NK303", "NK601")  # statistics that are taken anew
_NOTABLE = 0.01  # of the loss
_NO_DATA = "statistics are taken from data: give --data"
Undo = Callable[[], object]
_Change = Callable[[Any], tuple[str, Undo]]


@dataclass(frozen=True)
class Repair:
    """What was done, against which findings, and whether to attributes, which no state_dict holds."""

    what: str
    findings: tuple[Finding, ...]
    in_code: bool = False

    @property
    def codes(self) -> tuple[str, ...]:
        """Of these findings, each once."""
        return tuple(sorted({finding.code for finding in self.findings}))


@dataclass(frozen=True)
class Treatment:
    """The diagnosis before and after, what was done between, and which codes were left, with the reason."""

    before: Diagnosis
    after: Diagnosis
    repairs: tuple[Repair, ...]
    left: dict[str, str] = field(default_factory=dict[str, str])

    @property
    def loss_before(self) -> float | None:
        """In evaluation mode; None without data or loss."""
        return _loss(self.before)

    @property
    def loss_after(self) -> float | None:
        """Likewise, once repaired."""
        return _loss(self.after)

    @property
    def worse(self) -> bool:
        """Whether the loss rose by a hundredth or more."""
        before, after = self.loss_before, self.loss_after
        return before is not None and after is not None and after - before > _NOTABLE * abs(before)


def _loss(diagnosis: Diagnosis) -> float | None:
    run = diagnosis.readings.run
    return run.gap.loss_evaluated if run and run.gap else None


def fix(
    model: nn.Module,
    batches: Iterable[object] | None = None,
    loss: Loss | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    *,
    forward: Forward | None = None,
    reference: nn.Module | Mapping[str, Tensor] | None = None,
    probed: int = 8,
    select: Iterable[str] = (),
    ignore: Iterable[str] = (),
) -> Treatment:
    """Diagnose, repair what is safe to repair, in place, and diagnose again.

    First the switches (tracking, momentum, precision), then statistics, by `nk.recalibrate` over all batches, then
    what is to stay frozen, at these. Where a repair raises, the model is as it was.

    Args:
        model: as of `diagnose`, as are loss, optimizer, forward, reference, select and ignore.
        batches: gone through several times: a list or a DataLoader, no generator.
        loss: shown before and after.
        optimizer: that of the model.
        forward: runs the model on a batch, where that is not how.
        reference: what the model is a copy of.
        probed: how many of the batches a diagnosis looks at.
        select: beginnings of the codes to repair.
        ignore: of those to leave.

    Returns:
        `Treatment`: before, after, repairs, left.

    Raises:
        InputError: as of `diagnose`, and batches that can be gone through once.
    """
    if batches is not None and iter(batches) is batches:
        raise InputError(
            "batches must be something to go through several times, got a generator: give a list"
        )

    select, ignore = tuple(select), tuple(ignore)

    def look() -> Diagnosis:
        some = None if batches is None else islice(batches, probed)
        known = Options(forward=forward, reference=reference, select=select, ignore=ignore)
        return diagnose(model, some, loss, optimizer, **known)

    before = look()
    repairs: list[Repair] = []
    undone: list[Undo] = []
    try:
        for repair, undo in _repairs(model, before, batches, forward):
            repairs.append(repair)
            undone.append(undo)
        after = look()
    except BaseException:
        for undo in reversed(undone):
            undo()
        raise
    codes = {finding.code for finding in before.findings if finding.fixable}
    done = {code for repair in repairs for code in repair.codes}
    return Treatment(before, after, tuple(repairs), dict.fromkeys(sorted(codes - done), _NO_DATA))


def _repairs(
    model: nn.Module, before: Diagnosis, batches: Iterable[object] | None, forward: Forward | None
) -> Iterator[tuple[Repair, Undo]]:
    """Each repair as it is done, and how to undo it."""
    yield from _changed(model, before, _SWITCHES)
    findings = tuple(finding for finding in before.findings if finding.code in _BY_DATA)
    if findings and batches is not None:
        result = recalibrate(model, batches, forward=forward)
        what = f"statistics of {len(result.rows)} layers taken anew from {result.batches} batches"
        yield Repair(what, findings), result.undo
    yield from _changed(model, before, _FREEZES)


def _changed(
    model: nn.Module, before: Diagnosis, changes: dict[str, _Change]
) -> Iterator[tuple[Repair, Undo]]:
    for code, change in changes.items():
        for finding in before.findings:
            if finding.code == code:
                what, undo = change(model.get_submodule(finding.module))
                yield Repair(what, (finding,), code in _IN_CODE), undo


def _set(layer: Any, **values: object) -> Undo:
    known = {name: getattr(layer, name) for name in values}
    for name, value in values.items():
        setattr(layer, name, value)
    return lambda: [setattr(layer, name, value) for name, value in known.items()]


def _track(layer: Any) -> tuple[str, Undo]:
    return "track_running_stats=True", _set(layer, track_running_stats=True)


def _turn_momentum(layer: Any) -> tuple[str, Undo]:
    momentum = round(1 - layer.momentum, 12) or 0.1
    return f"momentum={momentum:g} in place of {layer.momentum:g}", _set(layer, momentum=momentum)


def _give_momentum(layer: Any) -> tuple[str, Undo]:
    return "momentum=0.1", _set(layer, momentum=0.1)


def _widen(layer: Any) -> tuple[str, Undo]:
    dtype = layer.running_var.dtype
    layer.float()
    return f"float32 in place of {str(dtype).removeprefix('torch.')}", lambda: layer.to(dtype)


def _freeze(layer: Any) -> tuple[str, Undo]:
    freeze(layer, affine=False)
    return "frozen by nk.freeze, whatever train() says", lambda: unfreeze(layer)


_SWITCHES: dict[str, _Change] = {
    "NK303": _track,
    "NK301": _turn_momentum,
    "NK302": _give_momentum,
    "NK204": _widen,
}
_FREEZES: dict[str, _Change] = {"NK304": _freeze, "NK305": _freeze}
_IN_CODE = ("NK301", "NK302", "NK303", *_FREEZES)
