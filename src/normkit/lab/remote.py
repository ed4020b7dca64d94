"""Runs trained by workers, and recorded in the process that owns the store.

A worker has no store. It is told what the store knows of its run, and has a `Sender` in the store's place, whose
records go to the owner as they would go into the store: once a second and at the end. So a run whose worker is killed
goes on from what was recorded, by another worker.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from time import monotonic

import numpy as np
import safetensors.torch
import torch

from normkit.lab.data import Dataset
from normkit.lab.records import Epoch, Record, Run, Settings
from normkit.lab.store import EVERY, Store
from normkit.lab.train import train
from normkit.lab.workers import cluster, pool
from normkit.lab.workers.interrupts import held
from normkit.lab.workers.task import Outcome, Runner, Tell


class Workers:
    """Who trains the runs of a comparison, where this process does not.

    Args:
        runner: has tasks done.
        beside: whether runs are trained beside each other; their times, which tell nothing then, are marked.
        every: seconds between two records of a run.
    """

    def __init__(self, runner: Runner, *, beside: bool, every: float = EVERY) -> None:
        self._runner, self._beside, self._every = runner, beside, every

    @classmethod
    def here(cls, workers: int) -> Workers:
        """So many processes on this machine."""
        return cls(partial(pool.run, workers=workers), beside=workers > 1)

    @classmethod
    def on_cluster(cls, address: str, threads: int) -> Workers:
        """Those of a Ray cluster. Records come with the end of a run, so one is enough.

        Raises:
            InputError: a cluster that cannot be joined.
        """
        return cls(cluster.connect(address, threads), beside=True, every=math.inf)

    @property
    def kept(self) -> str:
        """What an interrupt leaves in the store, for a person."""
        return "finished runs are kept" if math.isinf(self._every) else "all but the last second is kept"

    def train(
        self,
        settings: Iterable[Settings],
        dataset: Dataset,
        store: Store,
        on_record: Callable[[Record], None],
    ) -> list[Outcome[RemoteRun]]:
        """Train runs into a store, tell of each record that is in it, and return what came of those that failed."""
        tasks = [RemoteRun(of_run, store, on_record, self._beside, self._every) for of_run in settings]
        with closing(self._runner(tasks, shared=dataset)) as outcomes:
            return [outcome for outcome in outcomes if outcome.problem]


@dataclass(frozen=True)
class RemoteRun:
    """A run as a task."""

    settings: Settings
    store: Store
    on_record: Callable[[Record], None]
    beside: bool
    every: float

    @property
    def key(self) -> str:
        """Its name in the store."""
        return self.settings.key

    def __str__(self) -> str:
        return f"the run of {self.settings.norm}, lr {self.settings.lr:g}, seed {self.settings.seed}"

    def order(self) -> RunOrder:
        """The run from where it stands."""
        state = self.store.packed_state(self.settings)  # drops the epochs of one that is lost
        known = self.store.run(self.settings)
        return RunOrder(self.settings, known, state, self.beside, self.every)

    def heard(self, message: Record) -> None:
        """Record what was trained; an interrupt waits for it."""
        with held():
            self.store.keep(message)
        self.on_record(message)


@dataclass(frozen=True)
class RunOrder:
    """A run to train, and what is known of it."""

    settings: Settings
    known: Run | None
    state: bytes | None
    beside: bool
    every: float

    def carry_out(self, shared: Dataset, tell: Tell) -> None:
        """Train what is missing, on the data set that all runs share; every record is told."""
        train(self.settings, _writable(shared), Sender(self, tell))


class Sender:
    """What a worker has in the place of the store."""

    def __init__(self, order: RunOrder, tell: Tell) -> None:
        self._order, self._tell = order, tell
        self._run = order.known
        self._told = monotonic()

    def run(self, settings: Settings) -> Run | None:
        """The run as far as the owner knows it."""
        assert settings == self._order.settings
        return self._run

    def state(self, settings: Settings) -> dict[str, torch.Tensor] | None:
        """The state that it continues from, or None where it begins."""
        assert settings == self._order.settings
        return None if self._order.state is None else safetensors.torch.load(self._order.state)

    def due(self) -> bool:
        """Whether enough time has gone by since something was told, or the order came."""
        return monotonic() - self._told >= self._order.every

    def record(
        self,
        settings: Settings,
        parameters: int,
        epochs: Sequence[Epoch],
        state: dict[str, torch.Tensor],
    ) -> None:
        """Tell the owner."""
        new = tuple(replace(epoch, shared=self._order.beside) for epoch in epochs)
        self._tell(Record(settings, parameters, new, safetensors.torch.save(state)))
        self._run = Run.of(settings, parameters, (*(self._run.epochs if self._run else ()), *new))
        self._told = monotonic()


def _writable(dataset: Dataset) -> Dataset:
    """The data set with arrays that torch takes: a cluster hands out memory that is only for reading."""
    names = ("x_train", "y_train", "x_val", "y_val")
    return replace(dataset, **{name: np.require(getattr(dataset, name), requirements="W") for name in names})
