"""What a batch is: what the model is called with, and what its output is compared with."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from normkit.doctor.graph import first_tensor
from normkit.errors import InputError

Loss = Callable[[Any, Any], Tensor]


@dataclass(frozen=True)
class Batch:
    """Arguments of the model, and the target: None where there is none."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    target: Any

    @property
    def samples(self) -> int:
        """The length of the first axis of the first tensor."""
        return next(len(value) for value in (*self.args, *self.kwargs.values()) if _is_batch(value))

    def forward(self, model: nn.Module) -> Any:
        """The model's output."""
        return model(*self.args, **self.kwargs)


def read(batches: Iterable[Any], device: torch.device | None) -> Iterator[Batch]:
    """The batches, each moved to the device of the model.

    A tensor is the input; of a tuple, the last entry is the target and what stands before it the inputs, in order;
    a dict is given by name, and its `labels`, `label` or `target` are a target too.

    Raises:
        InputError: a batch of another structure; no batch.
    """
    try:
        iterator = iter(batches)
    except TypeError:
        raise InputError(f"batches must be something to iterate over, got {type(batches).__name__}") from None
    empty = True
    for position, batch in enumerate(iterator):
        empty = False
        yield _read(batch, position, device)
    if empty:
        raise InputError("batches must hold one batch or more, got none")


def _read(batch: Any, position: int, device: torch.device | None) -> Batch:
    if isinstance(batch, Tensor):
        args, kwargs, target = (batch,), {}, None
    elif isinstance(batch, Mapping):
        args, kwargs = (), {str(key): value for key, value in batch.items()}
        target = next((kwargs[key] for key in ("labels", "label", "target") if key in kwargs), None)
    elif isinstance(batch, (list, tuple)) and batch and any(_is_batch(value) for value in batch):
        args, kwargs = (tuple(batch[:-1]), {}) if len(batch) > 1 else (tuple(batch), {})
        target = batch[-1] if len(batch) > 1 else None
    else:
        args, kwargs, target = (), {}, None
    read = Batch(*(_moved(part, device) for part in (args, kwargs, target)))
    if not any(_is_batch(value) and len(value) for value in (*read.args, *read.kwargs.values())):
        raise InputError(
            f"a batch must be a tensor, a tuple (inputs, target) or a dict of tensors, with one sample or more; batch "
            f"{position} is {_described(batch)}"
        )
    return read


def _is_batch(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dim() > 0


def _moved(value: Any, device: torch.device | None) -> Any:
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {key: _moved(part, device) for key, part in value.items()}
    if isinstance(value, tuple):
        return tuple(_moved(part, device) for part in value)
    return value


def _described(batch: Any) -> str:
    name = type(batch).__name__
    if isinstance(batch, Tensor):
        return f"a tensor of size {list(batch.shape)}"
    if isinstance(batch, (list, tuple, dict)):
        parts = batch.values() if isinstance(batch, dict) else batch
        return f"a {name} of {', '.join(type(part).__name__ for part in parts) or 'nothing'}"
    return f"a {name}"


def usual_loss(output: Any, target: Any) -> Tensor:
    """Cross entropy for classes, mean squared error for values of the output's shape.

    Raises:
        InputError: a target that fits neither.
    """
    scores = first_tensor(output)
    if isinstance(target, Tensor) and fits_classes(scores, target):
        return F.cross_entropy(scores, target)
    if isinstance(target, Tensor) and target.is_floating_point() and target.shape == scores.shape:
        return F.mse_loss(scores, target)
    described = (
        f"{target.dtype} {list(target.shape)}" if isinstance(target, Tensor) else type(target).__name__
    )
    raise InputError(
        f"a loss is known for classes or for values of the output's size {list(scores.shape)}, got a target of "
        f"{described}: give --loss"
    )


def fits_classes(scores: Tensor, target: Tensor) -> bool:
    """Whether targets are class numbers of these scores."""
    return (
        target.dtype == torch.int64
        and target.shape == (*scores.shape[:1], *scores.shape[2:])
        and scores.dim() > 1
    )
