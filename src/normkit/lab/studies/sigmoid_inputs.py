"""C4: do distributions of the inputs of layers shift less while training? The first figure of the first paper."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from normkit.lab import drawing
from normkit.lab.bootstrap import bootstrap_ratio
from normkit.lab.models import build
from normkit.lab.studies.choices import best_level, curve, numbers
from normkit.lab.studies.conclusion import told
from normkit.lab.studies.design import crossed
from normkit.lab.studies.fit import Recipe, Samples, fit, scaled
from normkit.lab.studies.instruments import PERCENTILES, Quantiles
from normkit.lab.studies.networks import check_samples
from normkit.lab.studies.study import Effect, Finding, Result, Results, Scale, Study, Subject, Trial

NORMS: Mapping[Scale, tuple[str, ...]] = {"quick": ("none", "batch"), "full": ("none", "batch", "layer")}
RATES = (0.03, 0.1, 0.3, 1.0)
STEPS, EVERY, BATCH = 200, 10, 60
PROBE = 300  # samples whose percentiles are read


class SigmoidInputs(Study):
    """Percentiles of the inputs of sigmoid units while the network learns."""

    name = "sigmoid-inputs"
    claim = "C4"
    statement = "The distribution of each layer's input shifts less while training."
    source = "all articles"
    question = "How far do the 15th, 50th and 85th percentiles of a sigmoid unit's input move while training?"
    design = (
        "The sigmoid network of Ioffe and Szegedy (2015), three layers of 100 units, on 1,000 training "
        f"samples, SGD with momentum 0.9, batch size {BATCH}, {STEPS} steps, each arm at its best learning "
        f"rate ({RATES[0]:g} to {RATES[-1]:g}) by mean loss. Every {EVERY} steps the percentiles of each "
        f"unit's input over {PROBE} samples are taken, in training mode; the drift is their mean move from "
        "one reading to the next, in units of the spread between the outer two. Batch norm stands before the "
        "sigmoid, so that it fixes mean and deviation of what is read up to its scale and shift: the claim "
        "as the articles make it."
    )
    rule = (
        "The geometric mean, over seeds, of the drift with batch norm over that without. Supported where the "
        "95% interval lies below 1, contradicted where it lies above."
    )
    literature = (
        "Ioffe and Szegedy (2015), figure 1: the percentiles of a unit of the last hidden layer stay in "
        "place with batch norm and wander without. Santurkar et al. (2018) find that distributions of "
        "networks with and without it shift about as much, and that its benefit does not come from there."
    )

    def trials(self, scale: Scale) -> Sequence[Trial]:
        return crossed(scale, norm=NORMS[scale], lr=RATES)

    def check(self, subject: Subject) -> None:
        super().check(subject)
        check_samples(self, subject, BATCH)

    def measure(self, trial: Trial, subject: Subject) -> Result:
        dataset, norm = scaled(subject.data), str(trial.levels["norm"])
        samples = Samples.of(dataset).first(1000)
        look = Quantiles(samples.x[:PROBE], EVERY)
        shape, classes = dataset.x_train.shape[1:], dataset.classes
        training = fit(
            lambda: build("sigmoid", norm=norm, placement="pre", input_shape=shape, classes=classes),
            samples,
            Recipe(STEPS, float(trial.levels["lr"]), BATCH),
            seed=trial.seed,
            instruments=[look],
        )
        unit = typical_unit(look)
        return {
            "drift": None if training.diverged else look.drift(),
            "loss": None if training.diverged else float(np.mean(training.batch_losses)),
            "accuracy": training.last.val_score,
            "step": look.steps,
            **{
                f"p{p}": [float(reading[-1][i, unit]) for reading in look.readings]
                for i, p in enumerate(PERCENTILES)
            },
        }

    def judge(self, results: Results) -> Finding:
        rates = _rates(results)
        effects = tuple(
            Effect(
                f"{norm} / none, drift of percentiles",
                bootstrap_ratio(
                    *results.paired(
                        "drift", {"norm": norm, "lr": rates[norm]}, {"norm": "none", "lr": rates["none"]}
                    )
                ),
                1.0,
                "below",
                "x",
            )
            for norm in rates
            if norm != "none"
        )
        accuracy = {
            n: float(np.mean(numbers(results.of(norm=n, lr=lr), "accuracy"))) for n, lr in rates.items()
        }
        return Finding(
            effects[0].verdict,
            effects,
            f"With batch norm percentiles drift {told(effects[0].estimate)} times as far, and accuracy ends at "
            f"{accuracy['batch']:.0%} against {accuracy['none']:.0%}.",
        )

    def figure(self, results: Results) -> Figure:
        """The unit of median drift in the last hidden layer of the first seed, as in the paper's figure 1."""
        rates = _rates(results)
        figure = Figure((drawing.WIDTH, drawing.HEIGHT))
        panels = figure.subplots(1, len(rates), sharex=True, squeeze=False)[0]
        for axes, (norm, lr) in zip(panels, rates.items(), strict=True):
            run = results.of(norm=norm, lr=lr)[min(results.of(norm=norm, lr=lr))]
            axes.set(title=f"{norm}, rate {lr:g}", xlabel="steps")
            lines = [
                drawing.Curve(
                    f"{p}%", curve(run, "step"), [[v] for v in curve(run, f"p{p}")], drawing.color(norm)
                )
                for p in PERCENTILES
            ]
            drawing.curves(axes, lines)
        panels[0].set_ylabel("input of a sigmoid unit")
        figure.subplots_adjust(right=0.92, wspace=0.65)
        return figure


def typical_unit(look: Quantiles) -> int:
    """The unit of the last hidden layer whose median moves as far as that of half of its fellows does not."""
    medians = np.array([reading[-1][len(PERCENTILES) // 2] for reading in look.readings])
    moved = np.abs(np.diff(medians, axis=0)).sum(axis=0)
    return int(np.argsort(moved, kind="stable")[len(moved) // 2])


def _rates(results: Results) -> dict[str, float]:
    norms = map(str, results.levels("norm"))
    return {norm: float(best_level(results, "lr", "loss", most=False, norm=norm)) for norm in norms}


STUDY = SigmoidInputs()
