"""C4: does a layer's gradient change less when the layers before it move? Internal covariate shift as of gradients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from normkit.lab import drawing
from normkit.lab.bootstrap import bootstrap_mean, bootstrap_ratio
from normkit.lab.models import build
from normkit.lab.studies.choices import best_level, numbers
from normkit.lab.studies.conclusion import agreed, told
from normkit.lab.studies.design import crossed
from normkit.lab.studies.fit import Recipe, Samples, fit, scaled
from normkit.lab.studies.instruments import GradientShift
from normkit.lab.studies.networks import check_samples
from normkit.lab.studies.study import Effect, Finding, Result, Results, Scale, Study, Subject, Trial

NORMS: Mapping[Scale, tuple[str, ...]] = {"quick": ("none", "batch"), "full": ("none", "batch", "layer")}
RATES = (0.003, 0.01, 0.03, 0.1)
WIDTHS = (64,) * 5
STEPS, EVERY, BATCH = 80, 4, 64


class GradientShiftStudy(Study):
    """The change of each layer's gradient by the step of the layers before it."""

    name = "gradient-shift"
    claim = "C4"
    statement = (
        "Internal covariate shift, as the change of a layer's gradient when earlier layers move, is smaller."
    )
    source = "all articles; Santurkar et al. (2018) define it so"
    question = (
        "How much does a layer's gradient change, on the same batch, when the layers before it take their "
        "step?"
    )
    design = (
        f"An MLP of {len(WIDTHS)} hidden layers of {WIDTHS[0]} ReLU units on 1,000 training samples, SGD with "
        f"momentum 0.9, batch size {BATCH}, {STEPS} steps, learning rates {RATES[0]:g} to {RATES[-1]:g}. "
        f"Every {EVERY} steps, for each layer but the first: the distance of its gradient before and after "
        "the layers below have moved, over the gradient's length. Arms are compared each at its own best "
        "rate by mean loss, and both at the best rate of none."
    )
    rule = (
        "The geometric mean, over seeds, of the relative change with batch norm over that without. Supported "
        "where the 95% intervals of both comparisons lie below 1, contradicted where both lie above."
    )
    literature = (
        "Santurkar et al. (2018), section 2.2: by this measure networks with batch norm have as much "
        "internal covariate shift as those without, or more, while they train faster."
    )

    def trials(self, scale: Scale) -> Sequence[Trial]:
        return crossed(scale, norm=NORMS[scale], lr=RATES)

    def check(self, subject: Subject) -> None:
        super().check(subject)
        check_samples(self, subject, BATCH)

    def measure(self, trial: Trial, subject: Subject) -> Result:
        dataset, norm = scaled(subject.data), str(trial.levels["norm"])
        look = GradientShift(EVERY)
        shape, classes = dataset.x_train.shape[1:], dataset.classes
        training = fit(
            lambda: build(
                "mlp", norm=norm, placement="pre", input_shape=shape, classes=classes, widths=WIDTHS
            ),
            Samples.of(dataset).first(1000),
            Recipe(STEPS, float(trial.levels["lr"]), BATCH),
            seed=trial.seed,
            instruments=[look],
        )
        if training.diverged:
            return dict.fromkeys(("loss", "change", "distance", "cosine"))
        return {
            "loss": float(np.mean(training.batch_losses)),
            "change": float(np.mean(look.changes)),
            "distance": float(np.mean(look.distances)),
            "cosine": float(np.mean(look.cosines)),
        }

    def judge(self, results: Results) -> Finding:
        norms = [str(norm) for norm in results.levels("norm")]
        own = {norm: float(best_level(results, "lr", "loss", most=False, norm=norm)) for norm in norms}
        effects = tuple(
            Effect(
                f"{norm} / none, change of a gradient, {which}",
                bootstrap_ratio(
                    *results.paired("change", {"norm": norm, "lr": lr}, {"norm": "none", "lr": own["none"]})
                ),
                1.0,
                "below",
                "x",
            )
            for norm in norms
            if norm != "none"
            for which, lr in (("each at its best rate", own[norm]), ("at the same rate", own["none"]))
        )
        return Finding(
            agreed(effects[:2]),
            effects,
            f"With batch norm gradients change {told(effects[0].estimate)} times as much at its best rate "
            f"{own['batch']:g}, {told(effects[1].estimate)} times at {own['none']:g}, the best of none.",
            counted=2,
        )

    def figure(self, results: Results) -> Figure:
        figure = Figure((drawing.WIDTH, drawing.HEIGHT))
        axes = figure.subplots()
        axes.set(
            xscale="log",
            yscale="log",
            xlabel="learning rate",
            ylabel="change of a layer's gradient, relative",
        )
        lines = list[drawing.Curve]()
        for norm in map(str, results.levels("norm")):
            found = {lr: numbers(results.of(norm=norm, lr=lr), "change") for lr in RATES}
            finite = [lr for lr, values in found.items() if values]
            lines.append(
                drawing.Curve(
                    norm, finite, [found[lr] for lr in finite], drawing.color(norm), band="interval"
                )
            )
            best = float(best_level(results, "lr", "loss", most=False, norm=norm))
            log = bootstrap_mean(np.log(found[best]).tolist()).mean
            axes.plot([best], [np.exp(log)], "o", color=drawing.color(norm), ms=8)  # the best rate
        drawing.curves(axes, lines)
        drawing.plain_ticks(axes.xaxis, RATES)
        figure.subplots_adjust(right=0.85)
        return figure


STUDY = GradientShiftStudy()
