"""Which statistics a layer normalizes by, and when its running ones move.

What a layer decides for itself are its switches (`Tracking`); what is decided around it is the `scope`. A forward
pass inside a backward pass is a recomputation (activation checkpointing): it moves nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from normkit.errors import unknown
from normkit.kernels.recomputation import recall, recomputing
from normkit.norms import inputs
from normkit.norms.scope import scope
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
        inputs.check_real(prior=self.prior)
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


def check_momentum(
    momentum: float | None, running_mean: Tensor | None, num_batches_tracked: Tensor | None
) -> None:
    """A cumulative average must know of how many batches it is."""
    if momentum is None and running_mean is not None and num_batches_tracked is None:
        raise ValueError("momentum=None averages over all batches: it needs num_batches_tracked")


class Running(NamedTuple):
    """One set of running statistics."""

    mean: Tensor
    var: Tensor
    num_batches_tracked: Tensor


class Place(NamedTuple):
    """Which statistics of a layer are meant."""

    domain: str | None
    row: int | None = None  # of a layer that has one for each time step


class Tracked(torch.nn.Module):
    """What layers with running statistics share: these, and the switches that rule them."""

    tracking = Tracking()
    _corrects = False  # whether training by batch statistics depends on the running ones
    _pending: list[tuple[Place, Tensor, int | Tensor]] | None = None

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
        if self.track_running_stats:
            for name, buffer in self._buffers.items():
                if buffer is not None and name.startswith(("running_", "num_batches_")):
                    buffer.fill_(name.startswith("running_var"))

    def extra_repr(self) -> str:
        """The arguments, and the switches that are not at their defaults."""
        return super().extra_repr() + str(self.tracking)

    def _statistics(self) -> str:
        """Those that normalize now: of the batch, where nothing else is there."""
        return "batch" if inputs.own_running(self)[0] is None else self.tracking.statistics(self.training)

    def _moves(self) -> bool:
        """Whether a batch moves the running statistics now."""
        switches = self.tracking
        wanted = self.training and switches.update_statistics and not switches.frozen
        return wanted and self.track_running_stats and inputs.own_running(self)[0] is not None

    def _running(self, place: Place) -> Running:
        """The running statistics of a place; where they are still to be made, what they will start from."""
        name = place.domain
        if name is None:
            found = Running(*inputs.own_running(self))  # pyright: ignore
        elif f"running_mean@{name}" in self._buffers:
            found = Running(*(getattr(self, f"{buffer}@{name}") for buffer in _BUFFERS))
        elif self._moves():
            found = self._fresh()
        else:
            raise ValueError(
                f"no running statistics of domain {name!r}: this layer has those of "
                f"{', '.join(map(repr, self.domains)) or 'no domain'}; train it in this domain first"
            )
        return found if place.row is None else Running(*(buffer[place.row] for buffer in found))

    def _normalizing(self, moves: bool, row: int | None = None) -> Running:
        """The running statistics that this forward pass may normalize by, before it moves them.

        Where it does both, its recomputation must find what it found, and not what it left: that is kept.
        """
        now = self._running(Place(scope.domain, row))
        if not moves or "previous_running_mean" not in self._buffers:
            return now
        kept = Running(*(self._buffers[name] for name in PREVIOUS))  # pyright: ignore
        if row is not None:
            kept = Running(*(buffer[row] for buffer in kept))
        return Running(*self._recalled(now, kept))

    def _recalled(self, now: Running, kept: Running) -> Iterable[Tensor]:
        """What normalizes: a copy, which may be part of a graph when the statistics have long moved."""
        return map(recall, now, kept)

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

    def _track(self, stats: Tensor, count: int | Tensor, row: int | None = None) -> None:
        """Take in the statistics of a batch, after the kernel has returned."""
        if recomputing():
            return
        place = Place(scope.domain, row)
        if self._pending is not None:
            self._pending.append((place, stats.detach(), count))  # without the graph that it may be part of
        else:
            self._move(place, stats, count)

    def _move(self, place: Place, stats: Tensor, count: int | Tensor) -> None:
        if place.domain is not None and place.domain not in self.domains:
            self._make_domain(place.domain)
        self._update(self._running(place), stats, count, self._skipped(place))

    def _update(self, running: Running, stats: Tensor, count: int | Tensor, skipped: Tensor | None) -> None:
        batches = running.num_batches_tracked
        update_running_(running.mean, running.var, stats, count, self.momentum, batches, skipped)

    def _skipped(self, place: Place) -> Tensor | None:
        """What the guard counts in."""
        if not self.tracking.guard:
            return None
        assert self.num_batches_skipped is not None
        return self.num_batches_skipped if place.row is None else self.num_batches_skipped[place.row]

    def _move_by_pending(self) -> None:
        """Merge what was gathered, place by place, and move once towards each."""
        pending = self._pending or []
        for place in dict.fromkeys(place for place, _, _ in pending):
            batches = [(stats, count) for of, stats, count in pending if of == place]
            self._move(place, *self._merged(batches, self._skipped(place)))

    def _merged(
        self, batches: list[tuple[Tensor, int | Tensor]], skipped: Tensor | None
    ) -> tuple[Tensor, int | Tensor]:
        """Several batches as one; those that the guard leaves out are counted."""
        parts = [part for stats, count in batches for part in moments_of(stats, count)]
        if skipped is not None:
            parts = [self._guarded(part, skipped) for part in parts]
        if not parts:  # all of them empty, and cut into no sub-batch
            return batches[0][0], 0
        merged = parts[0].merge(*parts[1:])
        return torch.stack((merged.mean, merged.var(unbiased=False))), merged.count.to(torch.int64)

    def _guarded(self, batch: Moments, skipped: Tensor) -> Moments:
        """The batch, or nothing where it is not finite, which is counted."""
        assert self.running_mean is not None
        kept = torch.stack((batch.mean, batch.var(unbiased=True))).to(self.running_mean.dtype)
        skip = (batch.count > 1) & ~kept.isfinite().all()
        skipped += skip
        return Moments(*(t.masked_fill(skip, 0) for t in (batch.count, batch.mean, batch.m2)))

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Copies take no part in an accumulation that goes on while they are made."""
        super().__setstate__({**state, "_pending": None})

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
PREVIOUS = tuple(f"previous_{name}" for name in _BUFFERS)


def moments_of(stats: Tensor, count: int | Tensor) -> list[Moments]:
    """Of one batch, or of each of several that follow one another: stats (2 or more, C) or (2 or more, K, C)."""
    counts = count if isinstance(count, Tensor) else torch.tensor(count, device=stats.device)
    counts = counts.to(stats.dtype)
    if stats.dim() == 2:
        return [Moments(counts, stats[0], stats[1] * counts)]
    return [Moments(n, mean, var * n) for n, mean, var in zip(counts, stats[0], stats[1], strict=True)]
