"""C2: can much larger learning rates be used?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from normkit.lab import drawing
from normkit.lab.bootstrap import bootstrap_ratio
from normkit.lab.studies.choices import numbers
from normkit.lab.studies.conclusion import told
from normkit.lab.studies.design import crossed
from normkit.lab.studies.fit import Recipe, Samples, chance, fit, scaled
from normkit.lab.studies.networks import check_own_network, check_samples, network
from normkit.lab.studies.study import Effect, Finding, Result, Results, Scale, Study, Subject, Trial

NORMS: Mapping[Scale, tuple[str, ...]] = {
    "quick": ("none", "batch"),
    "full": ("none", "batch", "layer", "group"),
}
RATES = tuple(0.01 * 2**k for k in range(13))
STEPS, BATCH = 60, 64
MUCH = 2.0  # times the rate: what the claim's "much larger" must exceed


class LearningRate(Study):
    """A sweep of the learning rate until training diverges, with and without norm."""

    name = "learning-rate"
    claim = "C2"
    statement = "Much larger learning rates can be used."
    source = "all articles"
    question = (
        "How many times larger is the largest learning rate at which a network with batch norm still learns?"
    )
    design = (
        "The CNN (on samples without space the MLP) on 1,000 training samples, SGD with momentum 0.9, batch "
        f"size {BATCH}, {STEPS} steps, at learning rates from {RATES[0]:g}, each twice the one before, to "
        f"{RATES[-1]:g}. A rate is usable where training stays finite and ends halfway or more from chance to "
        "the best accuracy of any run of the seed."
    )
    rule = (
        "The geometric mean, over seeds, of the largest usable rate with batch norm over the largest "
        "without; where no rate is usable, half the lowest counts. Supported where the 95% interval lies "
        f"above {MUCH:g}, which is what `much larger` is taken to mean, contradicted where it lies below."
    )
    literature = (
        "Ioffe and Szegedy (2015) train at 5 and 30 times the learning rate. Bjorck et al. (2018) find that "
        "networks without norm diverge at the rates that norm makes possible, and that most of its benefit "
        "comes from these rates."
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
            Recipe(STEPS, float(trial.levels["lr"]), BATCH),
            seed=trial.seed,
        )
        ended = None if training.diverged else training.last.val_score
        return {"accuracy": ended, "steps": len(training.batch_losses), "chance": chance(dataset)}

    def judge(self, results: Results) -> Finding:
        largest = {str(norm): largest_usable(results, str(norm)) for norm in results.levels("norm")}
        effects = tuple(
            Effect(
                f"{norm} / none, largest usable learning rate",
                bootstrap_ratio(largest[norm], largest["none"]),
                MUCH,
                "above",
                "x",
            )
            for norm in largest
            if norm != "none"
        )
        medians = {norm: float(np.median(largest[norm])) for norm in largest}
        return Finding(
            effects[0].verdict,
            effects,
            f"The largest usable learning rate is {told(effects[0].estimate)} times that without norm: "
            f"{medians['batch']:g} against {medians['none']:g}.",
        )

    def figure(self, results: Results) -> Figure:
        figure = Figure((drawing.WIDTH, drawing.HEIGHT))
        axes = figure.subplots()
        axes.set(xscale="log", xlabel="learning rate", ylabel="validation accuracy, % (diverged: chance)")
        lines = list[drawing.Curve]()
        for norm in map(str, results.levels("norm")):
            values = [
                [100 * accuracy for accuracy in ended(results, norm, lr).values()]
                for lr in results.levels("lr")
            ]
            lines.append(
                drawing.Curve(norm, [*map(float, results.levels("lr"))], values, drawing.color(norm))
            )
        drawing.curves(axes, lines)
        drawing.plain_ticks(axes.xaxis, RATES[::2])
        figure.subplots_adjust(right=0.85)
        return figure


def ended(results: Results, norm: str, lr: object) -> dict[int, float]:
    """By seed the accuracy that a run ended with, that of chance where it diverged."""
    runs = results.of(norm=norm, lr=float(lr))  # pyright: ignore[reportArgumentType]
    return {
        seed: numbers({seed: run}, "accuracy" if run["accuracy"] is not None else "chance")[0]
        for seed, run in runs.items()
    }


def largest_usable(results: Results, norm: str) -> list[float]:
    """For each seed the largest learning rate at which a norm learns."""
    rates = [float(lr) for lr in results.levels("lr")]
    by_rate = {lr: ended(results, norm, lr) for lr in rates}
    found = list[float]()
    for seed in sorted(by_rate[rates[0]]):
        needed = _needed(results, seed)
        found.append(max((lr for lr in rates if by_rate[lr][seed] >= needed), default=rates[0] / 2))
    return found


def _needed(results: Results, seed: int) -> float:
    """Halfway from chance to the best accuracy of a seed."""
    of_seed = [result for trial, result in results.measured if trial.seed == seed]
    floor = numbers({seed: of_seed[0]}, "chance")[0]
    best = max(numbers(dict(enumerate(of_seed)), "accuracy"), default=1.0)
    # a seed of which no run learned has no usable rate
    return floor + 0.5 * (best - floor) if best > floor else 1.0


STUDY = LearningRate()
