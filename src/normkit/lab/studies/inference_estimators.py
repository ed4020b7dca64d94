"""C20: do the four estimators of inference statistics differ in accuracy?"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Literal, get_args

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

import normkit as nk
from normkit.lab import drawing
from normkit.lab.bootstrap import bootstrap_mean
from normkit.lab.intervals import Estimate
from normkit.lab.studies.conclusion import told
from normkit.lab.studies.design import column, crossed, within
from normkit.lab.studies.fit import Recipe, Samples, accuracy, fit, scaled
from normkit.lab.studies.networks import check_own_network, check_samples, network
from normkit.lab.studies.study import Effect, Finding, Result, Results, Scale, Study, Subject, Trial, Verdict

Estimator = Literal["exponential", "cumulative", "random", "exact"]
ESTIMATORS: tuple[Estimator, ...] = get_args(Estimator)
BATCHES = (8, 32)
SMALL = 8  # the batch size of the verdict
STEPS = 200
DRAWS = 8  # of the one batch picked at random
SAME = 0.5  # points of accuracy, within which estimators count as equal
CONFIDENCE = 1 - 0.05 / 3  # three comparisons


class InferenceEstimators(Study):
    """One trained network, its inference statistics estimated in four ways."""

    name = "inference-estimators"
    claim = "C20"
    statement = "The four estimators of inference statistics differ in accuracy."
    source = "articles 003, 004"
    question = (
        "How far is the accuracy by a moving average, by the average over batches and by one batch picked at random "
        "from that by the whole training set?"
    )
    design = (
        "The CNN (the MLP where samples are no images) with batch norm, Adam at 0.001, 200 steps at batch size 8 and "
        "32. Then `nk.recalibrate` with each estimator over an epoch of batches of that size (the moving average with "
        "momentum 0.1), and validation accuracy; for the batch picked at random the mean of 8 draws."
    )
    rule = (
        "Accuracy of each of the three minus that by the whole training set, at batch size 8, paired by seed, "
        "intervals of 98.3% for three comparisons. Supported where any interval excludes 0, contradicted where all "
        "lie within half a point of 0, else undecided."
    )
    literature = (
        "Ioffe and Szegedy (2015), algorithm 2, average over many batches of the trained network; common practice is "
        "the moving average of training. Wu and Johnson (2021) find exact statistics and their average over "
        "batches alike from batches of moderate size on, and moving averages worse early in training."
    )
    takes_model = True

    def trials(self, scale: Scale) -> Sequence[Trial]:
        return crossed(scale, batch=BATCHES)

    def check(self, subject: Subject) -> None:
        super().check(subject)
        check_samples(self, subject, max(BATCHES))
        check_own_network(subject, "batch")

    def measure(self, trial: Trial, subject: Subject) -> Result:
        size, dataset = int(trial.levels["batch"]), scaled(subject.data)
        samples, recipe = Samples.of(dataset), Recipe(STEPS, 0.001, size, "adam")
        net = fit(
            partial(network, subject, "batch", dataset), samples, recipe, seed=trial.seed
        ).network.eval()
        generator = torch.Generator().manual_seed(trial.seed)
        order = torch.randperm(len(samples.x), generator=generator)
        batches = [part for part in samples.x[order].split(size) if len(part) == size]
        return {
            name: _accuracy(net, batches, name, samples, generator, DRAWS if name == "random" else 1)
            for name in ESTIMATORS
        }

    def judge(self, results: Results) -> Finding:
        effects = tuple(
            Effect(
                f"{name} - whole training set: accuracy",
                _apart(results, name, SMALL),
                0.0,
                "below",
                "points",
            )
            for name in ("random", "exponential", "cumulative")
        )
        whole = np.mean(column(results, "exact", batch=SMALL))
        differ = ", ".join(f"{e.label.split(' ')[0]} {told(e.estimate)}" for e in effects)
        sentence = (
            f"At batch size {SMALL}, points of accuracy from the whole training set's {whole:.1f}%: {differ}."
        )
        return Finding(_verdict([effect.estimate for effect in effects]), effects, sentence)

    def figure(self, results: Results) -> Figure:
        figure = Figure((drawing.WIDTH, drawing.HEIGHT))
        axes = figure.subplots(1, len(BATCHES), sharey=True)
        names = {"exponential": "moving average", "cumulative": "average of batches", "random": "one batch"}
        for panel, size in zip(axes, BATCHES, strict=True):
            for row, name in enumerate(ESTIMATORS):
                drawing.dots(panel, row, column(results, name, batch=size), drawing.series(row))
            drawing.rows(panel, [names.get(name, "whole training set") for name in ESTIMATORS])
            panel.set(title=f"batch size {size}", xlabel="validation accuracy, %")
        figure.subplots_adjust(left=0.22)
        return figure


def _accuracy(
    net: nn.Module,
    batches: Sequence[Tensor],
    estimator: Estimator,
    samples: Samples,
    generator: torch.Generator,
    draws: int,
) -> float:
    """In percent; the network is as it was afterwards."""
    found = list[float]()
    for _ in range(draws):
        with nk.recalibrate(net, batches, estimator=estimator, generator=generator), torch.no_grad():
            found.append(100 * accuracy(net(samples.x_val), samples.y_val))
    return sum(found) / draws


def _apart(results: Results, name: str, size: int) -> Estimate:
    mine, whole = within(results, name, "exact", batch=size)
    return bootstrap_mean([a - b for a, b in zip(mine, whole, strict=True)], CONFIDENCE)


def _verdict(apart: Sequence[Estimate]) -> Verdict:
    if any(estimate.below(0) or estimate.above(0) for estimate in apart):
        return "supported"
    return "contradicted" if all(e.above(-SAME) and e.below(SAME) for e in apart) else "undecided"


STUDY = InferenceEstimators()
