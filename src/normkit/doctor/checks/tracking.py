"""NK3: how running statistics are moved, and held."""

from __future__ import annotations

from collections.abc import Iterator

from normkit.doctor.checks.check import Check
from normkit.doctor.checks.readers import tracked
from normkit.doctor.diagnosis import Finding
from normkit.doctor.readings import Readings


class KerasMomentum(
    Check,
    code="NK301",
    severity="warning",
    fixable=True,
    remedy="momentum is the weight of the new batch: set 1 minus this, and recalibrate",
):
    """A momentum as Keras counts it.

    ## What it does
    Looks for momentum of 0.9 and above.

    ## Why is this bad
    In torch momentum is the weight of the new batch, in Keras that of the old average. 0.99 copied over makes running
    statistics those of the last batch.

    ## Example
    ```python
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8, momentum=0.99), nn.ReLU(), nn.Linear(8, 2))
    ```

    ## Remedy
    One minus it: 0.01 for Keras' 0.99.

    ## Fix safety
    Safe: momentum acts in training alone. Statistics that it made are recalibrated where there is `--data`.
    """

    def check(self, seen: Readings) -> Iterator[Finding]:
        for norm, _ in tracked(seen):
            if norm.momentum is not None and norm.momentum >= 0.9:
                yield self.finding(
                    norm.module,
                    f"momentum={norm.momentum:g} keeps {1 - norm.momentum:.2g} of what came before the last batch",
                    momentum=norm.momentum,
                )


class NoMomentum(
    Check,
    code="NK302",
    severity="warning",
    also="error",
    fixable=True,
    remedy="set momentum to 0.1, or None for a plain average; to freeze, nk.freeze(model)",
):
    """Momentum 0: running statistics stay what they are.

    ## What it does
    Looks for momentum 0.

    ## Why is this bad
    Training never reaches the running statistics. An error where they are still the initial ones; where they are not,
    this may be meant to freeze them, but training still goes by the batch's own.

    ## Example
    ```python
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8, momentum=0.0), nn.ReLU(), nn.Linear(8, 2))
    ```

    ## Remedy
    0.1, or None for a plain average; to freeze, `nk.freeze`.

    ## Fix safety
    Safe: set to 0.1, which acts in training alone. With `--data` the statistics are recalibrated.
    """

    def check(self, seen: Readings) -> Iterator[Finding]:
        for norm, running in tracked(seen):
            if norm.momentum == 0:
                yield self.finding(
                    norm.module,
                    "momentum=0: running statistics never move"
                    + (", and are the initial 0 and 1" if running.untouched else ""),
                    "error" if running.untouched else None,
                    momentum=0.0,
                )


class HalfFrozen(
    Check,
    code="NK303",
    severity="error",
    fixable=True,
    remedy="set track_running_stats back to True and recalibrate, or nk.freeze the layer",
):
    """Running statistics that evaluation uses, and training does not update.

    ## What it does
    Looks for `track_running_stats=False` on a layer whose buffers are there.

    ## Why is this bad
    Set after the layer was made, the flag leaves the buffers in place: training goes by the batch and updates
    nothing, evaluation goes by what the buffers held before.

    ## Example
    ```python
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
    model[1].track_running_stats = False
    ```

    ## Remedy
    `nk.freeze` to freeze for good; `track_running_stats=True` and `nk.recalibrate` to track again.

    ## Fix safety
    Safe: set back to True, and recalibrated where there is `--data`.
    """

    def check(self, seen: Readings) -> Iterator[Finding]:
        for norm, running in tracked(seen):
            if not norm.tracks and not norm.frozen:
                yield self.finding(
                    norm.module,
                    f"track_running_stats=False, but buffers of {len(running.mean)} channels are there: evaluation "
                    "uses them, training does not move them",
                )


class FrozenButMoving(
    Check,
    code="NK304",
    severity="warning",
    fixable=True,
    remedy="nk.freeze these layers: statistics stop too, whatever train() says",
):
    """Parameters are frozen, running statistics move.

    ## What it does
    Looks for batch norms in training mode whose weight and bias both have `requires_grad=False`.

    ## Why is this bad
    `requires_grad=False` does not stop running statistics. A backbone that is frozen this way becomes another one with
    every batch, and after it every evaluation.

    ## Example
    ```python
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
    model[:2].requires_grad_(False)
    ```

    ## Remedy
    `nk.freeze(model)`, which holds statistics as well, whatever `train()` says.

    ## Fix safety
    Safe: `nk.freeze` on these layers; they normalize by running statistics from then on.
    """

    def check(self, seen: Readings) -> Iterator[Finding]:
        for norm, running in tracked(seen):
            parameters = [p for p in (norm.weight, norm.bias) if p is not None]
            held = parameters and not any(p.requires_grad for p in parameters)
            if held and norm.training and norm.tracks and not norm.frozen and norm.momentum != 0:
                count = "" if running.batches is None else f" ({running.batches} batches so far)"
                yield self.finding(
                    norm.module, f"weight and bias are frozen, running statistics still move{count}"
                )


class Thaws(
    Check,
    code="NK305",
    severity="warning",
    fixable=True,
    remedy="nk.freeze these layers: that survives train()",
):
    """Frozen by `eval()`, thawed by the next `train()`.

    ## What it does
    Looks for batch norms in evaluation mode within a model in training mode, which `model.train()` would switch back.

    ## Why is this bad
    Training loops call `model.train()` at each epoch. From the second one on the layer is not frozen any more.

    ## Example
    ```python
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
    model[1].eval()
    ```

    ## Remedy
    `nk.freeze(model)`, which survives `train()`.

    ## Fix safety
    Safe: `nk.freeze` on these layers; what they compute now is what they will go on to compute.
    """

    def check(self, seen: Readings) -> Iterator[Finding]:
        for norm, _ in tracked(seen):
            if seen.training and not norm.training and norm.trains and not norm.frozen:
                yield self.finding(norm.module, "is in evaluation mode, until the next model.train()")


CHECKS = (
    KerasMomentum,
    NoMomentum,
    HalfFrozen,
    FrozenButMoving,
    Thaws,
)
