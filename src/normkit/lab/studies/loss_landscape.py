"""C5: is the loss smoother along the gradient? Its variation, and how well the gradient predicts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from normkit.lab import drawing
from normkit.lab.bootstrap import bootstrap_ratio
from normkit.lab.models import build
from normkit.lab.studies.choices import best_level, curve, numbers
from normkit.lab.studies.conclusion import agreed, told
from normkit.lab.studies.design import crossed
from normkit.lab.studies.fit import Recipe, Samples, fit, scaled
from normkit.lab.studies.instruments import AlongTheGradient
from normkit.lab.studies.networks import check_samples
from normkit.lab.studies.study import Effect, Finding, Result, Results, Scale, Study, Subject, Trial

NORMS: Mapping[Scale, tuple[str, ...]] = {"quick": ("none", "batch"), "full": ("none", "batch", "layer")}
RATES = (0.003, 0.01, 0.03, 0.1)
LENGTHS = (0.05, 0.1, 0.2, 0.4)  # steps along the gradient, the same for all arms
WIDTHS = (64,) * 5
STEPS, EVERY, BATCH = 80, 4, 64


class LossLandscape(Study):
    """The loss and the gradient at points along each step's gradient."""

    name = "loss-landscape"
    claim = "C5"
    statement = "The loss is smoother along the gradient, which predicts it better."
    source = "articles 000, 002, 003 on gradient flow; Santurkar et al. (2018) make the claim"
    question = "Along a step's gradient, how much does the loss vary and how much does the gradient turn?"
    design = (
        f"An MLP of {len(WIDTHS)} hidden layers of {WIDTHS[0]} ReLU units on 1,000 training samples, SGD with "
        f"momentum 0.9, batch size {BATCH}, {STEPS} steps, each arm at its best learning rate ({RATES[0]:g} "
        f"to {RATES[-1]:g}) by mean loss. Every {EVERY} steps the loss and the gradient of the step's batch "
        f"are taken at {len(LENGTHS)} points along the gradient, {LENGTHS[0]:g} to {LENGTHS[-1]:g} times its "
        "length away, the same for all arms: the range of these losses, and the largest change of the "
        "gradient over its length."
    )
    rule = (
        "The geometric mean, over seeds, of both with batch norm over those without. Supported where both "
        "95% intervals lie below 1, contradicted where both lie above."
    )
    literature = (
        "Santurkar et al. (2018), section 3: with batch norm the loss varies less along the gradient and the "
        "gradient predicts better, on VGG and CIFAR-10. Bjorck et al. (2018) see the loss rise after far "
        "smaller steps without norm."
    )

    def trials(self, scale: Scale) -> Sequence[Trial]:
        return crossed(scale, norm=NORMS[scale], lr=RATES)

    def check(self, subject: Subject) -> None:
        super().check(subject)
        check_samples(self, subject, BATCH)

    def measure(self, trial: Trial, subject: Subject) -> Result:
        dataset, norm = scaled(subject.data), str(trial.levels["norm"])
        look = AlongTheGradient(LENGTHS, EVERY)
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
        if training.diverged or len(look.variations) < STEPS // EVERY:
            return {"loss": None, "variation": None, "change": None, "variations": [], "changes": []}
        return {
            "loss": float(np.mean(training.batch_losses)),
            "variation": float(np.mean(look.variations)),
            "change": float(np.mean(look.changes)),
            "variations": look.variations,
            "changes": look.changes,
        }

    def judge(self, results: Results) -> Finding:
        rates = _rates(results)
        effects = tuple(
            Effect(
                f"{norm} / none, {label}",
                bootstrap_ratio(
                    *results.paired(
                        value, {"norm": norm, "lr": rates[norm]}, {"norm": "none", "lr": rates["none"]}
                    )
                ),
                1.0,
                "below",
                "x",
            )
            for norm in rates
            if norm != "none"
            for value, label in (("variation", "variation of the loss"), ("change", "change of the gradient"))
        )
        return Finding(
            agreed(effects[:2]),
            effects,
            f"Along the gradient the loss varies {told(effects[0].estimate)} times as much with batch norm, and the "
            f"gradient changes {told(effects[1].estimate)} times as much.",
            counted=2,
        )

    def figure(self, results: Results) -> Figure:
        figure = Figure((drawing.WIDTH, drawing.HEIGHT))
        panels = figure.subplots(1, 2)
        titles = {"variations": "range of the loss", "changes": "change of the gradient, relative"}
        for axes, (value, title) in zip(panels, titles.items(), strict=True):
            axes.set(yscale="log", xlabel="steps", title=title)
            lines = list[drawing.Curve]()
            for norm, lr in _rates(results).items():
                runs = [run for run in results.of(norm=norm, lr=lr).values() if numbers({0: run}, "loss")]
                values = np.array([curve(run, value) for run in runs]).T.tolist()
                steps = range(0, STEPS, EVERY)
                lines.append(drawing.Curve(norm, steps, values, drawing.color(norm), band="interval"))
            drawing.curves(axes, lines)
        figure.subplots_adjust(right=0.88, wspace=0.45)
        return figure


def _rates(results: Results) -> dict[str, float]:
    norms = map(str, results.levels("norm"))
    return {norm: float(best_level(results, "lr", "loss", most=False, norm=norm)) for norm in norms}


STUDY = LossLandscape()
