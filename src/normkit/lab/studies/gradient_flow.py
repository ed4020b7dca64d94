"""C5: do gradients neither vanish nor explode? A sweep of depth, at two initialisations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from torch import nn

from normkit.lab import drawing
from normkit.lab.bootstrap import bootstrap_difference
from normkit.lab.models import build
from normkit.lab.studies.choices import best_level, numbers
from normkit.lab.studies.conclusion import agreed, told
from normkit.lab.studies.design import crossed
from normkit.lab.studies.fit import Recipe, Samples, chance, fit, scaled
from normkit.lab.studies.instruments import LayerGradients
from normkit.lab.studies.networks import check_samples
from normkit.lab.studies.study import Effect, Finding, Result, Results, Scale, Study, Subject, Trial

NORMS: Mapping[Scale, tuple[str, ...]] = {"quick": ("none", "batch"), "full": ("none", "batch", "layer")}
DEPTHS = (4, 8, 16, 32)
BEGINNINGS = ("torch's", "He's")
RATES = (0.003, 0.03)
WIDTH, STEPS, EVERY, BATCH = 48, 60, 10, 64


class GradientFlow(Study):
    """How much the gradient gains or loses with each layer, over depth."""

    name = "gradient-flow"
    claim = "C5"
    statement = "Gradients neither vanish nor explode; gradient flow improves."
    source = "articles 000, 002, 003"
    question = (
        "How far from even is the gradient across layers: how many decades does it gain or lose with each of "
        "them?"
    )
    design = (
        f"MLPs of {DEPTHS[0]} to {DEPTHS[-1]} hidden layers of {WIDTH} ReLU units on 1,000 training samples, "
        f"SGD with momentum 0.9, batch size {BATCH}, {STEPS} steps, with torch's initial weights (which "
        "shrink a ReLU network's signal) and with He's (which keep it), each arm at the learning rate, of "
        f"two, that ends with the better accuracy. Every {EVERY} steps, the first included: the slope of a "
        "line through the logarithms of the root mean square gradient at each layer's output, without its "
        "sign, as a mean over the readings."
    )
    rule = (
        f"The slope with batch norm less that without at depth {DEPTHS[-1]}, paired by seed. Supported where "
        "the 95% intervals at both initialisations lie below 0, contradicted where both lie above."
    )
    literature = (
        "Glorot and Bengio (2010) and He et al. (2015) keep gradients even by the initial scale. Ioffe and "
        "Szegedy (2015) credit batch norm with it. Yang et al. (2019) prove that in deep fully connected "
        "networks at initialisation batch norm itself makes gradients explode with depth, by a factor of at "
        "least about 1.2 a layer for ReLU."
    )

    def trials(self, scale: Scale) -> Sequence[Trial]:
        return crossed(scale, norm=NORMS[scale], beginning=BEGINNINGS, depth=DEPTHS, lr=RATES)

    def check(self, subject: Subject) -> None:
        super().check(subject)
        check_samples(self, subject, BATCH)

    def measure(self, trial: Trial, subject: Subject) -> Result:
        dataset, levels = scaled(subject.data), trial.levels
        look = LayerGradients(EVERY)

        def make() -> nn.Module:
            net = build(
                "mlp",
                norm=str(levels["norm"]),
                placement="pre",
                input_shape=dataset.x_train.shape[1:],
                classes=dataset.classes,
                widths=(WIDTH,) * int(levels["depth"]),
            )
            return net.apply(as_he) if levels["beginning"] == "He's" else net

        recipe = Recipe(STEPS, float(levels["lr"]), BATCH)
        training = fit(make, Samples.of(dataset).first(1000), recipe, seed=trial.seed, instruments=[look])
        slopes = look.slopes()
        return {
            "slope": float(np.mean(np.abs(slopes))),
            "first slope": slopes[0],
            "accuracy": chance(dataset) if training.diverged else training.last.val_score,
        }

    def judge(self, results: Results) -> Finding:
        deepest = DEPTHS[-1]
        effects = tuple(
            Effect(
                f"{norm} - none, slope at depth {deepest}, {beginning} initial weights",
                bootstrap_difference(
                    _values(results, "slope", norm, beginning, deepest),
                    _values(results, "slope", "none", beginning, deepest),
                ),
                0.0,
                "below",
                "decades a layer",
            )
            for norm in map(str, results.levels("norm"))
            if norm != "none"
            for beginning in BEGINNINGS
        )
        batch, none = (
            float(np.mean(_values(results, "accuracy", norm, BEGINNINGS[0], deepest)))
            for norm in ("batch", "none")
        )
        return Finding(
            agreed(effects[:2]),
            effects,
            f"Slope per layer, batch norm less none: {told(effects[0].estimate)} decades from torch's initial weights, "
            f"{told(effects[1].estimate)} from He's; {deepest} layers end at {batch:.0%} against {none:.0%}.",
            counted=2,
        )

    def figure(self, results: Results) -> Figure:
        figure = Figure((drawing.WIDTH, drawing.HEIGHT))
        panels = figure.subplots(1, 2)
        for axes, beginning in zip(panels, BEGINNINGS, strict=True):
            axes.set(xscale="log", yscale="log", xlabel="hidden layers", title=f"{beginning} initial weights")
            lines = [
                drawing.Curve(
                    norm,
                    DEPTHS,
                    [_values(results, "slope", norm, beginning, depth) for depth in DEPTHS],
                    drawing.color(norm),
                    band="interval",
                )
                for norm in map(str, results.levels("norm"))
            ]
            drawing.curves(axes, lines)
            drawing.plain_ticks(axes.xaxis, DEPTHS)
            drawing.plain_ticks(axes.yaxis, [0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2])
        panels[0].set_ylabel("gradient's slope, decades a layer")
        figure.subplots_adjust(right=0.9, wspace=0.6)
        return figure


def as_he(module: nn.Module) -> None:
    """Initial weights N(0, 2 / inputs), biases 0."""
    if isinstance(module, nn.Linear):
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        nn.init.zeros_(module.bias)


def _values(results: Results, value: str, norm: str, beginning: str, depth: int) -> list[float]:
    """A value of all seeds, at the better learning rate."""
    lr = best_level(results, "lr", "accuracy", norm=norm, beginning=beginning, depth=depth)
    return numbers(results.of(norm=norm, beginning=beginning, depth=depth, lr=lr), value)


STUDY = GradientFlow()
