"""C7: are smaller sub-batches a stronger regulariser?"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from matplotlib.figure import Figure
from torch import nn

import normkit as nk
from normkit.lab import drawing
from normkit.lab.bootstrap import bootstrap_difference
from normkit.lab.studies.conclusion import told
from normkit.lab.studies.design import column, crossed, finite
from normkit.lab.studies.fit import Recipe, Samples, fit, scaled
from normkit.lab.studies.networks import check_images, check_samples, network
from normkit.lab.studies.study import Effect, Finding, Result, Results, Scale, Study, Subject, Trial

BATCH = 128
GHOSTS = (4, 8, 16, 32, 128)
JUDGED = 16  # the sub-batch size of the verdict
TRAINING, STEPS = 512, 200


class GhostSize(Study):
    """One batch size, its statistics taken over sub-batches of different sizes."""

    name = "ghost-size"
    claim = "C7"
    statement = "Batch norm regularises by the noise of its statistics: smaller sub-batches, a smaller gap."
    source = "articles 002, 003; Hoffer et al. (2017)"
    question = (
        "With batches of 128, is the gap between training and validation loss smaller where statistics are taken "
        "over 16 samples than over all?"
    )
    design = (
        "The CNN with ghost batch norm over sub-batches of 4 to 128 samples, 512 training samples, batch size 128, "
        "Adam at 0.003, 200 steps (50 epochs). Everything but the statistics is equal: weights, batches, steps."
    )
    rule = (
        "Validation loss minus training loss, both in evaluation mode, with sub-batches of 16 minus with 128, paired "
        "by seed. Supported where the 95% interval lies below 0, contradicted where it lies above. The other sizes, "
        "and the validation loss, are shown and do not count."
    )
    literature = (
        "Hoffer, Hubara and Soudry (2017): sub-batches close much of the generalisation gap of large batches. Luo, "
        "Wang, Shao and Peng (2019): the noise of batch statistics acts like a penalty on gamma. Summers and Dinneen "
        "(2020): sub-batches improve accuracy also at moderate batch sizes."
    )

    def trials(self, scale: Scale) -> Sequence[Trial]:
        return crossed(scale, ghost=GHOSTS)

    def check(self, subject: Subject) -> None:
        super().check(subject)
        check_images(self, subject)
        check_samples(self, subject, TRAINING)

    def measure(self, trial: Trial, subject: Subject) -> Result:
        dataset = scaled(subject.data)

        def make() -> nn.Module:
            net = network(subject, "batch", dataset)
            nk.convert(net, "ghost", ghost_size=int(trial.levels["ghost"]))
            return net

        samples = Samples.of(dataset).first(TRAINING)
        curve = fit(make, samples, Recipe(STEPS, 0.003, BATCH, "adam"), seed=trial.seed)
        if curve.diverged:
            return dict.fromkeys(("gap", "loss", "accuracy"))
        last = curve.last
        return finite(
            {"gap": last.val_loss - last.train_loss, "loss": last.val_loss, "accuracy": 100 * last.val_score}
        )

    def judge(self, results: Results) -> Finding:
        effects = (
            _effect(results, "gap", JUDGED),
            _effect(results, "loss", JUDGED),
            *(_effect(results, "gap", size) for size in GHOSTS if size not in (JUDGED, BATCH)),
        )
        gap = torch.tensor(column(results, "gap", ghost=BATCH)).mean().item()
        return Finding(
            effects[0].verdict,
            effects,
            f"With sub-batches of {JUDGED} the gap in loss changes by {told(effects[0].estimate)} nats from the "
            f"{gap:.2g} with statistics over all {BATCH}; the validation loss by {told(effects[1].estimate)}.",
        )

    def figure(self, results: Results) -> Figure:
        figure = Figure((drawing.WIDTH, drawing.HEIGHT))
        axes = figure.subplots()
        axes.set(xscale="log", xlabel="samples that share a statistic, of batches of 128", ylabel="nats")
        lines = [
            drawing.Curve(
                name,
                GHOSTS,
                [column(results, value, ghost=size) for size in GHOSTS],
                drawing.series(index),
                "-",
                "interval",
            )
            for index, (value, name) in enumerate((("gap", "gap to training"), ("loss", "validation loss")))
        ]
        drawing.curves(axes, lines)
        drawing.plain_ticks(axes.xaxis, GHOSTS)
        figure.subplots_adjust(right=0.74)
        return figure


def _effect(results: Results, value: str, size: int) -> Effect:
    estimate = bootstrap_difference(*results.paired(value, {"ghost": size}, {"ghost": BATCH}))
    what = "gap between training and validation loss" if value == "gap" else "validation loss"
    return Effect(f"sub-batches of {size} - of {BATCH}: {what}", estimate, 0.0, "below", "nats")


STUDY = GhostSize()
