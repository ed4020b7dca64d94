"""C14: does batch norm rescue training that would not converge at all?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import nn

import normkit as nk
from normkit.lab import drawing
from normkit.lab.bootstrap import bootstrap_difference, bootstrap_mean
from normkit.lab.data import Dataset
from normkit.lab.intervals import Estimate
from normkit.lab.studies.choices import best_level
from normkit.lab.studies.conclusion import told
from normkit.lab.studies.design import column, crossed, finite
from normkit.lab.studies.fit import Recipe, Samples, fit, scaled
from normkit.lab.studies.networks import check_samples
from normkit.lab.studies.study import Effect, Finding, Result, Results, Scale, Study, Subject, Trial

DEPTHS = (3, 6, 9)
RATES = (0.01, 0.1, 1.0)
STEPS, BATCH, UNITS = 300, 60, 100
STUCK = 2.0  # times chance, below which a network has learned nothing worth the name


class Rescue(Study):
    """Deep sigmoid networks with and without batch norm, at every learning rate."""

    name = "rescue"
    claim = "C14"
    statement = "Batch norm rescues training that would not converge at all."
    source = "article 004, after Ioffe and Szegedy (2015), section 4.1"
    question = (
        "Where a deep sigmoid network stays at chance at every learning rate, does it learn with batch norm?"
    )
    design = (
        "Networks of 3 (the original's), 6 and 9 hidden layers of 100 sigmoid units, weights N(0, 0.1^2), with "
        "batch norm before each sigmoid or none; SGD with momentum 0.9, batch size 60, 300 steps, learning "
        "rates 0.01, 0.1 and 1, each arm at its best by mean accuracy."
    )
    rule = (
        "Judged at the least depth where the network without a norm is stuck: at its best learning rate the "
        "95% interval of validation accuracy lies below twice chance. Supported where batch norm's interval "
        "lies above that line there, contradicted where it too lies below. Undecided otherwise, also where no "
        "depth is stuck."
    )
    literature = (
        "Ioffe and Szegedy (2015) train three sigmoid layers of 100 units on MNIST faster and to a higher accuracy "
        "with batch norm; their Inception with sigmoids in place of ReLU stays at chance without it and reaches "
        "69.8% with it. Glorot and Bengio (2010) trace such failures to saturated top layers."
    )

    def trials(self, scale: Scale) -> Sequence[Trial]:
        return crossed(scale, depth=DEPTHS, norm=("none", "batch"), lr=RATES)

    def check(self, subject: Subject) -> None:
        super().check(subject)
        check_samples(self, subject, BATCH)

    def measure(self, trial: Trial, subject: Subject) -> Result:
        levels, dataset = trial.levels, scaled(subject.data)
        make = partial(deep_sigmoid, int(levels["depth"]), str(levels["norm"]), dataset)
        recipe = Recipe(STEPS, float(levels["lr"]), BATCH)
        curve = fit(make, Samples.of(dataset), recipe, seed=trial.seed)
        chance = float(np.bincount(dataset.y_val).max() / len(dataset.y_val))
        return finite({"accuracy": curve.last.val_score, "chance": chance})

    def judge(self, results: Results) -> Finding:
        line = STUCK * max(column(results, "chance", depth=DEPTHS[0], norm="none", lr=RATES[0]))
        by_depth = {
            depth: {norm: _accuracies(results, depth, norm) for norm in ("none", "batch")} for depth in DEPTHS
        }
        stuck = [d for d, arms in by_depth.items() if bootstrap_mean(arms["none"]).below(line)]
        depth = stuck[0] if stuck else DEPTHS[-1]
        of = {norm: bootstrap_mean(values) for norm, values in by_depth[depth].items()}
        effects = tuple(
            Effect(f"batch - none at depth {d}: accuracy", _difference(arms), 0.0, "above", "points")
            for d, arms in sorted(by_depth.items(), key=lambda item: item[0] != depth)
        )
        words = (
            f"{100 * of['none'].mean:.1f}% without a norm and {100 * of['batch'].mean:.1f}% with batch norm"
        )
        where = f"depth {depth}, " + ("the least that is stuck" if stuck else "and no depth is stuck")
        sentence = f"At {where}: {words}; a difference of {told(effects[0].estimate, 3)} points."
        if stuck and of["batch"].above(line):
            return Finding("supported", effects, sentence)
        if stuck and of["batch"].below(line):
            return Finding("contradicted", effects, sentence)
        return Finding("undecided", effects, sentence)

    def figure(self, results: Results) -> Figure:
        figure = Figure((drawing.WIDTH, drawing.HEIGHT))
        axes = figure.subplots()
        axes.set(xlabel="hidden layers of sigmoid units", ylabel="validation accuracy, %", ylim=(0, 102))
        axes.set_title("each at its best learning rate")
        lines = [
            drawing.Curve(
                "no norm" if norm == "none" else norm,
                DEPTHS,
                [[100 * a for a in _accuracies(results, depth, norm)] for depth in DEPTHS],
                drawing.color(norm),
                "-",
                "interval",
            )
            for norm in ("none", "batch")
        ]
        drawing.curves(axes, lines)
        axes.set_xticks(DEPTHS)
        figure.subplots_adjust(right=0.82)
        return figure


def deep_sigmoid(depth: int, norm: str, dataset: Dataset) -> nn.Module:
    """So many layers of 100 sigmoid units, weights N(0, 0.1^2) and biases 0: N3 where there are three."""
    features = int(np.prod(dataset.x_train.shape[1:]))
    modules: list[nn.Module] = [nn.Flatten()]
    for _ in range(depth):
        modules.append(nn.Linear(features, UNITS))
        modules += [nk.BatchNorm1d(UNITS)] if norm == "batch" else []
        modules.append(nn.Sigmoid())
        features = UNITS
    network = nn.Sequential(*modules, nn.Linear(features, dataset.classes))
    for module in network:
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.1)
            torch.nn.init.zeros_(module.bias)
    return network


def _accuracies(results: Results, depth: int, norm: str) -> list[float]:
    lr = best_level(results, "lr", "accuracy", depth=depth, norm=norm)
    return column(results, "accuracy", depth=depth, norm=norm, lr=lr)


def _difference(arms: Mapping[str, Sequence[float]]) -> Estimate:
    batch, none = ([100 * accuracy for accuracy in arms[norm]] for norm in ("batch", "none"))
    return bootstrap_difference(batch, none)


STUDY = Rescue()
