"""C12: do layer, group and instance norm and batch renorm hold up where batches are small?"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
from matplotlib.figure import Figure

from normkit.lab import drawing
from normkit.lab.bootstrap import bootstrap_mean
from normkit.lab.intervals import Estimate
from normkit.lab.studies.choices import best_level
from normkit.lab.studies.conclusion import each_of, told
from normkit.lab.studies.design import column, crossed, finite
from normkit.lab.studies.fit import Recipe, Samples, fit, scaled
from normkit.lab.studies.networks import check_images, check_samples, network
from normkit.lab.studies.study import Effect, Finding, Result, Results, Scale, Study, Subject, Trial

NORMS = ("batch", "layer", "group", "instance", "renorm")
BATCHES = (2, 4, 32)
RATES = (0.001, 0.003)
SEEN = 1440  # samples in every run, some of them twice where there are fewer
SMALL, LARGE = 4, 32  # the batch sizes that the verdict compares


class SmallBatchNorms(Study):
    """How the loss of each norm changes with the batch size, beside batch norm's."""

    name = "small-batch-norms"
    claim = "C12"
    statement = "Layer, group and instance norm and batch renorm hold up where batches are small."
    source = "article 002"
    question = "From batch size 32 down to 4, does the loss of these norms change by less than batch norm's?"
    design = (
        "The CNN with each norm, 1,440 samples seen whatever the batch size (2, 4 or 32), Adam at the better "
        "of 0.001 and 0.003 for each norm and batch size, by mean validation loss. Batch renorm's schedule is "
        "a hundredth of its paper's. Instance norm leaves the dense layer without a norm."
    )
    rule = (
        "For each norm, validation loss at batch size 4 over that at 32, divided by the same of batch norm, "
        "paired by seed. Supported where the 95% intervals of all four norms lie below 1, contradicted where "
        "any lies above. Batch size 2 is shown and does not count."
    )
    literature = (
        "Wu and He (2018): on ImageNet, group norm's error is within half a point from batch size 32 to 2 an "
        "accelerator, batch norm's rises by about ten points. Ioffe (2017): with microbatches of 4, "
        "Inception-v3 loses about half as much accuracy by batch renorm as by batch norm."
    )

    def trials(self, scale: Scale) -> Sequence[Trial]:
        return crossed(scale, norm=NORMS, batch=BATCHES, lr=RATES)

    def check(self, subject: Subject) -> None:
        super().check(subject)
        check_images(self, subject)
        check_samples(self, subject, max(BATCHES))

    def measure(self, trial: Trial, subject: Subject) -> Result:
        levels, dataset = trial.levels, scaled(subject.data)
        size = int(levels["batch"])
        recipe = Recipe(SEEN // size, float(levels["lr"]), size, "adam")
        make = partial(network, subject, str(levels["norm"]), dataset)
        curve = fit(make, Samples.of(dataset), recipe, seed=trial.seed)
        if curve.diverged:
            return {"loss": None, "accuracy": None}
        return finite({"loss": curve.last.val_loss, "accuracy": curve.last.val_score})

    def judge(self, results: Results) -> Finding:
        effects = tuple(
            Effect(
                f"{norm} / batch: loss at batch size {SMALL} over that at {LARGE}",
                _relative(results, norm),
                1.0,
                "below",
                "x",
            )
            for norm in NORMS[1:]
        )
        held = ", ".join(f"{norm} {told(e.estimate)}" for norm, e in zip(NORMS[1:], effects, strict=True))
        own = float(np.exp(np.mean(list(_change(results, "batch").values()))))
        return Finding(
            each_of(effects),
            effects,
            f"From batch size {LARGE} to {SMALL}, batch norm's loss changes {own:.2g}-fold; "
            f"relative to that: {held}.",
        )

    def figure(self, results: Results) -> Figure:
        figure = Figure((drawing.WIDTH, drawing.HEIGHT))
        axes = figure.subplots()
        axes.set(xscale="log", yscale="log", xlabel="batch size", ylabel="validation loss")
        axes.set_title("each at its better learning rate, equal samples seen")
        lines = [
            drawing.Curve(
                norm,
                BATCHES,
                [_losses(results, norm, size) for size in BATCHES],
                drawing.color(norm),
                drawing.DASHES[norm],
                "interval",
            )
            for norm in NORMS
        ]
        drawing.curves(axes, lines)
        drawing.plain_ticks(axes.xaxis, BATCHES)
        figure.subplots_adjust(right=0.8)
        return figure


def _losses(results: Results, norm: str, size: int) -> list[float]:
    lr = best_level(results, "lr", "loss", most=False, norm=norm, batch=size)
    return column(results, "loss", norm=norm, batch=size, lr=lr)


def _change(results: Results, norm: str) -> dict[int, float]:
    """By seed, the logarithm of the loss at the small batch size over that at the large one."""
    of = {}
    for size in (SMALL, LARGE):
        lr = best_level(results, "lr", "loss", most=False, norm=norm, batch=size)
        of[size] = results.of(norm=norm, batch=size, lr=lr)
    return {
        seed: float(np.log(small["loss"] / of[LARGE][seed]["loss"]))
        for seed, small in of[SMALL].items()
        if small["loss"] is not None and of[LARGE][seed]["loss"] is not None
    }


def _relative(results: Results, norm: str) -> Estimate:
    """The change of a norm over batch norm's."""
    mine, batch = _change(results, norm), _change(results, "batch")
    logs = bootstrap_mean([mine[seed] - batch[seed] for seed in mine if seed in batch])
    low, high = (None if end is None else float(np.exp(end)) for end in (logs.low, logs.high))
    return Estimate(float(np.exp(logs.mean)), low, high, logs.count)


STUDY = SmallBatchNorms()
