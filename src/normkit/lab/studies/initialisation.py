"""C3: is training less sensitive to how weights begin, and to hyper-parameters?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import nn

from normkit.lab import drawing
from normkit.lab.bootstrap import bootstrap_difference
from normkit.lab.models import build
from normkit.lab.studies.choices import best_level, numbers
from normkit.lab.studies.conclusion import each_of, told
from normkit.lab.studies.design import crossed
from normkit.lab.studies.fit import Recipe, Samples, chance, fit, scaled
from normkit.lab.studies.networks import check_samples
from normkit.lab.studies.study import Effect, Finding, Level, Result, Results, Scale, Study, Subject, Trial

NORMS: Mapping[Scale, tuple[str, ...]] = {
    "quick": ("none", "batch"),
    "full": ("none", "batch", "layer", "group"),
}
SCALES = tuple(2.0**k for k in range(-4, 5))
MOMENTA = (0.0, 0.5, 0.9, 0.97, 0.99)
RATES = (0.01, 0.03, 0.1)
USUAL = {"factor": 1.0, "momentum": 0.9}
WIDTHS = (64, 64, 64)
STEPS, BATCH = 100, 64


class Initialisation(Study):
    """Accuracy lost away from the best initial scale, and away from the best momentum."""

    name = "initialisation"
    claim = "C3"
    statement = "Training is less sensitive to weight initialisation, and to hyper-parameters in general."
    source = "articles 001, 002, 003, 004"
    question = (
        "How many points of accuracy are lost, on average, where all initial weights are 1/16 to 16 times "
        "torch's, and where momentum is 0 to 0.99?"
    )
    design = (
        f"An MLP of three hidden layers of {WIDTHS[0]} ReLU units on 1,000 training samples, SGD, batch size "
        f"{BATCH}, {STEPS} steps. Each arm has the learning rate ({RATES[0]:g} to {RATES[-1]:g}) that is its "
        "best at torch's initial weights and momentum 0.9, and keeps it over nine factors of all initial "
        "weights and over five momenta. A run that diverges counts as chance."
    )
    rule = (
        "The shortfall: the mean, over the levels of a sweep, of the arm's best accuracy less the accuracy "
        "there; its difference between batch norm and none, paired by seed. Supported where the 95% "
        "intervals of both sweeps lie below 0, contradicted where any lies above."
    )
    literature = (
        "Glorot and Bengio (2010) and He et al. (2015) choose initial scales so that signals keep theirs; "
        "Ioffe and Szegedy (2015) report that batch norm lets one be less careful about them. Zhang et al. "
        "(2019) train deep residual networks without norm by the initialisation alone."
    )

    def trials(self, scale: Scale) -> Sequence[Trial]:
        scales = crossed(scale, norm=NORMS[scale], lr=RATES, factor=SCALES, momentum=[USUAL["momentum"]])
        momenta = [m for m in MOMENTA if m != USUAL["momentum"]]
        rest = crossed(scale, norm=NORMS[scale], lr=RATES, factor=[USUAL["factor"]], momentum=momenta)
        return sorted((*scales, *rest), key=lambda trial: trial.seed)

    def check(self, subject: Subject) -> None:
        super().check(subject)
        check_samples(self, subject, BATCH)

    def measure(self, trial: Trial, subject: Subject) -> Result:
        dataset, levels = scaled(subject.data), trial.levels

        def make() -> nn.Module:
            shape = dataset.x_train.shape[1:]
            net = build(
                "mlp",
                norm=str(levels["norm"]),
                placement="pre",
                input_shape=shape,
                classes=dataset.classes,
                widths=WIDTHS,
            )
            return scale_weights(net, float(levels["factor"]))

        recipe = Recipe(STEPS, float(levels["lr"]), BATCH, momentum=float(levels["momentum"]))
        training = fit(make, Samples.of(dataset).first(1000), recipe, seed=trial.seed)
        return {"accuracy": chance(dataset) if training.diverged else training.last.val_score}

    def judge(self, results: Results) -> Finding:
        sweeps: tuple[tuple[str, str, Sequence[Level]], ...] = (
            ("initial scale", "factor", SCALES),
            ("momentum", "momentum", MOMENTA),
        )
        norms = [str(norm) for norm in results.levels("norm") if norm != "none"]
        effects = tuple(
            Effect(
                f"{norm} - none, accuracy lost over {name}",
                bootstrap_difference(
                    shortfall(results, norm, over, at), shortfall(results, "none", over, at)
                ),
                0.0,
                "below",
                "points",
            )
            for norm in norms
            for name, over, at in sweeps
        )
        lost = {
            norm: float(np.mean(shortfall(results, norm, "factor", SCALES))) for norm in ("batch", "none")
        }
        return Finding(
            each_of(effects[:2]),
            effects,
            f"Over initial scales batch norm loses {lost['batch']:.1f} points, none {lost['none']:.1f}: "
            f"{told(effects[0].estimate)}; over momenta {told(effects[1].estimate)}.",
            counted=2,
        )

    def figure(self, results: Results) -> Figure:
        figure = Figure((drawing.WIDTH, drawing.HEIGHT))
        left, right = figure.subplots(1, 2, sharey=True)
        left.set(xscale="log", xlabel="initial weights, times torch's", ylabel="validation accuracy, %")
        right.set(xlabel="1 - momentum", xscale="log")
        for axes, over, at in ((left, "factor", SCALES), (right, "momentum", MOMENTA)):
            for norm in map(str, results.levels("norm")):
                _line(axes, results, norm, over, at)
        norms = [str(norm) for norm in results.levels("norm")]
        ends = [
            (norm, drawing.color(norm), 1.0, float(np.mean(_accuracies(results, norm, "momentum", 0.0))))
            for norm in norms
        ]
        drawing.label_ends(right, ends)
        drawing.plain_ticks(left.xaxis, SCALES[::2])
        drawing.plain_ticks(right.xaxis, [0.01, 0.03, 0.1, 0.5, 1.0])
        figure.subplots_adjust(right=0.85)
        return figure


def scale_weights(net: nn.Module, factor: float) -> nn.Module:
    """Multiply the weights of all dense layers and convolutions, not those of norms, nor biases."""
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, (nn.Linear, nn.Conv2d)):
                module.weight.mul_(factor)
    return net


def shortfall(results: Results, norm: str, over: str, at: Sequence[Level]) -> list[float]:
    """For each seed the mean distance, in points, from the accuracy at the best level to that at each."""
    accuracies = np.array([_accuracies(results, norm, over, level) for level in at])
    return (accuracies.max(axis=0) - accuracies.mean(axis=0)).tolist()


def _accuracies(results: Results, norm: str, over: str, level: Level) -> list[float]:
    """The accuracy of all seeds in percent, at the arm's learning rate."""
    lr = best_level(results, "lr", "accuracy", norm=norm, factor=USUAL["factor"], momentum=USUAL["momentum"])
    return [
        100 * value for value in numbers(results.of(norm=norm, lr=lr, **{**USUAL, over: level}), "accuracy")
    ]


def _line(axes: Axes, results: Results, norm: str, over: str, at: Sequence[Level]) -> None:
    """Median and range over the levels; the names stand at the right panel alone."""
    x = [1 - float(level) for level in at] if over == "momentum" else [float(level) for level in at]
    values = [_accuracies(results, norm, over, level) for level in at]
    low, middle, high = (np.quantile(values, q, axis=1) for q in (0, 0.5, 1))
    axes.fill_between(x, low, high, color=drawing.color(norm), alpha=0.14, lw=0)
    axes.plot(x, middle, color=drawing.color(norm), lw=2)


STUDY = Initialisation()
