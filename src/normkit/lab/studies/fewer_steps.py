"""C1: does training converge in fewer steps?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from normkit.lab import drawing
from normkit.lab.bootstrap import bootstrap_ratio
from normkit.lab.studies.choices import best_level, curve, numbers
from normkit.lab.studies.conclusion import told
from normkit.lab.studies.design import crossed
from normkit.lab.studies.fit import Recipe, Samples, chance, fit, scaled
from normkit.lab.studies.networks import check_own_network, check_samples, network
from normkit.lab.studies.study import Effect, Finding, Result, Results, Scale, Study, Subject, Trial

NORMS: Mapping[Scale, tuple[str, ...]] = {
    "quick": ("none", "batch"),
    "full": ("none", "batch", "layer", "group"),
}
RATES = (0.01, 0.03, 0.1, 0.3)
STEPS, EVERY, BATCH = 120, 3, 64
SHARE = 0.95  # of the way from chance to the best accuracy that any arm ends with


class FewerSteps(Study):
    """Steps to the same validation accuracy, each arm at its own best learning rate."""

    name = "fewer-steps"
    claim = "C1"
    statement = "Training converges in fewer steps."
    source = "all articles"
    question = (
        "How many steps does a network with batch norm need to a validation accuracy, as a share of those "
        "without?"
    )
    design = (
        "The CNN (on samples without space the MLP) on 1,000 training samples, SGD with momentum 0.9, batch "
        f"size {BATCH}, {STEPS} steps, at learning rates {RATES[0]:g} to {RATES[-1]:g}; the validation "
        f"accuracy is read every {EVERY} steps. The target is 95% of the way from chance to the best median "
        "final accuracy of all arms. Each arm stands at the learning rate that reaches the target in the "
        "fewest steps."
    )
    rule = (
        "The geometric mean, over seeds, of steps with batch norm over steps without. A run that never gets "
        "to the target counts as if it had at its end, which draws the ratio towards 1. Supported where the "
        "95% interval lies below 1, contradicted where it lies above."
    )
    literature = (
        "Ioffe and Szegedy (2015) reach the accuracy of Inception on ImageNet in 14 times fewer steps, at a "
        "learning rate 5 times higher. De and Smith (2020) find that residual networks without norm train as "
        "well once their blocks begin near the identity, unless the batch is large."
    )
    takes_model = True

    def trials(self, scale: Scale) -> Sequence[Trial]:
        return crossed(scale, norm=NORMS[scale], lr=RATES)

    def check(self, subject: Subject) -> None:
        super().check(subject)
        check_samples(self, subject, BATCH)
        check_own_network(subject, "batch")

    def measure(self, trial: Trial, subject: Subject) -> Result:
        dataset = scaled(subject.data)
        training = fit(
            lambda: network(subject, str(trial.levels["norm"]), dataset),
            Samples.of(dataset).first(1000),
            Recipe(STEPS, float(trial.levels["lr"]), BATCH, evaluate_every=EVERY),
            seed=trial.seed,
        )
        return {
            "step": [reading.step for reading in training.readings],
            "accuracy": [reading.val_score for reading in training.readings],
            "final accuracy": None if training.diverged else training.last.val_score,
            "chance": chance(dataset),
        }

    def judge(self, results: Results) -> Finding:
        target = _target(results)
        timed = _timed(results, target)
        rates = _rates(timed)
        effects = tuple(
            Effect(
                f"{norm} / none, steps to {target:.0%}",
                bootstrap_ratio(
                    *timed.paired(
                        "steps", {"norm": norm, "lr": rates[norm]}, {"norm": "none", "lr": rates["none"]}
                    ),
                    every=EVERY,
                ),
                1.0,
                "below",
                "x",
            )
            for norm in rates
            if norm != "none"
        )
        return Finding(
            effects[0].verdict,
            effects,
            f"Batch norm takes {told(effects[0].estimate)} times the steps to {target:.0%}, at learning rate "
            f"{rates['batch']:g} against {rates['none']:g} without.",
        )

    def figure(self, results: Results) -> Figure:
        target = _target(results)
        figure = Figure((drawing.WIDTH, drawing.HEIGHT))
        axes = figure.subplots()
        axes.set(xlabel="steps", ylabel="validation accuracy, %")
        lines = list[drawing.Curve]()
        for norm, lr in _rates(_timed(results, target)).items():
            runs = [run for run in results.of(norm=norm, lr=lr).values() if run["final accuracy"] is not None]
            steps = curve(runs[0], "step") if runs else []
            values = [[100 * curve(run, "accuracy")[i] for run in runs] for i in range(len(steps))]
            lines.append(drawing.Curve(f"{norm} {lr:g}", steps, values, drawing.color(norm)))
        axes.axhline(100 * target, color=drawing.ink(), lw=0.8, ls=(0, (2, 2)))
        drawing.curves(axes, lines)
        figure.subplots_adjust(right=0.8)
        return figure


def _target(results: Results) -> float:
    """The accuracy that steps are counted to."""
    arms = [results.of(norm=norm, lr=lr) for norm in results.levels("norm") for lr in results.levels("lr")]
    floor = numbers(arms[0], "chance")[0]
    medians = [float(np.median(numbers(arm, "final accuracy") or [floor])) for arm in arms]
    return floor + SHARE * max(max(medians) - floor, 0.0)


def _timed(results: Results, target: float) -> Results:
    """The same trials with their steps to the target."""

    def steps(result: Result) -> float:
        readings = zip(curve(result, "step"), curve(result, "accuracy"), strict=True)
        return next((step for step, accuracy in readings if accuracy >= target and step > 0), STEPS)

    return Results((trial, {"steps": steps(result)}) for trial, result in results.measured)


def _rates(timed: Results) -> dict[str, float]:
    """For each norm the learning rate of the fewest steps."""
    norms = map(str, timed.levels("norm"))
    return {norm: float(best_level(timed, "lr", "steps", most=False, norm=norm)) for norm in norms}


STUDY = FewerSteps()
