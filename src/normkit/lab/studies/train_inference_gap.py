"""C11: do training and inference disagree when running statistics misrepresent the data?"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn import functional as F

import normkit as nk
from normkit.lab import drawing
from normkit.lab.bootstrap import bootstrap_difference
from normkit.lab.studies.conclusion import each_of, told
from normkit.lab.studies.design import column, crossed, finite, within
from normkit.lab.studies.fit import Recipe, Samples, accuracy, fit, scaled
from normkit.lab.studies.networks import check_own_network, check_samples, network
from normkit.lab.studies.study import Effect, Finding, Result, Results, Scale, Study, Subject, Trial
from normkit.lab.tasks.shift import shift

BATCHES = (4, 16, 64)
MOMENTA = (0.003, 0.03, 0.1, 0.3, 1.0)
STEPS = 200
_CONTRAST, _BRIGHTNESS = 0.6, 0.5  # of the images that another camera took
_CHUNK = 256  # samples of a batch that recalibrates

# The three ways to misrepresent, as the levels at which each is judged.
SLOW = {"momentum": 0.003, "batch": 64}
NOISY = {"momentum": 1.0, "batch": 4}
USUAL = {"momentum": 0.1, "batch": 64}


class TrainInferenceGap(Study):
    """The loss by running statistics against that by the statistics of the data themselves."""

    name = "train-inference-gap"
    claim = "C11"
    statement = "Training and inference disagree when running statistics misrepresent the data."
    source = "article 002"
    question = (
        "How much higher is the validation loss in evaluation mode than after `nk.recalibrate`, when running "
        "statistics are too old, of too few samples, or of other data?"
    )
    design = (
        "The CNN (on samples without space the MLP) with batch norm, Adam at 0.001, 200 steps, over batch sizes 4, 16 "
        "and 64 and momenta 0.003 to 1. Then the validation loss by the running statistics, by those of the whole "
        "training split (recalibrated), and by those of validation batches of the training's size. For other data, the "
        "validation samples at 0.6 of their contrast and half a deviation brighter, recalibrated on training samples "
        "of that look, without labels."
    )
    rule = (
        "The rise in loss by running statistics over recalibrated ones, paired by seed, in three cases: "
        "momentum 0.003 at batch size 64, momentum 1 at batch size 4, shifted data at momentum 0.1 and batch "
        "size 64. Supported where all three 95% intervals lie above 0, contradicted where any lies below."
    )
    literature = (
        "Ioffe and Szegedy (2015) estimate inference statistics from many batches once training is over. Ioffe (2017) "
        "names the difference of the two modes as what hurts small batches. Li et al. (2016) and Schneider et al. "
        "(2020) take statistics anew for shifted data and regain much of the accuracy. Wu and Johnson (2021) find "
        "moving averages unstable early in training and exact statistics better."
    )
    takes_model = True

    def trials(self, scale: Scale) -> Sequence[Trial]:
        return crossed(scale, batch=BATCHES, momentum=MOMENTA)

    def check(self, subject: Subject) -> None:
        super().check(subject)
        check_samples(self, subject, max(BATCHES))
        check_own_network(subject, "batch")

    def measure(self, trial: Trial, subject: Subject) -> Result:
        size, momentum = int(trial.levels["batch"]), float(trial.levels["momentum"])
        dataset = scaled(subject.data)
        samples = Samples.of(dataset)

        def make() -> nn.Module:
            return _with_momentum(network(subject, "batch", dataset), momentum)

        net = fit(make, samples, Recipe(STEPS, 0.001, size, "adam"), seed=trial.seed).network.eval()
        shifted = [
            torch.from_numpy(shift(x, _CONTRAST, _BRIGHTNESS)) for x in (dataset.x_train, dataset.x_val)
        ]
        loss, right = _evaluate(net, samples.x_val, samples.y_val)
        found = {"running loss": loss, "running accuracy": right}
        found["own loss"] = _by_own_statistics(net, samples.x_val, samples.y_val, size)
        found["shifted loss"], _ = _evaluate(net, shifted[1], samples.y_val)
        with nk.recalibrate(net, shifted[0].split(_CHUNK)):
            found["shifted exact loss"], _ = _evaluate(net, shifted[1], samples.y_val)
        recalibrated = nk.recalibrate(net, samples.x.split(_CHUNK))
        found["error"] = sum(row.gap for row in recalibrated.rows) / len(recalibrated.rows)
        found["exact loss"], found["exact accuracy"] = _evaluate(net, samples.x_val, samples.y_val)
        return finite(found)

    def judge(self, results: Results) -> Finding:
        cases = (
            ("too old (momentum 0.003)", "running loss", "exact loss", SLOW),
            ("of four samples (momentum 1)", "running loss", "exact loss", NOISY),
            ("of other data (contrast, brightness)", "shifted loss", "shifted exact loss", USUAL),
        )
        effects = tuple(_rise(results, *case) for case in cases)
        verdict = each_of(effects)
        control = _rise(results, "", "running loss", "exact loss", USUAL).estimate
        rises = ", ".join(
            f"{told(effect.estimate)} {effect.label.split(':')[1].strip()}" for effect in effects
        )
        return Finding(
            verdict,
            effects,
            f"Loss by running statistics rises by {rises}; with momentum 0.1 at batch size 64 by {told(control)}.",
        )

    def figure(self, results: Results) -> Figure:
        figure = Figure((drawing.WIDTH, drawing.HEIGHT))
        axes = figure.subplots()
        axes.set(xscale="log", yscale="log", xlabel="momentum", ylabel="validation loss")
        lines = list[drawing.Curve]()
        for index, size in enumerate(results.levels("batch")):
            for value, name, dashes in (
                ("running", f"batch {size}", "-"),
                ("exact", "recalibrated", (0, (2, 2))),
            ):
                losses = [column(results, f"{value} loss", batch=size, momentum=m) for m in MOMENTA]
                shade = drawing.series(index)
                lines.append(drawing.Curve(name, MOMENTA, losses, shade, dashes, "interval"))
        drawing.curves(axes, lines)
        drawing.plain_ticks(axes.xaxis, MOMENTA)
        figure.subplots_adjust(right=0.78)
        return figure


def _rise(results: Results, label: str, value: str, exact: str, levels: dict[str, float]) -> Effect:
    """How much higher a loss is than the exact one of the same network."""
    estimate = bootstrap_difference(*within(results, value, exact, **levels))
    return Effect(f"running - recalibrated: {label}", estimate, 0.0, "above", "nats")


def _with_momentum(net: nn.Module, momentum: float) -> nn.Module:
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):  # pyright: ignore[reportPrivateUsage]
            module.momentum = momentum
    return net


@torch.no_grad()
def _evaluate(net: nn.Module, x: Tensor, y: Tensor) -> tuple[float, float]:
    """Loss and accuracy of a network as it is."""
    outputs = net(x)
    return F.cross_entropy(outputs, y).item(), accuracy(outputs, y)


@torch.no_grad()
def _by_own_statistics(net: nn.Module, x: Tensor, y: Tensor, size: int) -> float:
    """The loss where each batch is normalized by itself, as in training; of whole batches alone."""
    net = copy.deepcopy(net).train()
    batches = [part for part in zip(x.split(size), y.split(size), strict=True) if len(part[0]) == size]
    return sum(F.cross_entropy(net(part), labels).item() for part, labels in batches) / len(batches)


STUDY = TrainInferenceGap()
