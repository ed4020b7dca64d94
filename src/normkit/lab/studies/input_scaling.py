"""C17: does scaling the inputs speed and stabilise training?"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import cast

import numpy as np
from matplotlib.figure import Figure

from normkit.lab import drawing
from normkit.lab.bootstrap import bootstrap_difference, bootstrap_ratio
from normkit.lab.models import build
from normkit.lab.studies.conclusion import each_of, told
from normkit.lab.studies.design import crossed
from normkit.lab.studies.fit import Recipe, Samples, fit, scaled
from normkit.lab.studies.networks import check_samples
from normkit.lab.studies.study import Effect, Finding, Result, Results, Scale, Study, Subject, Trial

SCALINGS = ("none", "minmax", "standard")
RATES = (0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
STEPS, EVERY, BATCH = 400, 5, 64
TARGET = 0.95  # of the best arm's mean accuracy at the end


class InputScaling(Study):
    """Steps to a target, and how many learning rates reach it, by the scaling of the inputs."""

    name = "input-scaling"
    claim = "C17"
    statement = "Scaling the inputs speeds and stabilises training."
    source = "articles 000, 001, 002"
    question = "With inputs scaled, are fewer steps needed to a target, and do more learning rates reach it?"
    design = (
        "The MLP without a norm, SGD with momentum 0.9, batch size 64, 400 steps, inputs as they are, min-max "
        "scaled or standardized (fitted on the training split), eight learning rates from 0.0003 to 1. The target "
        "is 95% of the best arm's mean final accuracy."
    )
    rule = (
        "For min-max scaling and for standardization, against inputs as they are and paired by seed: steps to the "
        "target, each at its best learning rate (400 where it was not reached), and the number of learning rates "
        "that reach it. Supported where all four 95% intervals lie on the claimed side (a ratio below 1, a "
        "difference above 0), contradicted where any lies on the other."
    )
    literature = (
        "LeCun, Bottou, Orr and Müller (1998): inputs of zero mean and equal variance make the error surface of "
        "the first layer better conditioned and gradient descent faster."
    )

    def trials(self, scale: Scale) -> Sequence[Trial]:
        return crossed(scale, scaling=SCALINGS, lr=RATES)

    def check(self, subject: Subject) -> None:
        super().check(subject)
        check_samples(self, subject, BATCH)

    def measure(self, trial: Trial, subject: Subject) -> Result:
        dataset = scaled(subject.data, str(trial.levels["scaling"]))
        shape = dataset.x_train.shape[1:]
        make = partial(build, "mlp", norm="none", placement="pre", input_shape=shape, classes=dataset.classes)
        recipe = Recipe(STEPS, float(trial.levels["lr"]), BATCH, evaluate_every=EVERY)
        curve = fit(make, Samples.of(dataset), recipe, seed=trial.seed)
        scores = [reading.val_score for reading in curve.readings]
        return {"scores": scores, "diverged": curve.diverged}

    def judge(self, results: Results) -> Finding:
        target = _target(results)
        steps = {s: _steps_at_best(results, s, target) for s in SCALINGS}
        reached = {s: [sum(n < STEPS for n in row) for row in _steps(results, s, target)] for s in SCALINGS}
        effects = tuple(
            effect
            for s in SCALINGS[1:]
            for effect in (
                Effect(
                    f"{s} / none: steps to target",
                    bootstrap_ratio(steps[s], steps["none"], every=EVERY),
                    1.0,
                    "below",
                    "x",
                ),
                Effect(
                    f"{s} - none: learning rates that reach it",
                    bootstrap_difference(reached[s], reached["none"]),
                    0.0,
                    "above",
                    "rates",
                ),
            )
        )
        means = ", ".join(f"{s} {np.mean(steps[s]):.0f}" for s in SCALINGS)
        rates = ", ".join(f"{s} {np.mean(reached[s]):.1f}" for s in SCALINGS)
        return Finding(
            each_of(effects),
            effects,
            f"Steps to {100 * target:.0f}%: {means}; rates of {len(RATES)} that get there: {rates}; "
            f"standardized over raw {told(effects[2].estimate)}.",
        )

    def figure(self, results: Results) -> Figure:
        target = _target(results)
        figure = Figure((drawing.WIDTH, drawing.HEIGHT))
        axes = figure.subplots()
        axes.set(xscale="log", xlabel="learning rate", ylabel=f"steps to {100 * target:.0f}% accuracy")
        axes.set(ylim=(0, 1.04 * STEPS), title=f"{STEPS}: not reached")
        lines = [
            drawing.Curve(
                {"none": "as it is"}.get(s, s),
                RATES,
                list(zip(*_steps(results, s, target), strict=True)),
                drawing.series(index),
                "-",
                "interval",
            )
            for index, s in enumerate(SCALINGS)
        ]
        drawing.curves(axes, lines)
        drawing.plain_ticks(axes.xaxis, RATES)
        figure.subplots_adjust(right=0.82)
        return figure


def _target(results: Results) -> float:
    """A share of the highest mean accuracy at the end."""
    finals = [
        np.mean([_scores(r)[-1] for r in results.of(scaling=s, lr=lr).values() if not r["diverged"]] or [0.0])
        for s in SCALINGS
        for lr in RATES
    ]
    return TARGET * float(max(finals))


def _steps(results: Results, scaling: str, target: float) -> list[list[float]]:
    """For each seed, the steps to the target at each learning rate; all of them where it was not reached."""
    by_rate = [results.of(scaling=scaling, lr=lr) for lr in RATES]
    seeds = sorted(set.intersection(*(set(of) for of in by_rate)))
    return [[_first(_scores(of[seed]), target) for of in by_rate] for seed in seeds]


def _steps_at_best(results: Results, scaling: str, target: float) -> list[float]:
    rows = np.array(_steps(results, scaling, target))
    return rows[:, rows.mean(0).argmin()].tolist()


def _scores(result: Result) -> list[float]:
    return cast("list[float]", result["scores"])


def _first(scores: Sequence[float], target: float) -> float:
    """Steps to a score, at least those between two evaluations."""
    reached = next((index for index, score in enumerate(scores) if score >= target), None)
    return float(STEPS if reached is None else max(EVERY, reached * EVERY))


STUDY = InputScaling()
