"""The records that pass between the lab's rooms: what a run is asked to do, and what it measured."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Settings:
    """Everything that decides the outcome of one training run; equal settings give bitwise equal results."""

    data: str  # name of the data set, or path of the .npz file
    data_fingerprint: str  # of the arrays themselves: a file that changes is other data
    model: str
    norm: str
    placement: str
    input_scaling: str
    batch_size: int
    lr: float
    optimizer: str
    dropout: float
    weight_decay: float
    epochs: int
    seed: int
    device: str
    threads: int
    versions: str  # of normkit and torch, which decide the last bits
    processes: int = 1  # that train the run together, each on its part of every batch

    @property
    def key(self) -> str:
        """The run's name in the store: a digest of every setting."""
        settings = dict(vars(self))
        if self.processes == 1:  # as runs were named before there could be more
            del settings["processes"]
        text = json.dumps(settings, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Measurement:
    """One evaluation, in evaluation mode, on the validation split and on an equally large training part."""

    step: int  # optimizer steps taken so far
    train_loss: float
    train_accuracy: float
    val_loss: float
    val_accuracy: float


@dataclass(frozen=True)
class Epoch:
    """One pass over the training split: what one transaction of the store holds."""

    number: int  # from 1
    steps: int  # optimizer steps in this epoch
    seconds: float  # of training alone, evaluation left out
    measurements: tuple[Measurement, ...]
    diverged: bool  # a loss that is not finite ends the run in this epoch
    shared: bool = False  # the machine, with other runs: the seconds then say nothing of this one


@dataclass(frozen=True)
class Run:
    """A run as the store knows it."""

    settings: Settings
    parameters: int
    epochs: tuple[Epoch, ...]
    status: Literal["unfinished", "finished", "diverged"]

    @classmethod
    def of(cls, settings: Settings, parameters: int, epochs: tuple[Epoch, ...]) -> Run:
        """A run with the status that its epochs give it."""
        if epochs[-1].diverged:
            return cls(settings, parameters, epochs, "diverged")
        return cls(
            settings, parameters, epochs, "finished" if len(epochs) == settings.epochs else "unfinished"
        )


@dataclass(frozen=True)
class Record:
    """What is recorded of a run at once: epochs that follow each other, and the state after the last of them."""

    settings: Settings
    parameters: int
    epochs: tuple[Epoch, ...]
    state: bytes  # of model, optimizer and generators, as safetensors
