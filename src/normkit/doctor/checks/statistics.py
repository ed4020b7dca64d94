"""NK2: what running statistics hold."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from normkit.doctor.checks.check import Check
from normkit.doctor.checks.readers import tracked
from normkit.doctor.diagnosis import Finding
from normkit.doctor.readings import Norm, Readings, Running, Traffic

_STALE_MEAN = 0.5  # deviations
_STALE_RATIO = 2.5  # of variances
_WEIGHTY = 0.2  # effect on the output, in its deviations
_APART = 1.0  # deviations between a copy and its source
_FOLLOWS = 0.5  # of their length, between the weights


def staleness(norm: Norm, running: Running, traffic: Traffic) -> tuple[float, float]:
    """Root mean square over channels: of the means' distance in deviations, and of the variances' log ratio."""
    var = traffic.input.var(unbiased=False)
    if running.mean.shape != var.shape:
        return 0.0, 0.0
    away = (running.mean - traffic.input.mean).square() / (var + norm.eps)
    ratio = ((running.var.clamp(min=0) + norm.eps) / (var + norm.eps)).log()
    return _typical(away), _typical(ratio.square())


def _typical(squares: Tensor) -> float:
    """Root mean; infinite where a square is not finite."""
    mean = float(squares.mean())
    return math.sqrt(mean) if math.isfinite(mean) else math.inf


class NeverUpdated(
    Check,
    code="NK201",
    severity="error",
    also="warning",
    fixable=True,
    remedy="nk.recalibrate(model, batches): the statistics of the data in place of 0 and 1",
):
    """Running statistics are still those of initialization.

    ## What it does
    Looks for running means of exactly 0 and variances of exactly 1. Where this holds for every layer of a model in
    training mode, training has not begun: nothing is reported without batches, and with them a warning, not an error.

    ## Why is this bad
    In evaluation such a layer does not normalize. It learned nothing because it was never called in training mode, or
    because it was frozen before it had seen data.

    ## Example
    ```python
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2)).eval()
    ```

    ## Remedy
    A model that was trained needs its weights, which bring the statistics: `--weights FILE`. Where these hold none,
    `nk.recalibrate(model, batches)`.

    ## Fix safety
    Safe with `--data`: the statistics become those of the data, and weights stay as they are.
    """

    def check(self, seen: Readings) -> Iterator[Finding]:
        layers = list(tracked(seen))
        untouched = [norm for norm, running in layers if running.untouched and norm.momentum != 0.0]
        fresh = len(untouched) == len(layers) and seen.training
        if fresh and seen.run is None:
            return
        for norm in untouched:
            gap = norm.effect or 0.0
            yield self.finding(
                norm.module,
                "running statistics are the initial 0 and 1"
                + (f"; by the batch's own, the output moves by {gap:.2g} deviations" if gap else ""),
                "warning" if fresh else None,
                effect=gap,
            )


class Stale(
    Check,
    code="NK202",
    severity="warning",
    also="error",
    fixable=True,
    remedy="nk.recalibrate(model, batches); for data of another origin nk.adapt(model, batches)",
):
    """Running statistics are not those of the data.

    ## What it does
    Compares running means and variances with the moments of what comes in while all norms go by their batch, so that
    one wrong layer is not blamed on those behind it. An error where the layer alone moves the model's output by more
    than a fifth of its deviation.

    ## Why is this bad
    The model evaluates with other statistics than it trained with: good in `train()`, useless in `eval()`. Reasons
    are weights that were averaged or loaded without their buffers, a learning rate too high at the end, data from
    elsewhere, or other preprocessing.

    ## Example
    ```python
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
    batches = [torch.randn(64, 4) + 5 for _ in range(4)]
    for _ in range(50):
        model(torch.randn(64, 4))
    ```

    ## Remedy
    `nk.recalibrate(model, batches)` on data that the model was trained with; `nk.adapt` for data from elsewhere.

    ## Fix safety
    Safe with `--data`: statistics change, weights do not. The loss before and after is shown.
    """

    def check(self, seen: Readings) -> Iterator[Finding]:
        for norm, running in tracked(seen):
            if norm.traffic is None or running.untouched or not _sound(running):
                continue
            mean, ratio = staleness(norm, running, norm.traffic)
            enough = norm.traffic.effective * (seen.run.batches if seen.run else 1)
            noise = 4 / math.sqrt(max(enough, 1.0)) if enough == enough else 1.0
            if mean <= max(_STALE_MEAN, noise) and ratio <= max(math.log(_STALE_RATIO), 1.5 * noise):
                continue
            effect = norm.effect or 0.0
            yield self.finding(
                norm.module,
                f"running means are {mean:.2g} deviations from the data's, variances off by a factor of "
                f"{math.exp(min(ratio, 50.0)):.2g}; this layer alone moves the output by {effect:.2g} deviations",
                "error" if effect > _WEIGHTY else None,
                mean=mean,
                variance_factor=math.exp(min(ratio, 50.0)),
                effect=effect,
            )


def _sound(running: Running) -> bool:
    return bool(running.mean.isfinite().all() and running.var.isfinite().all() and (running.var >= 0).all())


class BadVariance(
    Check,
    code="NK203",
    severity="error",
    also="warning",
    fixable=True,
    remedy='nk.recalibrate(model, batches); guard="nonfinite" in our layers keeps such batches out',
):
    """Running statistics that are not finite, or a variance that is zero or negative.

    ## What it does
    Counts the channels with such values. A warning where variances are zero and nothing worse.

    ## Why is this bad
    A mean or variance that is not finite, or a negative variance, makes every evaluation NaN: one batch with an
    overflow is enough. A variance of zero divides by the root of eps alone and magnifies rounding errors.

    ## Example
    ```python
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
    model[1].running_var[3] = float("nan")
    ```

    ## Remedy
    `nk.recalibrate(model, batches)`; against the next overflow, `nk.BatchNorm2d(..., guard="nonfinite")`.

    ## Fix safety
    Safe with `--data`.
    """

    def check(self, seen: Readings) -> Iterator[Finding]:
        for norm, running in tracked(seen):
            broken = ~(running.mean.isfinite() & running.var.isfinite())
            negative, zero = running.var < 0, running.var == 0
            counts = {"not finite": broken, "negative": negative, "zero": zero}
            words = [f"{int(mask.sum())} {what}" for what, mask in counts.items() if mask.any()]
            if words:
                worst = "error" if (broken | negative).any() else "warning"
                yield self.finding(
                    norm.module,
                    f"of {len(zero)} channels, running statistics are {', '.join(words)}",
                    worst,
                    nonfinite=int(broken.sum()),
                    negative=int(negative.sum()),
                    zero=int(zero.sum()),
                )


class LowPrecisionBuffers(
    Check,
    code="NK204",
    severity="warning",
    fixable=True,
    remedy="keep norms in float32: norm.float(), or autocast in place of half()",
):
    """Running statistics in a half type.

    ## What it does
    Looks at the dtype of the buffers.

    ## Why is this bad
    A step of a tenth of the distance is lost once it is below the spacing of the type: float16 has 11 bits, bfloat16
    8. Variances above 65504 overflow in float16.

    ## Example
    ```python
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
    model[1].half()
    ```

    ## Remedy
    Keep norms in float32 in a half model (`norm.float()`), or use autocast.

    ## Fix safety
    Safe: parameters and buffers of the layer become float32, by the same values; torch takes half inputs with them.
    """

    def check(self, seen: Readings) -> Iterator[Finding]:
        for norm, running in tracked(seen):
            if running.dtype in (torch.float16, torch.bfloat16):
                unit = torch.finfo(running.dtype).eps
                yield self.finding(
                    norm.module,
                    f"running statistics are {str(running.dtype).removeprefix('torch.')}: a step below {unit:.1g} of "
                    "their value is lost",
                    unit=unit,
                )


class CopyApart(
    Check,
    code="NK205",
    severity="warning",
    also="note",
    remedy="average or copy buffers along with parameters, or recalibrate the copy",
):
    """A copy follows the weights of its source, and not its statistics.

    ## What it does
    Looks for two parts of a model that are built alike, one of which no gradient reaches (a target, teacher or moving
    average), with weights near those of the other and running statistics far from them. With `reference=` or
    `--reference`, compares each layer with that of the model that this one is a copy of; a note where the weights lie
    far apart too.

    ## Why is this bad
    Averaging `parameters()` leaves buffers out. The copy evaluates new weights by old statistics.

    ## Example
    ```python
    import copy


    def part():
        return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))


    model = nn.ModuleDict({"online": part()})
    model["target"] = copy.deepcopy(model["online"]).requires_grad_(False)
    for _ in range(50):
        model["online"](3 + torch.randn(64, 4))
    ```

    ## Remedy
    Average or copy the buffers too, as `torch.optim.swa_utils.AveragedModel` does, or recalibrate the copy.

    ## Fix safety
    Not fixed: whether to copy or to recalibrate depends on the method.
    """

    def check(self, seen: Readings) -> Iterator[Finding]:
        for copy in seen.others.copies:
            far = {layer: apart for layer, apart in copy.layers.items() if not apart <= _APART}
            if not far:
                continue
            worst = max(far, key=lambda layer: far[layer])
            source = repr(copy.source) if copy.source else "the reference"
            where = f" in {worst!r}" if copy.copy else ""
            yield self.finding(
                copy.copy or worst,
                f"weights are {copy.weights:.2g} of their length from those of {source}, running statistics of "
                f"{len(far)} of {len(copy.layers)} layers up to {far[worst]:.2g} deviations{where}",
                None if copy.weights < _FOLLOWS else "note",
                weights=copy.weights,
                statistics=far[worst],
                layers=len(far),
            )


class ProcessesApart(
    Check,
    code="NK206",
    severity="error",
    remedy="nk.synchronize(model) before wrapping it; nk.merge_statistics for checkpoints of each process",
):
    """Running statistics differ between processes.

    ## What it does
    Compares the running means of all processes of a model in DistributedDataParallel, or of those of
    `nk.diagnose(model, process_group="world")`.

    ## Why is this bad
    Each process evaluates another model, and a checkpoint keeps what the first one saw.

    ## Example
    `DistributedDataParallel(model, broadcast_buffers=False)` with batch norms that are not synchronized.

    ## Remedy
    `nk.synchronize(model)` before wrapping; `nk.merge_statistics` for the checkpoints that are there.

    ## Fix safety
    Not fixed: it takes all processes.
    """

    def check(self, seen: Readings) -> Iterator[Finding]:
        for module, apart in seen.others.disagree:
            yield self.finding(
                module,
                f"running means of {seen.others.processes} processes lie up to {apart:.2g} deviations apart",
                apart=apart,
            )


CHECKS = (
    NeverUpdated,
    Stale,
    BadVariance,
    LowPrecisionBuffers,
    CopyApart,
    ProcessesApart,
)
