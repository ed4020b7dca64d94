"""What a batch is to the doctor: something to feed a model with, and a target to compare the output with."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from normkit.doctor.graph import first_tensor, tensors_in
from normkit.errors import InputError

Loss = Callable[[Any, Any], Tensor | None]
_TARGETS = ("labels", "label", "target", "targets")


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

    @property
    def target(self) -> Any:
        """What comes behind the input, or stands under the name of a target; None."""
        if isinstance(self.given, Mapping):
            return next((self.given[name] for name in _TARGETS if name in self.given), None)
        if not isinstance(self.given, (tuple, list)) or len(self.given) < 2:
            return None
        return self.given[1] if len(self.given) == 2 else tuple(self.given[1:])


def read(batches: Iterable[object]) -> Iterator[Batch]:
    """The batches, one by one.

    Raises:
        InputError: nothing to iterate over; no batch; a batch without samples.
    """
    try:
        iterator = iter(batches)
    except TypeError:
        raise InputError(f"batches must be something to iterate over, got {type(batches).__name__}") from None
    position = -1
    for position, given in enumerate(iterator):
        batch = Batch(given)
        if batch.inputs and not batch.samples:
            raise InputError(f"a batch must have a sample or more, and batch {position} has none")
        yield batch
    if position < 0:
        raise InputError("batches must hold one batch or more, got none")


def usual_loss(output: Any, target: Any) -> Tensor | None:
    """Cross entropy for classes, mean squared error for values of the output's shape; None where neither fits."""
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
