"""C10: do small batches make its statistics noisy and hurt training? The batch sizes of the group norm paper, and 1."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from torch import nn

from normkit.lab import drawing
from normkit.lab.bootstrap import bootstrap_difference, bootstrap_mean
from normkit.lab.data import Dataset
from normkit.lab.models import begin, build, norms_of
from normkit.lab.studies.choices import best_level, numbers
from normkit.lab.studies.conclusion import agreed, told
from normkit.lab.studies.design import crossed
from normkit.lab.studies.fit import Recipe, Samples, chance, fit, scaled
from normkit.lab.studies.networks import check_images, check_samples
from normkit.lab.studies.study import Effect, Finding, Result, Results, Scale, Study, Subject, Trial

JUDGED = ("none", "batch", "group", "renorm")  # at these sizes, with all seeds
SIZES = (2, 8, 64)
ALL_NORMS = norms_of("residual")
ALL_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
RATES = (0.002, 0.008)
SMALL, LARGE = 2, 64  # the batch sizes of the contrast
SAMPLES, EPOCHS = 512, 6
COLUMNS = 5  # of panels
LEAST_SHOWN = 0.1  # percent: a logarithmic axis has no 0
SHOWN_SEEDS = 2  # of all norms at all sizes, for the figure of a full run


class BatchSize(Study):
    """The error over the batch size, for all norms, at the same number of epochs."""

    name = "batch-size"
    claim = "C10"
    statement = "Small batches make its statistics noisy and hurt training."
    source = "article 002"
    question = "How much does the error rise from batch size 64 to 2, with batch norm beside group norm?"
    design = (
        f"The residual network on {SAMPLES} training samples for {EPOCHS} epochs, Adam, at batch sizes "
        f"{SMALL}, 8 and {LARGE}; each norm at each size has the better learning rate of {RATES[0]:g} and "
        f"{RATES[1]:g}. The full run adds, with {SHOWN_SEEDS} seeds and for the figure alone, all norms and "
        "batch sizes 1 to 256: in this network norms over samples take a single image by its pixels. A run "
        "that diverges has the error of chance."
    )
    rule = (
        f"The rise of the validation error from batch size {LARGE} to {SMALL}: with batch norm, and that less "
        "the rise with group norm, paired by seed. Supported where both 95% intervals lie above 0, "
        "contradicted where both lie below."
    )
    literature = (
        "Wu and He (2018), figure 1: on ImageNet the error of ResNet-50 with batch norm rises by more than "
        "10 points from 32 images a device to 2, that of group norm stays. Ioffe (2017) repairs small "
        "batches by batch renormalization. Masters and Luschi (2018) find small batches best for "
        "generalisation, also with batch norm."
    )

    def trials(self, scale: Scale) -> Sequence[Trial]:
        judged = crossed(scale, norm=JUDGED, size=SIZES, lr=RATES)
        if scale == "quick":
            return judged
        shown = [t for t in crossed(scale, norm=ALL_NORMS, size=ALL_SIZES, lr=RATES) if t.seed < SHOWN_SEEDS]
        rest = [trial for trial in shown if trial not in judged]
        return sorted((*judged, *rest), key=lambda trial: trial.seed)

    def check(self, subject: Subject) -> None:
        super().check(subject)
        check_images(self, subject)
        check_samples(self, subject, max(ALL_SIZES))

    def measure(self, trial: Trial, subject: Subject) -> Result:
        dataset, size = scaled(subject.data), int(trial.levels["size"])
        samples = Samples.of(dataset).first(SAMPLES)
        recipe = Recipe(EPOCHS * len(samples.x) // size, float(trial.levels["lr"]), size, "adam")
        training = fit(
            lambda: _network(str(trial.levels["norm"]), dataset, samples, size),
            samples,
            recipe,
            seed=trial.seed,
        )
        right = chance(dataset) if training.diverged else training.last.val_score
        return {"error": 100 * (1 - right)}

    def judge(self, results: Results) -> Finding:
        name = f"rise of the error from batch size {LARGE} to {SMALL}"
        batch, group = (rises(results, norm) for norm in ("batch", "group"))
        effects = (
            Effect(f"batch - group, {name}", bootstrap_difference(batch, group), 0.0, "above", "points"),
            Effect(f"batch, {name}", bootstrap_mean(batch), 0.0, "above", "points"),
            *(
                Effect(
                    f"batch - {norm}, {name}",
                    bootstrap_difference(batch, rises(results, norm)),
                    0.0,
                    "above",
                    "points",
                )
                for norm in ("none", "renorm")
            ),
        )
        return Finding(
            agreed(effects[:2]),
            effects,
            f"From batch size {LARGE} to {SMALL} the error rises by {told(bootstrap_mean(batch))} points with "
            f"batch norm and by {told(bootstrap_mean(group))} with group norm.",
            counted=2,
        )

    def figure(self, results: Results) -> Figure:
        """A panel for each norm, with batch norm behind it."""
        norms = [str(norm) for norm in results.levels("norm")]
        rows = -(-len(norms) // COLUMNS)
        figure = Figure((drawing.WIDTH, 0.6 + 1.25 * rows))
        panels = figure.subplots(rows, COLUMNS, sharex=True, sharey=True, squeeze=False)
        for axes in panels.flat[len(norms) :]:
            axes.set_visible(False)
        for axes, norm in zip(panels.flat, norms, strict=False):
            axes.set(xscale="log", yscale="log")
            axes.set_title(norm, color=drawing.color(norm), fontsize=8)
            for shown, shade, width in (("batch", drawing.rule(), 2.5), (norm, drawing.color(norm), 1.6)):
                sizes = sorted(
                    {int(t.levels["size"]) for t, _ in results.measured if t.levels["norm"] == shown}
                )
                medians = [max(float(np.median(errors(results, shown, size))), LEAST_SHOWN) for size in sizes]
                axes.plot(sizes, medians, color=shade, linewidth=width)
            drawing.plain_ticks(axes.xaxis, [1, 8, 64])
            drawing.plain_ticks(axes.yaxis, [2, 10, 50])
        figure.supxlabel("batch size", fontsize=10)
        figure.supylabel("validation error, %; behind each norm, batch norm", fontsize=10)
        figure.subplots_adjust(left=0.1, right=0.99, top=0.95, bottom=0.11, hspace=0.45, wspace=0.2)
        return figure


def _network(norm: str, dataset: Dataset, samples: Samples, size: int) -> nn.Module:
    shape, classes = dataset.x_train.shape[1:], dataset.classes
    net = build("residual", norm=norm, placement="pre", input_shape=shape, classes=classes)
    begin(net, norm, samples.x[: max(2, size)])
    return net


def errors(results: Results, norm: str, size: int) -> list[float]:
    """The error of each seed in percent, at the better learning rate."""
    lr = best_level(results, "lr", "error", most=False, norm=norm, size=size)
    return numbers(results.of(norm=norm, size=size, lr=lr), "error")


def rises(results: Results, norm: str) -> list[float]:
    """In points, by how much the error of each seed is higher at the small batch size than at the large one."""
    small, large = errors(results, norm, SMALL), errors(results, norm, LARGE)
    return [a - b for a, b in zip(small, large, strict=True)]


STUDY = BatchSize()
