"""C4: is a smaller shift why batch norm helps? Random shifts after it put the shift back."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from normkit.lab import drawing
from normkit.lab.bootstrap import bootstrap_difference, bootstrap_ratio
from normkit.lab.models import build
from normkit.lab.studies.choices import best_level, curve
from normkit.lab.studies.conclusion import agreed, told
from normkit.lab.studies.design import crossed
from normkit.lab.studies.fit import Recipe, Samples, fit, scaled
from normkit.lab.studies.instruments import ACTIVATIONS, Quantiles
from normkit.lab.studies.networks import check_samples
from normkit.lab.studies.study import Effect, Finding, Result, Results, Scale, Study, Subject, Trial

ARMS = ("none", "batch", "noisy batch")
RATES = (0.003, 0.01, 0.03, 0.1)
WIDTHS = (64,) * 8
STEPS, EVERY, BATCH, PROBE = 100, 5, 64, 300


class NoisyBatchNorm(Study):
    """Batch norm, batch norm followed by shifts at random, and neither."""

    name = "noisy-batch-norm"
    claim = "C4"
    statement = "Batch norm helps because distributions shift less: with shifts put back it helps no more."
    source = "all articles; Santurkar et al. (2018) dispute it"
    question = (
        "Does a network train worse with batch norm whose outputs are shifted at random, than with no norm "
        "at all?"
    )
    design = (
        f"An MLP of {len(WIDTHS)} hidden layers of {WIDTHS[0]} ReLU units on 1,000 training samples, SGD with "
        f"momentum 0.9, batch size {BATCH}, {STEPS} steps, each arm at its best learning rate ({RATES[0]:g} "
        f"to {RATES[-1]:g}) by mean loss: without norm, with batch norm, and with batch norm whose every "
        "output is scaled and shifted by random numbers, drawn at each step around a scale (1 to 1.25) and a "
        "shift (-0.5 to 0.5) that change from step to step."
    )
    rule = (
        "The mean training loss over all steps, noise included, of noisy batch norm less that of none, "
        "paired by seed. Contradicted where the 95% interval lies below 0 and the distributions of noisy "
        "batch norm shift more than those of none (the interval of the ratio of their drifts above 1); "
        "supported where the loss lies above 0; else undecided."
    )
    literature = (
        "Santurkar et al. (2018), section 2.1: noisy batch norm trains about as well as batch norm and "
        "better than none, though its distributions are less stable than those of none."
    )

    def trials(self, scale: Scale) -> Sequence[Trial]:
        return crossed(scale, arm=ARMS, lr=RATES)

    def check(self, subject: Subject) -> None:
        super().check(subject)
        check_samples(self, subject, BATCH)

    def measure(self, trial: Trial, subject: Subject) -> Result:
        dataset, arm = scaled(subject.data), str(trial.levels["arm"])
        samples = Samples.of(dataset).first(1000)
        look = Quantiles(samples.x[:PROBE], EVERY)

        def make() -> nn.Module:
            norm = "none" if arm == "none" else "batch"
            shape, classes = dataset.x_train.shape[1:], dataset.classes
            net = build("mlp", norm=norm, placement="pre", input_shape=shape, classes=classes, widths=WIDTHS)
            return with_noise(net) if arm == "noisy batch" else net

        recipe = Recipe(STEPS, float(trial.levels["lr"]), BATCH)
        training = fit(make, samples, recipe, seed=trial.seed, instruments=[look])
        if training.diverged:
            return {"loss": None, "drift": None, "accuracy": None, "losses": list(training.batch_losses)}
        return {
            "loss": float(np.mean(training.batch_losses)),
            "drift": look.drift(),
            "accuracy": training.last.val_score,
            "losses": list(training.batch_losses),
        }

    def judge(self, results: Results) -> Finding:
        noisy, none, batch = (
            {"arm": arm, "lr": best_level(results, "lr", "loss", most=False, arm=arm)}
            for arm in ("noisy batch", "none", "batch")
        )
        loss = Effect(
            "noisy batch - none, mean training loss",
            bootstrap_difference(*results.paired("loss", noisy, none)),
            0.0,
            "above",
            "nats",
        )
        steadier = Effect(  # the premise: that there is a shift to blame
            "noisy batch / none, drift of percentiles",
            bootstrap_ratio(*results.paired("drift", noisy, none)),
            1.0,
            "below",
            "x",
        )
        against_batch = Effect(
            "noisy batch - batch, mean training loss",
            bootstrap_difference(*results.paired("loss", noisy, batch)),
            0.0,
            "above",
            "nats",
        )
        verdict = loss.verdict if loss.verdict == "supported" else agreed((loss, steadier))
        return Finding(
            verdict,
            (loss, steadier, against_batch),
            f"Noisy batch norm differs in loss by {told(loss.estimate)} from none and by "
            f"{told(against_batch.estimate)} from batch norm, while its distributions drift "
            f"{told(steadier.estimate)} times as far as those of none.",
        )

    def figure(self, results: Results) -> Figure:
        figure = Figure((drawing.WIDTH, drawing.HEIGHT))
        axes = figure.subplots()
        axes.set(xlabel="steps", ylabel="training loss, mean of 5 steps")
        shades = {
            "none": drawing.color("none"),
            "batch": drawing.color("batch"),
            "noisy batch": drawing.series(1),
        }
        lines = list[drawing.Curve]()
        for arm in ARMS:
            lr = best_level(results, "lr", "loss", most=False, arm=arm)
            whole = [
                curve(run, "losses") for run in results.of(arm=arm, lr=lr).values() if run["loss"] is not None
            ]
            smooth = np.reshape(whole, (len(whole), -1, 5)).mean(axis=2).T.tolist()
            lines.append(
                drawing.Curve(f"{arm} {lr:g}", range(5, STEPS + 1, 5), smooth, shades[arm], band="interval")
            )
        drawing.curves(axes, lines)
        figure.subplots_adjust(right=0.76)
        return figure


class Noise(nn.Module):
    """Scale and shift each value at random, around a scale and a shift of its unit that are drawn at each step.

    In evaluation mode nothing is changed. Santurkar et al. (2018), appendix.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        scale = 1 + 0.25 * torch.rand(x.shape[1])
        shift = torch.rand(x.shape[1]) - 0.5
        return x * (scale + 0.1 * torch.randn_like(x)) + shift + 0.1 * (2 * torch.rand_like(x) - 1)


def with_noise(net: nn.Module) -> nn.Module:
    """The same layers in their order, with noise before each activation."""
    noisy = list[nn.Module]()
    for module in net.children():
        noisy += [Noise(), module] if isinstance(module, ACTIVATIONS) else [module]
    return nn.Sequential(*noisy)


STUDY = NoisyBatchNorm()
