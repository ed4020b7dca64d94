"""What surgery did to a model, and how far its outputs moved."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from normkit.errors import InputError
from normkit.surgery.dtypes import tensors_in
from normkit.surgery.passes import evaluate
from normkit.surgery.restore import whole_or_nothing
from normkit.surgery.walk import check_module


@dataclass
class Outcome:
    """What was done to a model, layer by layer, and what was left as it was, and why.

    Attributes:
        verb: the operation.
        model: the same object that was given.
        done: what each changed layer is now, by its name in the model.
        left: why a layer, or a part of the work on it, was left, by its name.
        errors: for layers whose output may have moved, by how much; the verb says in which measure.
        difference: of the outputs on the example, the largest relative to the largest output; None without one.
        note: why there was nothing to do, where there was not.
    """

    verb: str
    model: nn.Module = field(repr=False)
    done: dict[str, str] = field(default_factory=lambda: {})
    left: dict[str, str] = field(default_factory=lambda: {})
    errors: dict[str, float] = field(default_factory=lambda: {})
    difference: float | None = None
    note: str | None = None

    def __repr__(self) -> str:
        """A line for each layer."""
        width = max((len(_name(name)) for name in (*self.done, *self.left)), default=0)
        head = f"{self.verb}: {len(self.done)} changed, {len(self.left)} left"
        if self.difference is not None:
            head += f", outputs moved by {self.difference:.1e}"
        lines = [head if self.note is None else f"{head}: {self.note}"]
        for name, what in self.done.items():
            error = f", error {self.errors[name]:.1e}" if name in self.errors else ""
            lines.append(f"  {_name(name):{width}}  {what}{error}")
        lines += [f"  {_name(name):{width}}  left: {why}" for name, why in self.left.items()]
        return "\n".join(lines)


def _name(name: str) -> str:
    return name or "(the model)"


def check_model(model: nn.Module) -> None:
    """Whether this is a model that can be changed.

    Raises:
        InputError: no module, or one that is compiled.
    """
    check_module(model)
    if "_orig_mod" in vars(model).get("_modules", {}):
        raise InputError(
            "model must be as it was written, got a compiled one: change it first, compile it after"
        )


def checked(outcome: Outcome, example: Any, work: Callable[[], None]) -> Outcome:
    """Do the work on the model; where outputs on an example differ afterwards, the model becomes what it was.

    Where the work raises, it does too.

    Raises:
        InputError: no module, or one that is compiled.
    """
    check_model(outcome.model)
    with whole_or_nothing(outcome.model) as before:
        if example is None:
            work()
            return outcome
        old = evaluate(outcome.model, example)
        work()
        outcome.difference = difference(old, evaluate(outcome.model, example))
        tolerance = tolerance_of(old)
        if not outcome.difference <= tolerance:
            before.restore()
            why = (
                f"outputs differed by {outcome.difference:.1e}, more than {tolerance:.1e}: all was taken back"
            )
            outcome.left = {**dict.fromkeys(outcome.done, why), **outcome.left}
            outcome.done, outcome.errors = {}, {}
    return outcome


def difference(before: Any, after: Any) -> float:
    """The largest difference of two outputs relative to the largest value of the first; infinite for other shapes."""
    olds, news = list(tensors_in(before)), list(tensors_in(after))
    if [old.shape for old in olds] != [new.shape for new in news]:
        return float("inf")
    return max((_apart(old, new) for old, new in zip(olds, news, strict=True)), default=0.0)


def _apart(old: Tensor, new: Tensor) -> float:
    if old.numel() == 0 or torch.equal(old, new):
        return 0.0
    same = (old == new) | (old.isnan() & new.isnan())  # infinities and NaN where they were
    gap = (old.double() - new.double()).masked_fill(same, 0).abs().max()
    scale = old.double()[old.isfinite()].abs()
    relative = float(gap / scale.max()) if scale.numel() and scale.max() > 0 else float(gap)
    return relative if relative == relative else float("inf")


def tolerance_of(output: Any) -> float:
    """Half the digits of the coarsest dtype: rounding grows through layers, and an error of logic is larger."""
    dtypes = [t.dtype for t in tensors_in(output) if t.is_floating_point()]
    return max((torch.finfo(dtype).eps ** 0.5 for dtype in dtypes), default=0.0)
