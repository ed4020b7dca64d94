"""A callback for Lightning's trainer: the doctor's readings among the user's own metrics."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from normkit.doctor.recorder import Recorder
from normkit.errors import optional

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer
    from lightning.pytorch.callbacks import Callback
else:
    Callback = optional("lightning.pytorch.callbacks", "lightning").Callback

__all__ = ["RecordNorms"]


class RecordNorms(Callback):
    """Record what goes through the norms of the model while it is fitted, with every logger of the trainer.

    The readings are those of `normkit.record`, under `norms/layer/reading`. Of several processes the first one
    records, of its own batches.

    Args:
        every: batches from one recording to the next.
    """

    def __init__(self, every: int = 100) -> None:
        self._every = every
        self._recorder: Recorder | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin."""
        if not trainer.is_global_zero:
            return

        def write(step: int, readings: Mapping[str, float]) -> None:
            metrics = {f"norms/{name}": value for name, value in readings.items()}
            for logger in trainer.loggers:
                logger.log_metrics(metrics, step=trainer.global_step)

        self._recorder = Recorder(pl_module, write, self._every)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """A pass begins, by whichever method of the module."""
        if self._recorder is not None:
            self._recorder.begin()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """And ends."""
        if self._recorder is not None:
            self._recorder.end()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """No more passes."""
        self._close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """No more passes either."""
        self._close()

    def _close(self) -> None:
        if self._recorder is not None:
            self._recorder.close()
            self._recorder = None
