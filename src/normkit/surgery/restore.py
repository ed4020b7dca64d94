"""What a model was, so that it can be again, to the bit."""

from __future__ import annotations

import copy
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from normkit.surgery.freeze import Frozen

if TYPE_CHECKING:
    from typing_extensions import Self


class Saved:
    """Copies of tensors of a model, which go back into the same tensors."""

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        self._tensors = [(tensor, tensor.detach().clone()) for tensor in tensors]

    @torch.no_grad()
    def restore(self) -> None:
        """Give the tensors the values that they had."""
        for tensor, value in self._tensors:
            tensor.copy_(value)


class Undoable:
    """The result of a change to a model: `undo()` takes it back, and so does the end of a `with` block."""

    def __init__(self, *saved: Saved) -> None:
        self._saved = saved

    def undo(self) -> None:
        """Give the model the values that it had before the change."""
        for saved in self._saved:
            saved.restore()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.undo()


@contextmanager
def kept(model: nn.Module, training: Iterable[nn.Module] = ()) -> Generator[None, None, None]:
    """All buffers of a model stay what they are, however this ends; inside, these modules alone are in training mode.

    Modes are set one by one, for `train()` may be a module's own. What is frozen by `freeze` stays so.
    """
    alone = set(training)
    modes = [(module, module.training) for module in model.modules() if not isinstance(module, Frozen)]
    saved = [(module, dict(module._buffers)) for module in model.modules()]  # pyright: ignore[reportPrivateUsage]
    values = Saved(model.buffers())
    try:
        for module, _ in modes:
            module.training = module in alone
        yield
    finally:
        for module, mode in modes:
            module.training = mode
        for module, buffers in saved:  # also where a forward pass has put other tensors in their places
            module._buffers.clear()  # pyright: ignore[reportPrivateUsage]
            module._buffers.update(buffers)  # pyright: ignore[reportPrivateUsage]
        values.restore()


class Snapshot:
    """A model as it is, to go back to: classes and attributes of its modules, and the values of its tensors.

    It holds references and copies nothing large: who changes values puts new tensors in place of the old.
    """

    def __init__(self, model: nn.Module) -> None:
        self._modules = [(module, type(module), _apart(vars(module))) for module in model.modules()]
        self._values = [(parameter, parameter.data) for parameter in model.parameters()]

    def restore(self) -> None:
        """Make the model what it was."""
        for module, kind, attributes in self._modules:
            module.__class__ = kind
            module.__dict__ = _apart(attributes)
        for parameter, data in self._values:
            parameter.data = data


@contextmanager
def whole_or_nothing(model: nn.Module) -> Generator[Snapshot, None, None]:
    """Where the block raises, the model is as it was."""
    before = Snapshot(model)
    try:
        yield before
    except BaseException:
        before.restore()
        raise


def _apart(attributes: dict[str, Any]) -> dict[str, Any]:
    """Attributes whose containers can be changed without changing these."""
    return {k: copy.copy(v) if isinstance(v, (dict, list, set)) else v for k, v in attributes.items()}
