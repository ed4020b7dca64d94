"""NK4: what statistics are taken of."""

from __future__ import annotations

import math
from collections.abc import Iterator

from normkit.doctor.checks.check import Check
from normkit.doctor.checks.readers import trafficked
from normkit.doctor.diagnosis import Finding
from normkit.doctor.graph import Graph
from normkit.doctor.readings import Readings

_FEW = 12  # values that a statistic is worth; the variance is then off by 40%
_PADDED = 0.05  # of the places that share a statistic
_SCATTER = 5.0  # variance of batch means, over what batches drawn alike show
_SORTED = 0.4  # mean square step between successive means, over twice their variance
_LARGE, _UNEVEN = 20.0, 100.0


class FewSamples(
    Check,
    code="NK401",
    severity="warning",
    remedy="a larger batch, nk.synchronize over processes, or group norm in its place",
):
    """A statistic of too few values that are independent of each other.

    ## What it does
    Estimates how many independent values a batch's mean is worth: the variance of the values over the variance of the
    samples' means, times the number of samples. Positions that resemble each other count less than one each.

    ## Why is this bad
    The noise of a variance of n values is a share of the root of 2/n. With few of them training and evaluation are
    two different models.

    ## Example
    ```python
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
    batches = [torch.randn(4, 4) for _ in range(8)]
    ```

    ## Remedy
    A larger batch, `nk.accumulate`, statistics over processes (`nk.synchronize`), or group norm.

    ## Fix safety
    Not fixed: the batch size is not the model's.
    """

    def check(self, seen: Readings) -> Iterator[Finding]:
        for norm in seen.norms:
            if not norm.by_batch or norm.traffic is None or not norm.trains or norm.synchronized:
                continue
            worth = norm.traffic.effective
            if worth < _FEW and norm.traffic.samples > 1:
                yield self.finding(
                    norm.module,
                    f"a batch is worth {worth:.2g} independent values per channel: its variance is off by "
                    f"{math.sqrt(2 / worth):.0%}",
                    effective=worth,
                    samples=norm.traffic.samples,
                )


class BatchesDiffer(
    Check,
    code="NK402",
    severity="warning",
    remedy="shuffle the data; for domains that stay apart, nk.domain(name)",
):
    """Batches that are not drawn alike: sorted by class, or from several domains.

    ## What it does
    Compares how much the batches' means scatter with how much they would if every batch were drawn from all data, and
    how far they move from one batch to the next: little where data are sorted or drift, much where kinds take turns.

    ## Why is this bad
    Each batch is normalized by statistics that tell where it came from, and the model learns to use them; in
    evaluation they are an average that no batch has, or where data are sorted, those of the last ones.

    ## Example
    ```python
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
    batches = [torch.randn(32, 4) + 3 * (i % 2) for i in range(8)]
    ```

    ## Remedy
    Shuffle; for domains that must stay apart, `nk.domain(name)` or norms without batch statistics.

    ## Fix safety
    Not fixed: the order of the data is not the model's.
    """

    def check(self, seen: Readings) -> Iterator[Finding]:
        first = next(
            (n for n in seen.norms if n.by_batch and n.traffic and n.traffic.scatter > _SCATTER), None
        )
        if first is not None and first.traffic is not None and first.traffic.apart > 0.1:
            traffic = first.traffic
            yield self.finding(
                first.module,
                f"means of batches scatter by {traffic.apart:.2g} deviations, their variance {traffic.scatter:.2g} "
                f"times that of batches drawn alike; from one batch to the next they move by {traffic.drift:.2g}"
                + _order(traffic.order),
                scatter=traffic.scatter,
                apart=traffic.apart,
                drift=traffic.drift,
            )


def _order(order: float) -> str:
    """What it says; batches in any order do either once in 20 times where there are 4, once in 45 of 8."""
    if order < _SORTED:
        return ": they are sorted, or drift"
    return ": two kinds take turns" if order > 2 - _SORTED else ""


class PaddingInStatistics(
    Check,
    code="NK403",
    severity="warning",
    remedy="use a norm of ours and give it mask=, or one over the features of each place alone",
):
    """Padding counts in a norm's statistics.

    ## What it does
    For norms whose statistics are shared by places, the share of places that are constant and differ in number from
    sample to sample: positions at one end of sequences, rows of flattened sequences, borders of images at their far
    sides (padded to the largest) or at opposite ones (letterboxed). Layer and RMS norms are looked at where they work
    on positions and features together; nothing is reported where a mask is given.

    ## Why is this bad
    Padding is a constant. It draws the mean to itself and the variance down, by as much as the batch happens to be
    padded: the same sequence gives another output beside longer ones.

    ## Example
    ```python
    model = nn.Sequential(nn.Conv1d(4, 8, 1), nn.BatchNorm1d(8), nn.ReLU(), nn.Conv1d(8, 2, 1))
    x = torch.randn(32, 4, 20)
    for i, sequence in enumerate(x):
        sequence[:, 4 + i % 16 :] = 0.0
    batches = [x]
    ```

    ## Remedy
    `nk.BatchNorm1d` and `nk.BatchNorm2d`, called with `mask=`; or layer norm over the features.

    ## Fix safety
    Not fixed: the mask is known to the model's forward alone.
    """

    def check(self, seen: Readings) -> Iterator[Finding]:
        for norm, traffic in trafficked(seen):
            if traffic.padded > _PADDED and not traffic.masked:
                yield self.finding(
                    norm.module,
                    f"{traffic.padded:.0%} of the places in its statistics look like padding",
                    share=traffic.padded,
                )


class BatchOfOne(
    Check,
    code="NK404",
    severity="error",
    also="warning",
    remedy="DataLoader(..., drop_last=True); for batches that are always of one, group norm",
):
    """A batch of one sample in training.

    ## What it does
    Looks for batches of one sample, where norms take statistics over the batch. A warning where there is space, which
    leaves more than one value per channel.

    ## Why is this bad
    One value per channel has no variance, and torch raises; with space there is one, of this sample alone. Mostly it
    is the last batch of an epoch.

    ## Example
    ```python
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
    batches = [torch.randn(32, 4), torch.randn(1, 4)]
    ```

    ## Remedy
    `drop_last=True` in the DataLoader; for batches that are always of one, group norm.

    ## Fix safety
    Not fixed: batches are not the model's.
    """

    def check(self, seen: Readings) -> Iterator[Finding]:
        for norm, traffic in trafficked(seen):
            if (
                norm.by_batch
                and norm.trains
                and traffic.samples == 1
                and not norm.synchronized
                and not norm.frozen
            ):
                raises = traffic.values == 1
                yield self.finding(
                    norm.module,
                    "a batch has one sample"
                    + (
                        ", so one value per channel: training raises"
                        if raises
                        else ": its statistics are of it alone"
                    ),
                    "error" if raises else "warning",
                    values=traffic.values,
                )


class UnscaledInput(
    Check,
    code="NK405",
    severity="warning",
    remedy="standardize each feature by the training data, or put a norm first",
):
    """Inputs far from mean 0 and deviation 1.

    ## What it does
    Compares the features of the model's input: their size, and the ratio of their deviations. Nothing is reported
    where a norm is the first step.

    ## Why is this bad
    The first layer's gradients are as uneven as its inputs, and one learning rate does not suit all of them. Norms
    further back do not undo this.

    ## Example
    ```python
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
    batches = [torch.rand(64, 4) * 255]
    ```

    ## Remedy
    Standardize each feature by the training data, or put a norm first.

    ## Fix safety
    Not fixed: preprocessing is not the model's.
    """

    def check(self, seen: Readings) -> Iterator[Finding]:
        moments = seen.run.input if seen.run else None
        if moments is None or _norm_comes_first(seen.graph):
            return
        std = moments.var(unbiased=False).sqrt()
        moving = std[std > 0]
        if not moving.numel():
            return
        size = float((moments.mean.square() + std.square()).mean().sqrt())
        uneven = float(moving.max() / moving.min())
        offset = float((moments.mean.abs() / std.clamp(min=1e-12))[std > 0].median())
        if size > _LARGE or uneven > _UNEVEN or offset > _LARGE or size < 1 / _UNEVEN:
            yield self.finding(
                "",
                f"inputs have a root mean square of {size:.2g}, deviations that differ by a factor of {uneven:.2g}, "
                f"means {offset:.2g} deviations from 0",
                size=size,
                uneven=uneven,
                offset=offset,
            )


def _norm_comes_first(graph: Graph | None) -> bool:
    steps = (
        [step for source, _ in graph.of_kind("input") for step in graph.consumers[source]] if graph else []
    )
    while graph and len(steps) == 1 and graph.nodes[steps[0]].kind in ("view", "axes"):
        steps = graph.consumers[steps[0]]
    return bool(graph and steps and all(graph.nodes[step].kind == "norm" for step in steps))


CHECKS = (
    FewSamples,
    BatchesDiffer,
    PaddingInStatistics,
    BatchOfOne,
    UnscaledInput,
)
