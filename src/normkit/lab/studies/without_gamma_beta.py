"""C18: does a sigmoid network lose accuracy without gamma and beta? And a ReLU network?"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from normkit.lab import drawing
from normkit.lab.bootstrap import bootstrap_difference
from normkit.lab.models import build
from normkit.lab.studies.choices import best_level
from normkit.lab.studies.conclusion import told
from normkit.lab.studies.design import crossed, finite
from normkit.lab.studies.fit import Recipe, Samples, fit, scaled
from normkit.lab.studies.networks import check_samples
from normkit.lab.studies.study import Effect, Finding, Result, Results, Scale, Study, Subject, Trial

NETWORKS = {"sigmoid": "sigmoid", "relu": "mlp"}  # an activation, and the network of the lab that has it
RATES = (0.01, 0.03, 0.1, 0.3)
STEPS, BATCH = 300, 60


class WithoutGammaBeta(Study):
    """Batch norm with its affine map, and with gamma 1 and beta 0 for good."""

    name = "without-gamma-beta"
    claim = "C18"
    statement = "Without gamma and beta a sigmoid network loses accuracy."
    source = "articles 003, 004"
    question = (
        "Is a sigmoid network less accurate with gamma 1 and beta 0, and are its sigmoids closer to linear?"
    )
    design = (
        "Three layers of 100 sigmoid units (and, beside it, the ReLU MLP) with batch norm before the activation, "
        "gamma and beta learned or held at 1 and 0; SGD with momentum 0.9, batch size 60, 300 steps, each arm at "
        "the best of four learning rates by mean accuracy. Linearity is the squared correlation of what goes into "
        "an activation with what comes out, over validation samples, the mean over units of the first layer."
    )
    rule = (
        "Validation accuracy of the sigmoid network without minus with, paired by seed: supported where the 95% "
        "interval lies below 0, contradicted where it lies above. Loss, linearity and ReLU are shown, and do not count."
    )
    literature = (
        "Ioffe and Szegedy (2015), section 3: normalizing a sigmoid's inputs would constrain it to its linear "
        "regime, hence a learned scale and shift. Frankle, Schwab and Morcos (2021): gamma and beta have much "
        "expressive power of their own, ResNets that train nothing else learn."
    )

    def trials(self, scale: Scale) -> Sequence[Trial]:
        return crossed(scale, activation=tuple(NETWORKS), affine=(True, False), lr=RATES)

    def check(self, subject: Subject) -> None:
        super().check(subject)
        check_samples(self, subject, BATCH)

    def measure(self, trial: Trial, subject: Subject) -> Result:
        levels, dataset = trial.levels, scaled(subject.data)
        samples = Samples.of(dataset)

        def make() -> nn.Module:
            shape, model = dataset.x_train.shape[1:], NETWORKS[str(levels["activation"])]
            net = build(model, norm="batch", placement="pre", input_shape=shape, classes=dataset.classes)
            return net if levels["affine"] else without_affine(net)

        curve = fit(make, samples, Recipe(STEPS, float(levels["lr"]), BATCH), seed=trial.seed)
        if curve.diverged:
            return dict.fromkeys(("accuracy", "loss", "linearity"))
        linear = first_linearity(curve.network, samples.x_val)
        last = curve.last
        return finite({"accuracy": 100 * last.val_score, "loss": last.val_loss, "linearity": linear})

    def judge(self, results: Results) -> Finding:
        effects = (
            _effect(results, "sigmoid", "accuracy", "below", "points"),
            _effect(results, "sigmoid", "loss", "above", "nats"),
            _effect(results, "sigmoid", "linearity", "above", ""),
            _effect(results, "relu", "accuracy", "below", "points"),
        )
        accuracy, loss, linear, relu = (told(effect.estimate) for effect in effects)
        return Finding(
            effects[0].verdict,
            effects,
            f"Without gamma and beta a sigmoid network's accuracy changes by {accuracy} points, its loss by {loss}, "
            f"the linearity of its sigmoids by {linear}; a ReLU network's accuracy by {relu} points.",
        )

    def figure(self, results: Results) -> Figure:
        figure = Figure((drawing.WIDTH, drawing.HEIGHT * 0.8))
        axes = figure.subplots()
        axes.set(xlabel="validation accuracy, %")
        names = list[str]()
        for index, activation in enumerate(NETWORKS):
            for affine in (True, False):
                values = results.of(**_best(results, activation, affine)).values()
                shade = drawing.series(index)
                accuracies = [float(v) for r in values if isinstance(v := r["accuracy"], float)]
                drawing.dots(axes, len(names), accuracies, shade)
                names.append(f"{activation}, {'with' if affine else 'without'} gamma, beta")
        drawing.rows(axes, names)
        figure.subplots_adjust(left=0.32, bottom=0.2)
        return figure


def without_affine(net: nn.Module) -> nn.Module:
    """Hold gamma at 1 and beta at 0, where they begin: what is not learned is not moved."""
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):  # pyright: ignore[reportPrivateUsage]
            module.requires_grad_(False)
    return net


@torch.no_grad()
def first_linearity(net: nn.Module, x: Tensor) -> float:
    """How linear the first activation is, over samples in evaluation mode, the mean over its units."""
    assert isinstance(net, nn.Sequential)
    end = next(i for i, module in enumerate(net) if isinstance(module, (nn.Sigmoid, nn.ReLU)))
    before = net.eval()[:end](x)
    return linearity(before, net[end](before))


def linearity(before: Tensor, after: Tensor) -> float:
    """The squared correlation of two (N, units), the mean over units; 1 where a line says it all."""
    before, after = (values.double() - values.double().mean(0) for values in (before, after))
    together = (before * after).sum(0).square()
    apart = before.square().sum(0) * after.square().sum(0)
    return float((together / apart)[apart > 0].mean())


def _best(results: Results, activation: str, affine: bool) -> dict[str, str | int | float | bool]:
    lr = best_level(results, "lr", "accuracy", activation=activation, affine=affine)
    return {"activation": activation, "affine": affine, "lr": lr}


def _effect(results: Results, activation: str, value: str, claimed: str, unit: str) -> Effect:
    assert claimed in ("below", "above")
    arms = (_best(results, activation, affine) for affine in (False, True))
    estimate = bootstrap_difference(*results.paired(value, *arms))
    return Effect(f"{activation}, without - with: {value}", estimate, 0.0, claimed, unit)


STUDY = WithoutGammaBeta()
