"""Running statistics taken anew from data: `recalibrate`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, NamedTuple

import torch
from torch import nn

from normkit import processes
from normkit.errors import InputError, unknown
from normkit.norms.batch_renorm import _BatchRenorm  # pyright: ignore[reportPrivateUsage]
from normkit.statistics import Estimator
from normkit.surgery.convergence import Evidence, batches_needed, gap, movement
from normkit.surgery.dtypes import telling_dtypes
from normkit.surgery.feed import Forward, each, feeder, first_of
from normkit.surgery.observe import Site, observable_layers, observed
from normkit.surgery.restore import Saved, Undoable, kept
from normkit.surgery.survey import ESTIMATORS, Survey
from normkit.surgery.table import aligned


class Row(NamedTuple):
    """What happened to one set of running statistics."""

    name: str
    channels: int
    values: int  # per channel
    mean_moved: float  # by how many of the new deviations, the root mean square over channels
    deviation_ratio: float  # new over old, the geometric mean over channels
    gap: float  # of values normalized by the old statistics, in deviations
    error: float  # that too few batches leave, in deviations


class Recalibration(Undoable):
    """What `recalibrate` did; `undo()`, or the end of a `with` block, takes it back.

    Attributes:
        rows: for each set of statistics, how far it was from the data, and how well the data determine it.
        left: the layers that were left as they are, and why.
        batches: how many were seen, by all processes together.
        tolerance: the error that is small enough, in standard deviations.
        enough_after: after how many batches, of this process, the error of every layer was small enough and stayed
            so; None where it is not.
    """

    def __init__(
        self,
        saved: Saved,
        rows: list[Row],
        left: dict[str, str],
        batches: int,
        tolerance: float,
        enough_after: int | None,
    ) -> None:
        super().__init__(saved)
        self.rows, self.left, self.batches = rows, left, batches
        self.tolerance, self.enough_after = tolerance, enough_after

    @property
    def worst(self) -> Row:
        """The row with the largest error."""
        return max(self.rows, key=lambda row: row.error)

    @property
    def verdict(self) -> str:
        """Whether there were enough batches, and how many would be."""
        worst = self.worst
        found = f"the statistics of {worst.name} are determined to {worst.error:.2g} standard deviations"
        if self.enough_after is not None:
            return f"enough batches: {found}, and to {self.tolerance:g} from batch {self.enough_after} on"
        if worst.error == float("inf"):
            return "one batch does not say how much batches differ: take several"
        needed = batches_needed(self.batches, worst.error, self.tolerance)
        return f"too few batches: {found}; {self.tolerance:g} takes about {needed}"

    def table(self) -> list[list[str]]:
        """What happened to each layer, below a header; in standard deviations but for the first two figures."""
        header = ["layer", "channels", "mean moved by", "deviation", "gap before", "error"]
        return [header] + [
            [
                row.name,
                str(row.channels),
                f"{row.mean_moved:.3g}",
                f"x {row.deviation_ratio:.3g}",
                f"{row.gap:.3g}",
                f"{row.error:.2g}",
            ]
            for row in self.rows
        ]

    def __repr__(self) -> str:
        """The table, what was left alone, the verdict."""
        left = [f"{name}: left alone, {reason}" for name, reason in self.left.items()]
        return "\n".join([aligned(self.table()), *left, f"{self.batches} batches; {self.verdict}"])


def recalibrate(
    model: nn.Module,
    batches: Iterable[object],
    *,
    forward: Forward | None = None,
    estimator: Literal["exact", "cumulative", "exponential", "random"] = "exact",
    tolerance: float = 0.02,
    until: Literal["all", "enough"] = "all",
    process_group: processes.Group = None,
    generator: torch.Generator | None = None,
) -> Recalibration:
    r"""Take the running statistics of a model's batch norms anew, from batches, as they were trained.

    For averaged or edited weights, a changed batch size, a momentum that was wrong: whatever makes evaluation
    normalize by statistics that are not those of the data. The batches go through the model with its batch norms
    alone in training mode, without gradients, and each layer's statistics become

    .. math::
        \mu = \frac{1}{n} \sum x, \quad \sigma^2 = \frac{1}{n - 1} \sum (x - \mu)^2

    over all values of all batches, merged exactly, in float64: the variance between batches is part of it, which an
    average of the batches' variances leaves out. torch's layers and ours alike, and none becomes another.
    num_batches_tracked becomes the number of batches, but for batch renorm's, which counts the steps of its schedule.
    Nothing else of the model changes, and nothing at all where something raises.

    Args:
        model: any module.
        batches: tensors; mappings, whose entries go by the names of forward's arguments; tuples or lists whose first
            is the input. Tensors are taken to the device of the model.
        forward: a function of one batch that runs the model on it, where that is not how.
        estimator: "exact"; "cumulative", the average over the batches' statistics; "exponential", their moving
            average by the layer's momentum (0.1 where that is None); "random", those of one batch, which is drawn.
        tolerance: which error of the statistics is small enough, in standard deviations of a layer's input.
        until: "all" batches were seen, or they are "enough", by the tolerance, and go on to be in two more.
        process_group: processes that bring batches of their own, as many as each has; all of these count for "exact"
            and "cumulative", and "random" draws from all; "exponential" goes by an order that they do not have.
        generator: draws the batch of "random".

    Returns:
        A table of what moved and how far, an estimate of the error, and `undo()`.

    Raises:
        InputError: no module, no batch norm with running statistics, no batch, a batch of unknown structure or with
            values that are not finite; another estimator.
        ProcessError: another process of the group failed.

    Ioffe and Szegedy 2015, algorithm 2; Wu and Johnson, "Rethinking 'Batch' in BatchNorm", 2021.

    >>> net = nn.Sequential(nn.BatchNorm1d(1)).eval()
    >>> with recalibrate(net, [torch.tensor([[1.0], [3.0]]), torch.tensor([[5.0], [7.0]])]):
    ...     net[0].running_mean.item(), round(net[0].running_var.item(), 4)
    (4.0, 6.6667)
    >>> net[0].running_mean.item()
    0.0
    """
    _check(estimator, tolerance, process_group, until)
    layers, left = observable_layers(model)
    seed = int(torch.randint(2**62, (), generator=generator)) if estimator == "random" else 0
    survey = Survey(estimator, tolerance, seed)
    failure: Exception | None = None
    try:
        with kept(model, training=layers.values()), observed(layers, survey.take), torch.no_grad():
            run = feeder(model, forward)
            for number, batch in enumerate(each(batches), 1):
                with telling_dtypes(model, first_of(batch), f"batch {number}"):
                    run(batch)
                survey.end_batch()
                if until == "enough" and survey.lastingly_enough:
                    break
    except Exception as error:
        failure = error
    if processes.several(process_group):
        survey.exchange(process_group, layers, failure)
    if failure is not None:
        raise failure
    survey.check()
    reached = {site.name for site in survey.sites}
    left |= {
        name or type(layer).__name__: "not reached" for name, layer in layers.items() if name not in reached
    }
    saved = Saved(buffer for name in reached for buffer in layers[name].buffers(recurse=False))
    told = {site: found for site, found in survey.sites.items() if found[0].moments is not None}
    left |= {str(site): "one value per channel, or none" for site in survey.sites if site not in told}
    rows = [_settle(site, *found, survey.batches) for site, found in told.items()]
    return Recalibration(saved, rows, left, survey.batches, tolerance, survey.enough_after)


def _check(estimator: str, tolerance: float, process_group: processes.Group, until: str) -> None:
    processes.check_group(process_group)
    if estimator not in ESTIMATORS:
        raise unknown("estimator", estimator, ESTIMATORS)
    if not isinstance(tolerance, (int, float)) or not tolerance > 0:  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InputError(f"tolerance must be positive, in standard deviations, got {tolerance!r}")
    if process_group is not None and estimator == "exponential":
        raise InputError(
            "estimator 'exponential' goes by an order of batches, which processes do not have: use 'exact', "
            "'cumulative' or 'random'"
        )
    if until not in ("all", "enough"):
        raise unknown("until", until, ("all", "enough"))
    if process_group is not None and until == "enough":
        raise InputError(
            "until='enough' would stop processes at different batches: bring as many as are enough"
        )


@torch.no_grad()
def _settle(site: Site, evidence: Evidence, estimator: Estimator, batches: int) -> Row:
    running, eps = site.running, site.layer.eps
    mean, var = estimator.estimate()
    seen = evidence.moments
    assert seen is not None
    true_var = seen.var(unbiased=True)
    row = Row(
        str(site),
        len(mean),
        int(seen.count.max()),
        *movement(running, mean, var, eps),
        gap(running.mean, running.var, seen.mean, true_var, eps),
        evidence.error().item(),
    )
    running.mean.copy_(mean)
    running.var.copy_(var)
    if not isinstance(site.layer, _BatchRenorm):
        running.num_batches_tracked.fill_(batches)
    return row
