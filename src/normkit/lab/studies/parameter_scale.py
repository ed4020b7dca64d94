"""C6: do gradients depend less on the scale of the parameters?"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from normkit.lab import drawing
from normkit.lab.bootstrap import bootstrap_difference
from normkit.lab.models import build
from normkit.lab.studies.choices import curve, numbers
from normkit.lab.studies.conclusion import agreed, told
from normkit.lab.studies.design import crossed
from normkit.lab.studies.fit import Recipe, Samples, fit, scaled
from normkit.lab.studies.networks import check_samples
from normkit.lab.studies.study import Effect, Finding, Result, Results, Scale, Study, Subject, Trial

NORMS = ("none", "batch", "layer", "group", "rms", "weight_norm")
FACTORS = tuple(2.0**k for k in range(-4, 5))
WIDTHS = (64, 64, 64)
LAYER = 1  # whose weights are scaled: the second of three hidden ones
TRAINED = (0, 50)  # steps before the measurement
BATCH = 64


class ParameterScale(Study):
    """The elasticity of gradients with respect to the scale of one layer's weights."""

    name = "parameter-scale"
    claim = "C6"
    statement = "Gradients depend less on the scale of the parameters."
    source = "article 001"
    question = (
        "When one layer's weights are multiplied by a, with which power of a do the gradients of the layer "
        "below and of the layer itself change?"
    )
    design = (
        f"An MLP of three hidden layers of {WIDTHS[0]} ReLU units, before training and after {TRAINED[1]} "
        "steps of SGD (learning rate 0.03, momentum 0.9, batch size 64). The weights of the second hidden "
        f"layer, not its bias, are multiplied by {FACTORS[0]:g} to {FACTORS[-1]:g}, and the gradient of the "
        "loss on one batch is taken: the slope of its logarithm over that of the factor."
    )
    rule = (
        "Paired by seed, batch norm less none, over both moments of training: the slope of the layer below "
        "without its sign (0 is no dependence), and the slope of the layer's own gradient (below 0, larger "
        "weights get smaller gradients). Supported where both 95% intervals lie below 0, contradicted where "
        "both lie above."
    )
    literature = (
        "Ioffe and Szegedy (2015), section 3.3: with batch norm the scale of weights leaves a layer's "
        "Jacobian, and so the gradients below, as they are, and the weights' own gradient is divided by it. "
        "Van Laarhoven (2017) and Arora et al. (2019) derive from it how the learning rate adapts by itself."
    )

    def trials(self, scale: Scale) -> Sequence[Trial]:
        return crossed(scale, norm=NORMS, steps=TRAINED)

    def check(self, subject: Subject) -> None:
        super().check(subject)
        check_samples(self, subject, BATCH)

    def measure(self, trial: Trial, subject: Subject) -> Result:
        dataset, norm = scaled(subject.data), str(trial.levels["norm"])
        samples = Samples.of(dataset).first(1000)
        shape, classes = dataset.x_train.shape[1:], dataset.classes
        net = fit(
            lambda: build(
                "mlp", norm=norm, placement="pre", input_shape=shape, classes=classes, widths=WIDTHS
            ),
            samples,
            Recipe(int(trial.levels["steps"]), 0.03, BATCH),
            seed=trial.seed,
        ).network
        below, own = gradient_lengths(net, samples.x[:BATCH], samples.y[:BATCH])
        return {"below": below, "own": own, "slope below": elasticity(below), "slope own": elasticity(own)}

    def judge(self, results: Results) -> Finding:
        effects = tuple(
            Effect(
                f"{norm} - none, {label}",
                bootstrap_difference(_slopes(results, norm, value), _slopes(results, "none", value)),
                0.0,
                "below",
            )
            for norm in NORMS
            if norm != "none"
            for value, label in (
                ("slope below", "slope of the gradient below, without its sign"),
                ("slope own", "slope of the layer's own gradient"),
            )
        )
        means = {
            (norm, value): float(np.mean(_slopes(results, norm, value)))
            for norm in ("batch", "none")
            for value in ("slope below", "slope own")
        }
        return Finding(
            agreed(effects[:2]),
            effects,
            f"The gradient below goes with the power {means['batch', 'slope below']:.2f} of the scale, without norm "
            f"{means['none', 'slope below']:.2f} (difference {told(effects[0].estimate)}); the layer's own with "
            f"{means['batch', 'slope own']:.2f}, without {means['none', 'slope own']:.2f}.",
            counted=2,
        )

    def figure(self, results: Results) -> Figure:
        figure = Figure((drawing.WIDTH, drawing.HEIGHT))
        panels = figure.subplots(1, 2)
        titles = {"below": "layer below", "own": "the layer itself"}
        for axes, (value, title) in zip(panels, titles.items(), strict=True):
            axes.set(xscale="log", yscale="log", xlabel="weights, times what they were", title=title)
            lines = list[drawing.Curve]()
            for norm in NORMS:
                runs = [curve(r, value) for r in results.of(norm=norm, steps=TRAINED[1]).values()]
                # each against what it is where the weights are as they were
                values = (np.array(runs) / np.array(runs)[:, [FACTORS.index(1.0)]]).T.tolist()
                lines.append(drawing.Curve(norm, FACTORS, values, drawing.color(norm), drawing.DASHES[norm]))
            drawing.curves(axes, lines)
            drawing.plain_ticks(axes.xaxis, FACTORS[::2])
        panels[0].set_ylabel("gradient, times what it was")
        figure.subplots_adjust(right=0.84, wspace=0.75)
        return figure


def gradient_lengths(net: nn.Module, x: Tensor, y: Tensor) -> tuple[list[float], list[float]]:
    """For each factor, the gradient's length of the layer below the scaled one, and of the scaled one itself."""
    below, own = list[float](), list[float]()
    for factor in FACTORS:
        scaled_net = copy.deepcopy(net).train()
        weights = [learned_weight(layer) for layer in scaled_net.modules() if isinstance(layer, nn.Linear)]
        with torch.no_grad():
            weights[LAYER].mul_(factor)
        gradients = torch.autograd.grad(F.cross_entropy(scaled_net(x), y), weights)
        below.append(gradients[LAYER - 1].double().norm().item())
        own.append(gradients[LAYER].double().norm().item())
    return below, own


def learned_weight(layer: nn.Linear) -> Tensor:
    """The weight as a parameter: with weight norm, the direction."""
    if parametrize.is_parametrized(layer, "weight"):
        return dict(layer.named_parameters())["parametrizations.weight.original1"]
    return layer.weight


def elasticity(lengths: Sequence[float]) -> float:
    """The slope of log length over log factor, by least squares."""
    tiny = float(np.finfo(np.float32).tiny)  # where nothing comes through
    return float(np.polyfit(np.log(FACTORS), np.log(np.maximum(lengths, tiny)), 1)[0])


def _slopes(results: Results, norm: str, value: str) -> list[float]:
    """For each seed the mean over both moments of training; of the layer below, without its sign."""
    moments = np.array([numbers(results.of(norm=norm, steps=steps), value) for steps in TRAINED])
    return (np.abs(moments) if value == "slope below" else moments).mean(axis=0).tolist()


STUDY = ParameterScale()
