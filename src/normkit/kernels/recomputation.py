"""Forward passes that activation checkpointing repeats inside a backward pass."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def recomputing() -> bool:
    """Whether this forward pass runs inside a backward pass, for activations that were not kept.

    Also a forward pass of its own accord that a hook of a backward pass makes: nothing tells the two apart. While a
    compiler traces, the answer is no, for it says nothing of the run.
    """
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1  # pyright: ignore


def recall(now: Tensor, kept: Tensor | None = None) -> Tensor:
    """A copy of what stands now, for a forward pass that changes it; the recomputation gets the same again.

    `kept` is where it is kept for that, in place; without it the copy is all. An operator of its own where a compiler
    traces: it asks when it runs, and no compiler can take what has changed since for what was copied.
    """
    if torch.compiler.is_compiling():
        return torch.ops.normkit.recall(now, kept)
    return _recall(now, kept)


def recall_once(now: Sequence[Tensor], kept: Sequence[Tensor]) -> Sequence[Tensor]:
    """The same for a forward pass that is done with what it gets when it changes it: what stands there itself.

    No compiler traces it.
    """
    if recomputing():
        return kept
    torch._foreach_copy_(list(kept), list(now))  # in one operation  # pyright: ignore
    return now


def _recall(now: Tensor, kept: Tensor | None) -> Tensor:
    if kept is None:
        return now.detach().clone()
    if not recomputing():
        kept.copy_(now)
    return kept.clone()


_operator = torch.library.custom_op(
    "normkit::recall", _recall, mutates_args=("kept",), schema="(Tensor now, Tensor(a!)? kept) -> Tensor"
)


@_operator.register_fake
def _(now: Tensor, kept: Tensor | None) -> Tensor:
    return torch.empty_like(now)
