"""Runs made by hand, whose statistics can be worked out on paper."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from normkit.lab.records import Epoch, Measurement, Run, Settings

STEPS = 10  # of every epoch
SAMPLES = 10**6  # of the validation split: accuracies are as good as exact

SETTINGS: dict[str, Any] = {
    "data": "digits",
    "data_fingerprint": "0123456789abcdef",
    "model": "cnn",
    "norm": "none",
    "placement": "pre",
    "input_scaling": "standard",
    "batch_size": 64,
    "lr": 0.1,
    "optimizer": "adam",
    "dropout": 0.0,
    "weight_decay": 0.0,
    "epochs": 3,
    "seed": 0,
    "device": "cpu",
    "threads": 1,
    "versions": "normkit 0, torch 0",
}


def run(
    norm: str,
    accuracies: Sequence[float],
    *,
    gap: float = 0.0,
    loss: float = 0.5,
    diverged: bool = False,
    seconds: float = 0.02,
    **settings: Any,
) -> Run:
    """One measurement before the first step and one after each epoch of 10 steps.

    The training accuracy lies `gap` above that of validation; the training loss is half the other.
    """
    measured = [
        Measurement(index * STEPS, loss / 2, accuracy + gap, loss, accuracy)
        for index, accuracy in enumerate((0.1, *accuracies))
    ]
    epochs = [
        Epoch(number, STEPS, seconds, (measured[number],), diverged=False)
        for number in range(1, len(measured))
    ]
    if epochs:
        epochs[0] = Epoch(1, STEPS, seconds, tuple(measured[:2]), diverged=False)
    if diverged:
        epochs.append(Epoch(len(epochs) + 1, 3, seconds, (), diverged=True))
    return Run(
        Settings(**{**SETTINGS, "norm": norm, **settings}),
        parameters=1000,
        epochs=tuple(epochs),
        status="diverged" if diverged else "finished",
    )


def runs(norm: str, accuracies: Sequence[Sequence[float]], **more: Any) -> list[Run]:
    """One run per seed."""
    return [run(norm, curve, seed=seed, **more) for seed, curve in enumerate(accuracies)]
