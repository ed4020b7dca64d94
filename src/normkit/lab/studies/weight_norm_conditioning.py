"""C16: does weight norm improve conditioning, and speed convergence?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from torch import nn

from normkit.lab import drawing
from normkit.lab.bootstrap import bootstrap_ratio
from normkit.lab.studies.choices import best_level
from normkit.lab.studies.conclusion import each_of, told
from normkit.lab.studies.curvature import condition
from normkit.lab.studies.design import column, crossed, finite
from normkit.lab.studies.fit import Instrument, Moment, Recipe, Samples, fit, scaled, seeded
from normkit.lab.studies.networks import check_samples, network
from normkit.lab.studies.study import Effect, Finding, Level, Result, Results, Scale, Study, Subject, Trial

NORMS = ("none", "weight_norm")
RATES = (0.01, 0.03, 0.1, 0.3)
STEPS, BATCH = 200, 64
READ_AT = (0, 20, 60, 199)  # steps taken
SAMPLES = 64  # of which the curvature is taken


class WeightNormConditioning(Study):
    """The condition of the Gauss-Newton matrix along a training, and how fast the loss falls."""

    name = "weight-norm-conditioning"
    claim = "C16"
    statement = "Weight norm improves conditioning and speeds convergence."
    source = "article 002, after Salimans and Kingma (2016)"
    question = "With weight norm, is the loss better conditioned along the training, and does it fall faster?"
    design = (
        "The MLP, plain or with weight norm on its hidden layers (first values from data, as in its paper), SGD with "
        "momentum 0.9, batch size 64, 200 steps, each arm at the best of four learning rates by mean training loss "
        "over all steps. Condition is the largest eigenvalue of the Gauss-Newton matrix of 64 samples over the mean "
        "one, the geometric mean of four readings along the training."
    )
    rule = (
        "Weight norm over none, paired by seed: the condition, and the mean training loss over all steps. Supported "
        "where both 95% intervals lie below 1, contradicted where either lies above."
    )
    literature = (
        "Salimans and Kingma (2016) derive that weight norm projects the gradient away from the weight and scales it, "
        "which brings its covariance closer to the identity, and show faster convergence. Gitman and Ginsburg (2017): "
        "on ResNet-50 weight norm fits the training set and ends less accurate on test images than batch norm."
    )

    def trials(self, scale: Scale) -> Sequence[Trial]:
        return crossed(scale, norm=NORMS, lr=RATES)

    def check(self, subject: Subject) -> None:
        super().check(subject)
        check_samples(self, subject, BATCH)

    def measure(self, trial: Trial, subject: Subject) -> Result:
        dataset = scaled(subject.data)
        samples, norm = Samples.of(dataset), str(trial.levels["norm"])
        with seeded(trial.seed):
            plain = network(subject, "none", dataset, model="mlp")
        meter = _Condition(samples.first(SAMPLES), sum(p.numel() for p in plain.parameters()))

        def make() -> nn.Module:
            return network(subject, norm, dataset, model="mlp")

        recipe = Recipe(STEPS, float(trial.levels["lr"]), BATCH)
        curve = fit(make, samples, recipe, seed=trial.seed, instruments=[meter])
        if curve.diverged or len(meter.readings) < len(READ_AT):
            return {"condition": None, "loss": None, "conditions": meter.readings, "losses": []}
        means = finite(
            {
                "condition": float(np.exp(np.mean(np.log(meter.readings)))),
                "loss": float(np.mean(curve.batch_losses)),
            }
        )
        return {**means, "conditions": meter.readings, "losses": list(curve.batch_losses)}

    def judge(self, results: Results) -> Finding:
        effects = tuple(
            Effect(
                f"weight norm / none: {label}",
                bootstrap_ratio(*results.paired(value, _arm(results, "weight_norm"), _arm(results, "none"))),
                1.0,
                "below",
                "x",
            )
            for value, label in (("condition", "condition"), ("loss", "training loss, mean over steps"))
        )
        means = {norm: np.mean(column(results, "condition", **_arm(results, norm))) for norm in NORMS}
        return Finding(
            each_of(effects),
            effects,
            f"With weight norm the condition is {told(effects[0].estimate)} of that without ({means['none']:.0f}), the "
            f"training loss {told(effects[1].estimate)}.",
        )

    def figure(self, results: Results) -> Figure:
        figure = Figure((drawing.WIDTH, drawing.HEIGHT))
        left, right = figure.subplots(1, 2)
        shades = {norm: drawing.series(index) for index, norm in enumerate(NORMS)}
        for axes, value, steps in ((left, "conditions", READ_AT), (right, "losses", range(0, STEPS, 10))):
            lines = list[drawing.Curve]()
            for norm in NORMS:
                rows = [r[value] for r in results.of(**_arm(results, norm)).values() if r["loss"] is not None]
                taken = np.array(rows, dtype=float)
                if value == "losses":  # of single batches: ten steps together say more
                    taken = taken.reshape(len(taken), -1, 10).mean(2)
                name = norm.replace("weight_norm", "weight norm").replace("none", "no norm")
                columns = taken.T.tolist()
                lines.append(drawing.Curve(name, list(steps), columns, shades[norm], "-", "interval"))
            axes.set(xlabel="step", yscale="log")
            drawing.curves(axes, lines)
        left.set_title("largest curvature / mean")
        right.set_title("training loss")
        figure.subplots_adjust(wspace=0.9, right=0.82, bottom=0.16)
        return figure


class _Condition(Instrument):
    """Reads the condition at some steps, in evaluation mode."""

    def __init__(self, samples: Samples, dimensions: int) -> None:
        self.x, self.dimensions = samples.x, dimensions
        self.readings: list[float] = []

    def before(self, moment: Moment) -> None:
        if moment.step in READ_AT:
            moment.network.eval()
            self.readings.append(condition(moment.network, self.x, self.dimensions))
            moment.network.train()


def _arm(results: Results, norm: str) -> dict[str, Level]:
    return {"norm": norm, "lr": best_level(results, "lr", "loss", most=False, norm=norm)}


STUDY = WeightNormConditioning()
