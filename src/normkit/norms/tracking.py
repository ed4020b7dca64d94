"""Which statistics a batch norm takes, and when its running ones move.

What a layer decides for itself are its switches (`Tracking`). What is decided around it is the scope: the
domain whose set of running statistics is meant, and whether batches are gathered until an accumulation ends.
A forward pass inside a backward pass is a recomputation (activation checkpointing): it moves nothing.
"""

# What layers keep from their users is open to the accumulation that gathers from them.
# pyright: reportPrivateUsage=false

from __future__ import annotations

import threading
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from normkit.errors import unknown
from normkit.kernels.recomputation import recall, recomputing
from normkit.statistics import Moments, update_running_

if TYPE_CHECKING:
    from typing_extensions import Self

_CHOICES = {
    "training_statistics": ("batch", "running"),
    "evaluation_statistics": ("running", "batch", "blend"),
    "guard": (None, "nonfinite"),
}


@dataclass(frozen=True)
class Tracking:
    """The switches of a layer, under the names of its arguments; the defaults are torch's behaviour."""

    training_statistics: str = "batch"
    evaluation_statistics: str = "running"
    prior: float = 16.0
    update_statistics: bool = True
    guard: str | None = None
    frozen: bool = False
    plain: bool = field(init=False, repr=False)  # whether all are at their defaults

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            if (value := getattr(self, name)) not in choices:
                raise unknown(name, value, map(str, choices))
        if not self.prior > 0:
            raise ValueError(f"prior counts samples and must be positive, got {self.prior}")
        switches = [f for f in fields(self) if f.init]
        object.__setattr__(self, "plain", all(getattr(self, f.name) == f.default for f in switches))

    @property
    def needs_running(self) -> bool:
        """Whether a layer without running statistics could not do this."""
        statistics = (self.training_statistics, self.evaluation_statistics)
        return self.guard is not None or statistics[0] == "running" or statistics[1] == "blend"

    def statistics(self, training: bool) -> str:
        """Those that normalize."""
        if self.frozen:
            return "running"
        return self.training_statistics if training else self.evaluation_statistics

    def __str__(self) -> str:
        """What is not at its default, as a layer's repr shows it."""
        shown = [f for f in fields(self) if f.init and getattr(self, f.name) != f.default]
        return "".join(f", {f.name}={getattr(self, f.name)!r}" for f in shown)


class _Scope(threading.local):
    """What holds around the layers, in this thread."""

    domain: str | None = None
    accumulating: int = 0
    plain: bool = True

    def settle(self) -> None:
        self.plain = self.domain is None and not self.accumulating


scope = _Scope()


def check_momentum(
    momentum: float | None, running_mean: Tensor | None, num_batches_tracked: Tensor | None
) -> None:
    """A cumulative average must know of how many batches it is."""
    if momentum is None and running_mean is not None and num_batches_tracked is None:
        raise ValueError("momentum=None averages over all batches: it needs num_batches_tracked")


@contextmanager
def domain(name: str) -> Generator[None, None, None]:
    """Choose a set of running statistics: every domain has its own, the affine parameters are shared.

    Every batch norm inside trains and evaluates with the statistics of this domain. A set is made when a layer
    first trains in the domain, and is part of `state_dict` from then on, under the names of the buffers and
    `@name`. Outside, layers have their ordinary statistics, which training in a domain leaves alone. It holds
    in this thread.

    Args:
        name: of the domain; not empty, and without a dot, which separates the names of modules.

    Raises:
        ValueError: an empty name or one with a dot; by a layer that evaluates in a domain it has never
            trained in.

    Li et al., "Revisiting Batch Normalization For Practical Domain Adaptation", 2016; Chang et al.,
    "Domain-Specific Batch Normalization for Unsupervised Domain Adaptation", 2019, whose affine parameters
    are per domain too.

    >>> from normkit import BatchNorm1d
    >>> layer = BatchNorm1d(3)
    >>> with domain("sketch"):
    ...     y = layer(torch.randn(8, 3))
    >>> layer.domains, layer.num_batches_tracked.item()
    (('sketch',), 0)
    """
    if not name or "." in name:
        raise ValueError(f"the name of a domain is not empty and has no dot, got {name!r}")
    outer, scope.domain = scope.domain, name
    scope.settle()
    try:
        yield
    finally:
        scope.domain = outer
        scope.settle()


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


class Running(NamedTuple):
    """One set of running statistics."""

    mean: Tensor
    var: Tensor
    num_batches_tracked: Tensor


class Tracked(torch.nn.Module):
    """What batch norm and its relatives share: running statistics, and the switches that rule them."""

    tracking = Tracking()
    _corrects = False  # whether training by batch statistics depends on the running ones
    _pending: list[tuple[str | None, Tensor, int | Tensor]] | None = None

    # Of torch's class, which stands beside this one.
    running_mean: Tensor | None
    running_var: Tensor | None
    num_batches_tracked: Tensor | None
    num_batches_skipped: Tensor | None
    track_running_stats: bool
    momentum: float | None

    def _follow(self, tracking: Tracking) -> None:
        """Take these switches, once the layer's own buffers are there."""
        if self.running_mean is None and tracking.needs_running:
            raise ValueError(
                f"{str(tracking)[2:]} needs running statistics, got track_running_stats=False: set it to True"
            )
        self.tracking = tracking
        if tracking.guard:
            assert self.num_batches_tracked is not None
            self.register_buffer("num_batches_skipped", torch.zeros_like(self.num_batches_tracked))
        if self._corrects or tracking.training_statistics == "running":
            for name, start in zip(_BUFFERS, self._fresh(), strict=True):
                self.register_buffer(f"previous_{name}", start, persistent=False)

    def freeze(self) -> Self:
        """Normalize by running statistics in training too, and move them no more, whatever `train()` says.

        The affine parameters still learn. Nothing in `state_dict` changes; `unfreeze()` takes it back.
        """
        if self.running_mean is None:
            raise ValueError("freeze needs running statistics, and this layer has track_running_stats=False")
        self.tracking = replace(self.tracking, frozen=True)
        return self

    def unfreeze(self) -> Self:
        """Train by batch statistics again, as before `freeze()`."""
        self.tracking = replace(self.tracking, frozen=False)
        return self

    @property
    def domains(self) -> tuple[str, ...]:
        """The domains that have running statistics in this layer, in the order of their first training."""
        prefix = "running_mean@"
        return tuple(name.removeprefix(prefix) for name in self._buffers if name.startswith(prefix))

    def reset_running_stats(self) -> None:
        """Set running statistics, of every domain, to mean 0 and variance 1, and all counts to 0."""
        super().reset_running_stats()  # pyright: ignore
        for name, buffer in self._buffers.items():
            if buffer is not None and ("@" in name or name == "num_batches_skipped"):
                buffer.fill_(name.startswith("running_var"))

    def extra_repr(self) -> str:
        """The arguments, and the switches that are not at their defaults."""
        return super().extra_repr() + str(self.tracking)

    def _statistics(self) -> str:
        """Those that normalize now: of the batch, where nothing else is there."""
        return "batch" if self.running_mean is None else self.tracking.statistics(self.training)

    def _moves(self) -> bool:
        """Whether a batch moves the running statistics now."""
        switches = self.tracking
        wanted = self.training and switches.update_statistics and not switches.frozen
        return wanted and self.track_running_stats and self.running_mean is not None

    def _running(self, name: str | None) -> Running:
        """The running statistics of a domain; where they are still to be made, what they will start from."""
        if name is None:
            return Running(self.running_mean, self.running_var, self.num_batches_tracked)  # pyright: ignore
        if f"running_mean@{name}" in self._buffers:
            return Running(*(getattr(self, f"{buffer}@{name}") for buffer in _BUFFERS))
        if self._moves():
            return self._fresh()
        raise ValueError(
            f"no running statistics of domain {name!r}: this layer has those of "
            f"{', '.join(map(repr, self.domains)) or 'no domain'}; train it in this domain first"
        )

    def _normalizing(self, moves: bool) -> Running:
        """The running statistics that this forward pass may normalize by, before it moves them.

        Where it does both, its recomputation must find what it found, and not what it left: that is kept.
        """
        now = self._running(scope.domain)
        if not moves or "previous_running_mean" not in self._buffers:
            return now
        kept = (getattr(self, f"previous_{name}") for name in _BUFFERS)
        return Running(*map(recall, now, kept))

    def _fresh(self) -> Running:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        return Running(
            torch.zeros_like(self.running_mean),
            torch.ones_like(self.running_var),
            torch.zeros_like(self.num_batches_tracked),
        )

    def _make_domain(self, name: str) -> None:
        for buffer, start in zip(_BUFFERS, self._fresh(), strict=True):
            self.register_buffer(f"{buffer}@{name}", start)

    def _track(self, stats: Tensor, count: int | Tensor) -> None:
        """Take in the statistics of a batch, after the kernel has returned."""
        if recomputing():
            return
        if self._pending is not None:
            self._pending.append((scope.domain, stats, count))
        else:
            self._move(scope.domain, stats, count)

    def _move(self, name: str | None, stats: Tensor, count: int | Tensor) -> None:
        if name is not None and name not in self.domains:
            self._make_domain(name)
        running = self._running(name)
        skipped = self.num_batches_skipped if self.tracking.guard else None
        update_running_(
            running.mean, running.var, stats, count, self.momentum, running.num_batches_tracked, skipped
        )

    def _move_by_pending(self) -> None:
        """Merge what was gathered, domain by domain, and move once towards each."""
        pending = self._pending or []
        for name in dict.fromkeys(name for name, _, _ in pending):
            batches = [m for of, stats, count in pending if of == name for m in moments_of(stats, count)]
            if self.tracking.guard:
                batches = [self._guarded(batch) for batch in batches]
            merged = batches[0].merge(*batches[1:])
            stats = torch.stack((merged.mean, merged.var(unbiased=False)))
            self._move(name, stats, merged.count.to(torch.int64))

    def _guarded(self, batch: Moments) -> Moments:
        """The batch, or nothing where it is not finite, which is counted."""
        assert self.num_batches_skipped is not None
        assert self.running_mean is not None
        kept = torch.stack((batch.mean, batch.var(unbiased=True))).to(self.running_mean.dtype)
        skip = (batch.count > 1) & ~kept.isfinite().all()
        self.num_batches_skipped += skip
        return Moments(*(t.masked_fill(skip, 0) for t in (batch.count, batch.mean, batch.m2)))

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        """Take in the domains that are there; a guard starts counting where the state knows none."""
        key = prefix + "running_mean@"
        for name in [k.removeprefix(key) for k in state_dict if k.startswith(key)]:
            if name not in self.domains and self.running_mean is not None:
                self._make_domain(name)
        if self.tracking.guard:
            state_dict.setdefault(prefix + "num_batches_skipped", self.num_batches_skipped)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


_BUFFERS = ("running_mean", "running_var", "num_batches_tracked")


def moments_of(stats: Tensor, count: int | Tensor) -> list[Moments]:
    """Of one batch, or of each of several that follow one another: stats (2 or more, C) or (2 or more, K, C)."""
    counts = count if isinstance(count, Tensor) else torch.tensor(count, device=stats.device)
    counts = counts.to(stats.dtype)
    if stats.dim() == 2:
        return [Moments(counts, stats[0], stats[1] * counts)]
    return [Moments(n, mean, var * n) for n, mean, var in zip(counts, stats[0], stats[1], strict=True)]
