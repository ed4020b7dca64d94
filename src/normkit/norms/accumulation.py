"""Gradient accumulation: the micro-batches of a step move running statistics as one batch."""

# What layers keep from their users is open to the accumulation that gathers from them.
# pyright: reportPrivateUsage=false

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

import torch

from normkit.norms.scope import scope
from normkit.norms.tracking import Tracked


@contextmanager
def accumulate(model: torch.nn.Module) -> Generator[None, None, None]:
    r"""Gather the batches of a gradient accumulation, and move running statistics once, at the end.

    They move towards the moments of all micro-batches together, merged exactly (`Moments.merge`), as if all
    had been one batch. Each micro-batch is still normalized by its own statistics. Where the block raises,
    nothing has changed.

    Args:
        model: its batch norms, of every kind, are gathered; other models go on as usual.

    Raises:
        ValueError: a layer of another kind that has running statistics, which would move with every micro-batch.
        RuntimeError: a model that is inside such a block already.

    >>> from normkit import BatchNorm1d
    >>> layer = BatchNorm1d(1, momentum=1.0)
    >>> with accumulate(layer):
    ...     for batch in (torch.tensor([[1.0], [2.0]]), torch.tensor([[6.0]]).expand(2, 1)):
    ...         y = layer(batch)
    >>> layer.running_mean.item(), layer.num_batches_tracked.item()
    (3.75, 1)
    """
    layers = _tracked_layers(model)
    for layer in layers:
        layer._pending = []
    scope.accumulating += 1
    scope.settle()
    try:
        yield
        for layer in layers:
            layer._move_by_pending()
    finally:
        scope.accumulating -= 1
        scope.settle()
        for layer in layers:
            layer._pending = None


def _tracked_layers(model: torch.nn.Module) -> list[Tracked]:
    found: list[Tracked] = []
    for name, module in model.named_modules():
        if isinstance(module, Tracked):
            if module._pending is not None:
                raise RuntimeError(
                    f"accumulate: {name or 'the model'} is accumulating already: leave that first"
                )
            found.append(module)
        elif isinstance(module, torch.nn.modules.batchnorm._NormBase) and module.track_running_stats:  # pyright: ignore[reportPrivateUsage]
            kind = f"{type(module).__module__}.{type(module).__name__}"
            raise ValueError(
                f"accumulate gathers the batch norms of normkit, but {name or 'the model'} is {kind}, which moves "
                "with every batch: replace it by one of them"
            )
    return found
