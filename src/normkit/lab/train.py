"""Training one run, so that equal settings give bitwise equal measurements, interrupted or not."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from time import perf_counter
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from normkit.errors import InputError, unknown
from normkit.lab.crew import Crew
from normkit.lab.data import Dataset
from normkit.lab.models import begin, build, check_ghosts, least_batch
from normkit.lab.records import Epoch, Measurement, Run, Settings

OPTIMIZERS = ("adam", "sgd")
ALONE = Crew()

_EVALUATION_BATCH = 1024


class Keeper(Protocol):
    """What keeps a run: the store, or in a worker what sends it there."""

    def run(self, settings: Settings) -> Run | None:
        """The run as far as it is known."""
        ...

    def state(self, settings: Settings) -> dict[str, torch.Tensor] | None:
        """What it continues from, or None where it begins."""
        ...

    def due(self) -> bool:
        """Whether it is time to record."""
        ...

    def record(
        self,
        settings: Settings,
        parameters: int,
        epochs: Sequence[Epoch],
        state: dict[str, torch.Tensor],
    ) -> None:
        """Keep epochs that follow each other, and the state after the last."""
        ...


def train(
    settings: Settings,
    dataset: Dataset,
    store: Keeper | None,
    on_epoch: Callable[[Settings, Epoch], None] | None = None,
    crew: Crew = ALONE,
) -> Run:
    """Train the run that the settings describe, or what the store lacks of it, and return it.

    `on_epoch` gets every epoch as it ends; the store gets those of a second together. The seed decides the
    initial weights, the order of the data and dropout; the norm does not, so runs of one seed are pairs. A
    loss that is not finite ends the run as diverged.

    In a crew every process calls it; the first one alone has a store, and calls `on_epoch`.

    Raises:
        InputError: settings that make no sense, another data set than theirs, a device that is not there.
    """
    assert (store is not None) == crew.leads
    assert settings.processes == crew.size
    run = crew.told(store.run(settings) if store else None)
    if run is not None and run.status != "unfinished":
        return run
    _check(settings, dataset)
    device = _device(settings.device)
    with conditions(settings.threads, device):
        session = Session(settings, dataset, device, crew)
        state, done = crew.told((store.state(settings), store.run(settings)) if store else (None, None))
        epochs = done.epochs if done else ()
        if state is not None:
            session.load(state, steps=sum(epoch.steps for epoch in epochs))
        waiting: list[Epoch] = []
        for number in range(len(epochs) + 1, settings.epochs + 1):
            epoch = session.epoch(number)
            waiting.append(epoch)
            ends = epoch.diverged or number == settings.epochs
            if crew.told(ends or (store is not None and store.due())):
                state = session.state()
                if store is not None:
                    store.record(settings, session.parameters, waiting, state)
                waiting = []
            if store is not None and on_epoch is not None:
                on_epoch(settings, epoch)
            if ends:
                break
    run = crew.told(store.run(settings) if store else None)
    assert run is not None
    return run


class Session:
    """A run in memory: the model, the optimizer, the generators, and the data that they work on."""

    def __init__(self, settings: Settings, dataset: Dataset, device: torch.device, crew: Crew) -> None:
        weights, order = np.random.SeedSequence(settings.seed).generate_state(2)
        torch.manual_seed(int(weights))  # dropout goes on where the weights end
        self.order = torch.Generator().manual_seed(int(order))
        self.model = build(
            settings.model,
            norm=settings.norm,
            placement=settings.placement,
            input_shape=dataset.x_train.shape[1:],
            classes=dataset.classes,
            dropout=settings.dropout,
        ).to(device)
        self.batch_size = settings.batch_size
        self.device = device
        self.steps = 0
        self.x, self.y = _tensors(dataset.x_train, dataset.y_train, device)
        part = torch.randperm(len(self.x), generator=torch.Generator().manual_seed(0))
        part = part[: len(dataset.x_val)].to(device)
        self.train_part = self.x[part], self.y[part]
        begin(self.model, settings.norm, self.train_part[0][: max(2, settings.batch_size)])
        self.crew, self.trained = crew, crew.wrap(self.model)
        if crew.size > 1:  # dropout differs between the parts of a batch
            torch.manual_seed(int(weights) + crew.rank)
        self.optimizer = _optimizer(settings, self.model)
        self.val_split = _tensors(dataset.x_val, dataset.y_val, device)

    @property
    def parameters(self) -> int:
        """How many numbers are learned."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    def epoch(self, number: int) -> Epoch:
        """One pass over the training split: a measurement after each quarter, one before the first step."""
        begun, seconds, finite = self.steps, 0.0, True
        measurements = [self._measure()] if begun == 0 else []
        for batches in self._quarters():
            started = perf_counter()
            finite = all(map(self._step, batches))
            self._synchronize()
            seconds += perf_counter() - started
            if finite:
                measurements.append(self._measure())
            if not finite or not _is_finite(measurements[-1]):
                break
        kept = tuple(filter(_is_finite, measurements))
        diverged = not finite or len(kept) < len(measurements)
        return Epoch(number, self.steps - begun, seconds, kept, diverged)

    def state(self) -> dict[str, torch.Tensor]:
        """Everything that the next step depends on, under flat names."""
        tensors = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        for index, of_parameter in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{name}": tensor for name, tensor in of_parameter.items()}
        tensors["generator.order"] = self.order.get_state()
        for kind, state in self._generators().items():
            for rank, of_rank in enumerate(self.crew.gathered(state)):
                tensors[_ranked(f"generator.{kind}", rank)] = of_rank
        return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}

    def load(self, state: dict[str, torch.Tensor], *, steps: int) -> None:
        """Go on from where `state` was taken, after so many steps."""
        self.steps = steps
        of_parameters: dict[int, dict[str, torch.Tensor]] = {}
        for name, tensor in state.items():
            if name.startswith("optimizer."):
                _, index, key = name.split(".")
                of_parameters.setdefault(int(index), {})[key] = tensor
        groups = self.optimizer.state_dict()["param_groups"]  # follow from the settings
        self.optimizer.load_state_dict({"state": of_parameters, "param_groups": groups})
        model = {name.removeprefix("model."): t for name, t in state.items() if name.startswith("model.")}
        self.model.load_state_dict(model)
        self.order.set_state(state["generator.order"])
        torch.set_rng_state(state[_ranked("generator.cpu", self.crew.rank)])
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(state[_ranked("generator.cuda", self.crew.rank)], self.device)

    def _generators(self) -> dict[str, torch.Tensor]:
        """The states of the generators that dropout draws from."""
        states = {"cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            states["cuda"] = torch.cuda.get_rng_state(self.device)
        return states

    def _quarters(self) -> Iterator[tuple[torch.Tensor, ...]]:
        """The epoch's batches as indices, in four parts. A last batch of one sample is left out.

        Batch norm could not take it, and the other norms must see the same data. Of a crew, so is one that
        does not have a sample for each process.
        """
        batches = torch.randperm(len(self.x), generator=self.order).to(self.device).split(self.batch_size)
        if len(batches[-1]) < self.crew.size or len(batches[-1]) == 1 < self.batch_size:
            batches = batches[:-1]
        for start, end in pairwise(len(batches) * quarter // 4 for quarter in range(5)):
            if start < end:
                yield batches[start:end]

    def _step(self, batch: torch.Tensor) -> bool:
        """Take one optimizer step, unless the loss is not finite."""
        part = self.crew.part(batch)
        loss = F.cross_entropy(self.trained(self.x[part]), self.y[part])
        share = len(part) * self.crew.size / len(batch)  # 1, but for parts that are not alike
        if share != 1:
            loss = loss * share
        if not math.isfinite(self.crew.total(loss)):
            return False
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.steps += 1
        return True

    def _measure(self) -> Measurement:
        self.model.eval()
        measured = Measurement(
            self.steps, *self._evaluate(*self.train_part), *self._evaluate(*self.val_split)
        )
        self.model.train()
        return measured

    @torch.no_grad()
    def _evaluate(self, x: torch.Tensor, y: torch.Tensor) -> tuple[float, float]:
        """Mean loss and accuracy."""
        loss, right = 0.0, 0
        for samples, labels in zip(x.split(_EVALUATION_BATCH), y.split(_EVALUATION_BATCH), strict=True):
            logits = self.model(samples)
            loss += F.cross_entropy(logits, labels, reduction="sum").item()
            right += int((logits.argmax(1) == labels).sum())
        return loss / len(y), right / len(y)

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def _ranked(name: str, rank: int) -> str:
    """A name for each process; the first one's is as if it were alone."""
    return f"{name}.{rank}" if rank else name


def _tensors(
    x: NDArray[np.float32], y: NDArray[np.int64], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.from_numpy(x).to(device), torch.from_numpy(y).to(device)


def _is_finite(measurement: Measurement) -> bool:
    return math.isfinite(measurement.train_loss) and math.isfinite(measurement.val_loss)


def _optimizer(settings: Settings, model: torch.nn.Module) -> torch.optim.Optimizer:
    """Adam, or SGD with momentum 0.9; the weight decay of both is an L2 term in the gradient."""
    if settings.optimizer == "adam":
        return torch.optim.Adam(model.parameters(), lr=settings.lr, weight_decay=settings.weight_decay)
    return torch.optim.SGD(
        model.parameters(), lr=settings.lr, momentum=0.9, weight_decay=settings.weight_decay
    )


@contextmanager
def conditions(threads: int, device: torch.device) -> Generator[None]:
    """The run's own threads, generators and deterministic kernels; the caller's afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with (
            torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
            torch.backends.cudnn.flags(enabled=True, deterministic=True),
        ):
            yield
    finally:
        torch.set_num_threads(before)


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError) as refusal:
        reason = str(refusal).splitlines()[0]
        raise InputError(f"device {name!r} is not available ({reason}): use cpu") from refusal
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"device must be cpu or cuda, got {name!r}")
    return device


def _check(settings: Settings, dataset: Dataset) -> None:
    """Refuse what no run can be trained with; the model's own settings are checked where it is built."""
    if (settings.data_fingerprint, settings.input_scaling) != (dataset.fingerprint, dataset.scaling):
        raise InputError(
            f"the run is for {settings.data} scaled by {settings.input_scaling!r}, "
            f"the data given is {dataset.name} scaled by {dataset.scaling!r}, or its content has changed"
        )
    if settings.optimizer not in OPTIMIZERS:
        raise unknown("optimizer", settings.optimizer, OPTIMIZERS)
    least = least_batch(settings.norm)
    samples = len(dataset.x_train)
    if not least <= settings.batch_size <= samples:
        raise InputError(
            f"batch size must be {least} to {samples}, the training samples of {dataset.name}, "
            f"for norm {settings.norm!r}; got {settings.batch_size}"
        )
    check_ghosts(settings.norm, settings.batch_size, samples)
    for name, value, low in (
        ("epochs", settings.epochs, 1),
        ("threads", settings.threads, 1),
        ("seed", settings.seed, 0),
    ):
        if value < low:
            raise InputError(f"{name} must be {low} or more, got {value}")
    if not 0 < settings.lr < math.inf:
        raise InputError(f"learning rate must be above 0 and finite, got {settings.lr:g}")
    if not 0 <= settings.weight_decay < math.inf:
        raise InputError(f"weight decay must be 0 or more and finite, got {settings.weight_decay:g}")
