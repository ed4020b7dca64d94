"""What a diagnosis could not see, and which option of the command lets it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from normkit.doctor.checks.readers import tracked
from normkit.doctor.diagnosis import Diagnosis
from normkit.doctor.readings import Readings


def hints(diagnosis: Diagnosis, checkpoint: str | None, weights: Path | None) -> Iterator[str]:
    """A line for each.

    Args:
        diagnosis: before anything was repaired.
        checkpoint: the target, where that was weights without a model.
        weights: what was loaded into the model.
    """
    seen = diagnosis.readings
    if checkpoint is not None:
        yield (
            "a checkpoint alone: its running statistics are what was looked at, and neither the model nor whether they "
            f"fit its data: name the model, with --weights {checkpoint} and --data"
        )
    elif seen.run is None:
        yield "without data: whether statistics fit, and what batches show, was not looked at: give --data"
    elif seen.run.gap is not None and seen.run.gap.loss_evaluated is None:
        yield "without a loss: gradients were not looked at: give batches of (inputs, target), or --loss"
    if checkpoint is None and weights is None and _untouched(seen):
        yield "running statistics are the initial ones: if the model was trained, give its weights: --weights FILE"


def _untouched(seen: Readings) -> bool:
    """Whether nothing in the model tells of training."""
    running = [running for _, running in tracked(seen)]
    return bool(running) and all(one.untouched for one in running)
