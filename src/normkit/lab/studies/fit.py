"""Training a network for a study: plain, the same for every arm, with instruments that look on.

The seed decides the initial weights, the order of the data and dropout, and nothing else does: runs of one seed
are pairs, whatever their norm, rate or batch size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normkit.lab.data import Dataset, load
from normkit.lab.scaling import scale

_EVALUATION_BATCH = 1024  # samples

Loss = Callable[[Tensor, Tensor], Tensor]  # from outputs and targets to their mean loss
Score = Callable[
    [Tensor, Tensor], float
]  # from the outputs and targets of a split to a number, more is better


@dataclass(frozen=True)
class Samples:
    """What to train on and what to validate on; the first axis is the sample's, the others are the network's."""

    x: Tensor
    y: Tensor
    x_val: Tensor
    y_val: Tensor

    @classmethod
    def of(cls, dataset: Dataset) -> Samples:
        """A data set's splits as tensors."""
        return cls(*map(torch.from_numpy, (dataset.x_train, dataset.y_train, dataset.x_val, dataset.y_val)))

    def first(self, count: int, *, val: int = 500, seed: int = 0) -> Samples:
        """At most `count` training and `val` validation samples, drawn by a seed of their own."""
        generator = torch.Generator().manual_seed(seed)
        kept = torch.randperm(len(self.x), generator=generator)[:count]
        kept_val = torch.randperm(len(self.x_val), generator=generator)[:val]
        return Samples(self.x[kept], self.y[kept], self.x_val[kept_val], self.y_val[kept_val])


@lru_cache(maxsize=2)
def scaled(data: str, scaling: str = "standard") -> Dataset:
    """A data set with its inputs scaled; loaded once in a process."""
    return scale(scaling, load(data))


def chance(dataset: Dataset) -> float:
    """Validation accuracy of the best constant answer: the share of the most frequent class."""
    return float(np.bincount(dataset.y_val).max()) / len(dataset.y_val)


def accuracy(outputs: Tensor, targets: Tensor) -> float:
    """The share of targets whose class scores highest; the target -100 is padding, as in torch's cross-entropy."""
    counted = targets != -100
    return float((outputs.argmax(1) == targets)[counted].double().mean())


@dataclass(frozen=True)
class Recipe:
    """How to train; everything but the network, the data and the seed."""

    steps: int
    lr: float
    batch_size: int = 64
    optimizer: Literal["sgd", "adam"] = "sgd"
    momentum: float = 0.9  # of sgd
    weight_decay: float = 0.0  # an L2 term in the gradient
    evaluate_every: int = 0  # steps; 0: before the first step and after the last alone
    loss: Loss = F.cross_entropy
    score: Score = accuracy


@dataclass(frozen=True)
class Reading:
    """Both splits in evaluation mode, after so many steps."""

    step: int
    train_loss: float
    train_score: float
    val_loss: float
    val_score: float


@dataclass(frozen=True)
class Training:
    """What a training went through. A loss that is not finite ended it, and stands nowhere in here."""

    network: nn.Module
    readings: tuple[Reading, ...]
    batch_losses: tuple[float, ...]  # in training mode, a step each, before the step is taken
    diverged: bool

    @property
    def last(self) -> Reading:
        """The last reading that was finite."""
        return self.readings[-1]

    def steps_to(self, score: float) -> int | None:
        """The first step at which the validation score was reached; None where it never was."""
        return next((reading.step for reading in self.readings if reading.val_score >= score), None)


@dataclass
class Moment:
    """A training at one step, as instruments see it. They leave everything as it is, random numbers too."""

    network: nn.Module
    optimizer: torch.optim.Optimizer
    loss: Loss
    x: Tensor  # of the step's batch
    y: Tensor
    step: int  # steps taken before this one


class Instrument:
    """Looks on at every step: gradients are there before it, and parameters have moved after it."""

    def before(self, moment: Moment) -> None:
        """The batch's gradients are in `.grad`, the parameters are those that they were taken at."""

    def after(self, moment: Moment) -> None:
        """The optimizer has moved the parameters."""


def fit(
    make: Callable[[], nn.Module],
    samples: Samples,
    recipe: Recipe,
    *,
    seed: int,
    instruments: Sequence[Instrument] = (),
) -> Training:
    """Train what `make` builds, under the seed's random numbers; nothing else in the process is touched.

    Every batch is whole: what an epoch has left over is not trained on, so that a step is the same everywhere.
    """
    if not 1 <= recipe.batch_size <= len(samples.x):
        raise ValueError(f"a batch must have 1 to {len(samples.x)} samples, got {recipe.batch_size}")
    with seeded(seed) as order:
        network = make()
        optimizer = _optimizer(recipe, network)
        validated = len(samples.x_val)  # as many of the training samples are read
        part = samples.first(validated, val=validated)
        readings = [_read(network, part, recipe, 0)]
        losses: list[float] = []
        for step, batch in zip(range(recipe.steps), _batches(order, samples, recipe), strict=False):
            moment = Moment(network, optimizer, recipe.loss, samples.x[batch], samples.y[batch], step)
            loss = _step(moment, instruments)
            if not math.isfinite(loss):
                return Training(network, _finite(readings), tuple(losses), diverged=True)
            losses.append(loss)
            if step + 1 == recipe.steps or _is_due(step + 1, recipe.evaluate_every):
                readings.append(_read(network, part, recipe, step + 1))
                if not math.isfinite(readings[-1].train_loss + readings[-1].val_loss):
                    return Training(network, _finite(readings), tuple(losses), diverged=True)
    return Training(network, _finite(readings), tuple(losses), diverged=False)


@contextmanager
def seeded(seed: int) -> Generator[torch.Generator]:
    """Random numbers of a seed: torch's own for weights and dropout, and a generator for the order of the data."""
    weights, order = np.random.SeedSequence(seed).generate_state(2)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(weights))
        yield torch.Generator().manual_seed(int(order))


def _batches(order: torch.Generator, samples: Samples, recipe: Recipe) -> Iterator[Tensor]:
    """Indices of whole batches, a new order each epoch, without an end."""
    whole = len(samples.x) // recipe.batch_size
    while True:
        yield from torch.randperm(len(samples.x), generator=order).split(recipe.batch_size)[:whole]


def _is_due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _step(moment: Moment, instruments: Sequence[Instrument]) -> float:
    """Take a step, unless the loss is not finite, and return the loss."""
    loss = moment.loss(moment.network(moment.x), moment.y)
    value = loss.item()
    if math.isfinite(value):
        moment.optimizer.zero_grad()
        loss.backward()
        for instrument in instruments:
            instrument.before(moment)
        moment.optimizer.step()
        for instrument in instruments:
            instrument.after(moment)
    return value


def _optimizer(recipe: Recipe, network: nn.Module) -> torch.optim.Optimizer:
    parameters, decay = network.parameters(), recipe.weight_decay
    if recipe.optimizer == "adam":
        return torch.optim.Adam(parameters, lr=recipe.lr, weight_decay=decay)
    return torch.optim.SGD(parameters, lr=recipe.lr, momentum=recipe.momentum, weight_decay=decay)


@torch.no_grad()
def _read(network: nn.Module, part: Samples, recipe: Recipe, step: int) -> Reading:
    network.eval()
    values: list[float] = []
    for x, y in ((part.x, part.y), (part.x_val, part.y_val)):
        outputs = torch.cat([network(chunk) for chunk in x.split(_EVALUATION_BATCH)])
        values += [recipe.loss(outputs, y).item(), recipe.score(outputs, y)]
    network.train()
    return Reading(step, *values)


def _finite(readings: Sequence[Reading]) -> tuple[Reading, ...]:
    return tuple(r for r in readings if math.isfinite(r.train_loss) and math.isfinite(r.val_loss))
