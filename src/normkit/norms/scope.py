"""What holds around layers: the domain whose running statistics are meant, and whether batches are gathered."""

from __future__ import annotations

import threading
from collections.abc import Generator
from contextlib import contextmanager


class _Scope(threading.local):
    """What holds in this thread."""

    domain: str | None = None
    accumulating: int = 0
    plain: bool = True

    def settle(self) -> None:
        self.plain = self.domain is None and not self.accumulating


scope = _Scope()


@contextmanager
def domain(name: str) -> Generator[None, None, None]:
    """Choose a set of running statistics: every domain has its own, the affine parameters are shared.

    Every layer with running statistics trains and evaluates with those of this domain inside; the reference of a
    virtual batch norm is none, and the same in all domains. A set is made when a layer first trains in the domain,
    and is part of `state_dict` from then on, under the names of the buffers and `@name`. Outside, layers have their
    ordinary statistics, which training in a domain leaves alone. It holds in this thread, and for normkit's layers:
    torch's own know of no domain and move their ordinary statistics, until `accelerate(model)` makes them ours.
    Activation checkpointing repeats a forward pass after the block: open the domain in the function that it is given.

    Args:
        name: of the domain; not empty, and without a dot, which separates the names of modules.

    Raises:
        TypeError: a name that is no string.
        ValueError: an empty name or one with a dot; by a layer that evaluates in a domain it has never
            trained in.

    Li et al., "Revisiting Batch Normalization For Practical Domain Adaptation", 2016; Chang et al.,
    "Domain-Specific Batch Normalization for Unsupervised Domain Adaptation", 2019, whose affine parameters
    are per domain too.

    >>> import torch
    >>> from normkit import BatchNorm1d
    >>> layer = BatchNorm1d(3)
    >>> with domain("sketch"):
    ...     y = layer(torch.randn(8, 3))
    >>> layer.domains, layer.num_batches_tracked.item()
    (('sketch',), 0)
    """
    if not isinstance(name, str):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"the name of a domain is a string, got {name!r}: say domain('sketch')")
    if not name or "." in name:
        raise ValueError(f"the name of a domain is not empty and has no dot, got {name!r}")
    outer, scope.domain = scope.domain, name
    scope.settle()
    try:
        yield
    finally:
        scope.domain = outer
        scope.settle()
