"""What a batch is to the doctor: something to feed a model with, and a target to compare the output with."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from normkit.doctor.graph import first_tensor, tensors_in
from normkit.errors import InputError, one_line, printable
from normkit.surgery.feed import each, named

Loss = Callable[[Any, Any], Tensor | None]
_TARGETS = ("labels", "label", "targets", "target")
_RARER = ("y",)  # which models take as an input too


@dataclass(frozen=True)
class Untold:
    """The target of a mapping that names none: what else it has, beside what goes into the model."""

    names: tuple[str, ...]


@dataclass(frozen=True)
class Batch:
    """A batch as data loaders give it."""

    given: Any

    @property
    def inputs(self) -> list[Tensor]:
        """The tensors that the model gets, samples along their first axis."""
        first = self.given[:1] if isinstance(self.given, (tuple, list)) else self.given
        return [tensor for tensor in tensors_in(first) if tensor.dim()]

    @property
    def samples(self) -> int:
        """How many there are; 0 in what is no batch."""
        return len(self.inputs[0]) if self.inputs else 0

    def of(self, rows: Sequence[int]) -> Batch:
        """A batch made of these rows of this one."""
        return Batch(_rows_of(self.given, rows, self.samples))

    @property
    def target(self) -> Any:
        """What comes behind the input, or stands under the name of a target; None."""
        if isinstance(self.given, Mapping):
            return _target(self.given)
        if not isinstance(self.given, (tuple, list)) or len(self.given) < 2:
            return None
        return self.given[1] if len(self.given) == 2 else tuple(self.given[1:])


def read(batches: Iterable[object]) -> Iterator[Batch]:
    """The batches, one by one.

    Raises:
        InputError: nothing that batches come out of; no batch; a batch without samples.
    """
    number = 0
    for number, given in enumerate(each(batches), 1):
        batch = Batch(given)
        if batch.inputs and not batch.samples:
            raise InputError(f"a batch must have a sample or more, and batch {number} has none")
        yield batch
    if not number:
        raise InputError("batches must hold one batch or more, got none")


def _rows_of(given: Any, rows: Sequence[int], samples: int) -> Any:
    """Rows of every tensor that has one for each sample; the rest as it is."""
    if isinstance(given, Tensor):
        return given[rows] if given.dim() and len(given) == samples else given
    if isinstance(given, Mapping):
        return {name: _rows_of(value, rows, samples) for name, value in given.items()}
    if type(given) in (tuple, list):  # and no named ones, such as packed sequences
        return type(given)(_rows_of(value, rows, samples) for value in given)
    return given


def usual_loss(output: Any, target: Any) -> Tensor | None:
    """The model's own, where it gives one as `loss`; cross entropy for classes, mean squared error for values of the
    output's shape; None where none of these fits.
    """
    own = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)
    if isinstance(own, Tensor) and own.is_floating_point() and not own.dim():
        return own
    scores = first_tensor(output)
    if not isinstance(target, Tensor):
        return None
    if (
        target.dtype == torch.int64
        and scores.dim() > 1
        and target.shape == (*scores.shape[:1], *scores.shape[2:])
    ):
        return F.cross_entropy(scores, target)
    if target.is_floating_point() and target.shape == scores.shape:
        return F.mse_loss(scores, target)
    return None


def paired(model: nn.Module, batches: Iterable[object]) -> Iterator[object]:
    """The batches, those that are mappings as (what the model's forward takes, target).

    Raises:
        InputError: nothing that batches come out of; a mapping without what forward needs.
    """
    for batch in each(batches):
        if isinstance(batch, Mapping):
            inputs = named(model, batch)
            yield inputs, _target(batch, tuple(inputs))
        else:
            yield batch


def _target(batch: Mapping[str, Any], inputs: tuple[str, ...] = ()) -> Any:
    """What stands under the name of a target: rather where the model does not take it, and under `y` only there."""
    names = [name for name in (*_TARGETS, *_RARER) if name in batch and name not in inputs]
    names += [name for name in _TARGETS if name in batch and name in inputs]
    if names:
        return batch[names[0]]
    return Untold(tuple(str(name) for name in batch if name not in inputs))


def telling(loss: Loss) -> Loss:
    """The same loss, with a line for where it needs a target, and which this is cannot be told."""

    def told(output: Any, target: Any) -> Tensor | None:
        if not isinstance(target, Untold):
            return loss(output, target)
        try:
            return loss(output, None)
        except Exception as error:
            raise InputError(
                f"the loss fails without a target ({one_line(error, 120)}), and a batch that is a mapping has it as "
                f"{', '.join((*_TARGETS, *_RARER))}, got {printable(', '.join(target.names)) or 'nothing'} beside "
                "what forward takes: rename it, or give batches of (inputs, target)"
            ) from error

    return told
