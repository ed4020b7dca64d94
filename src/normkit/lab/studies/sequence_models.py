"""C15: does batch norm fit recurrent networks and transformers badly, and layer norm well?"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache, partial

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn import functional as F

from normkit.lab import drawing
from normkit.lab.bootstrap import bootstrap_ratio
from normkit.lab.studies.choices import best_level
from normkit.lab.studies.conclusion import each_of, told
from normkit.lab.studies.design import SEEDS, column, finite
from normkit.lab.studies.fit import Recipe, Samples, fit
from normkit.lab.studies.sequence_networks import NORMS, Recurrent, Transformer
from normkit.lab.studies.study import Effect, Finding, Level, Result, Results, Scale, Study, Subject, Trial
from normkit.lab.tasks.sequences import VARIANCE, adding

LONGEST, TRAINING, VALIDATION = 12, 4096, 512
STEPS = 300
ARMS = {"recurrent": (*NORMS, "batch at each step"), "transformer": NORMS}
RATES = (0.003, 0.01)


class SequenceModels(Study):
    """An LSTM and a small transformer on the adding problem, with each norm."""

    name = "sequence-models"
    claim = "C15"
    statement = "Batch norm fits recurrent networks and transformers badly; layer norm fits them."
    source = "article 002"
    question = "On sequences of different lengths, is the error with batch norm above that with layer norm?"
    design = (
        "The adding problem in sequences of 6, 9 or 12 steps, 4,096 of them, padding masked out of every "
        "statistic. An LSTM of 32 units with the norm on its gates and a pre-norm transformer of two "
        "blocks of width 32, 300 steps of Adam at the better of 0.003 and 0.01, batch size 64. The error is the "
        "squared error in evaluation mode as a share of the target's variance. The LSTM also with statistics for "
        "each step."
    )
    rule = (
        "Error with batch norm over that with layer norm, paired by seed, for each network. Supported where both "
        "95% intervals lie above 1, contradicted where either lies below. Layer norm and RMS norm over none, and "
        "statistics for each step, are shown and do not count."
    )
    literature = (
        "Laurent et al. (2016): batch norm on hidden-to-hidden transitions does not help. Cooijmans et al. (2016): "
        "with statistics for each step it does. Ba, Kiros and Hinton (2016): layer norm stabilises recurrent "
        "networks. Shen et al. (2020): in transformers batch statistics fluctuate much and batch norm is worse "
        "than layer norm. Zhang and Sennrich (2019): RMS norm is as good as layer norm."
    )
    takes_data = False

    def trials(self, scale: Scale) -> Sequence[Trial]:
        return [
            Trial({"network": network, "norm": norm, "lr": lr}, seed)
            for seed in range(SEEDS[scale])
            for network, norms in ARMS.items()
            for norm in norms
            for lr in RATES
        ]

    def measure(self, trial: Trial, subject: Subject) -> Result:
        kind, norm = str(trial.levels["network"]), str(trial.levels["norm"])
        make = partial(Recurrent if kind == "recurrent" else Transformer, norm, longest=LONGEST)
        recipe = Recipe(STEPS, float(trial.levels["lr"]), 64, "adam", loss=F.mse_loss, score=_share_explained)
        curve = fit(make, sequences(), recipe, seed=trial.seed)
        return finite({"error": float("nan") if curve.diverged else curve.last.val_loss / VARIANCE})

    def judge(self, results: Results) -> Finding:
        against_layer = tuple(_ratio(results, network, "batch", "layer", "above") for network in ARMS)
        beside = (
            *(_ratio(results, network, "layer", "none", "below") for network in ARMS),
            *(_ratio(results, network, "rms", "none", "below") for network in ARMS),
            _ratio(results, "recurrent", "batch at each step", "layer", "above"),
        )
        lstm, transformer = (told(effect.estimate) for effect in against_layer)
        layer = " and ".join(told(effect.estimate) for effect in beside[:2])
        return Finding(
            each_of(against_layer),
            (*against_layer, *beside),
            f"Error with batch norm is {lstm} of that with layer norm in the LSTM, {transformer} in the "
            f"transformer; layer norm's is {layer} of that without a norm.",
        )

    def figure(self, results: Results) -> Figure:
        figure = Figure((drawing.WIDTH, drawing.HEIGHT))
        axes = figure.subplots(1, 2)
        for panel, (network, norms) in zip(axes, ARMS.items(), strict=True):
            for row, norm in enumerate(norms):
                shade = drawing.color(norm.split(" ")[0])
                drawing.dots(panel, row, _logs(results, network, norm), shade)
            drawing.rows(panel, [_NAMES.get(norm, norm) for norm in norms])
            panel.set(title=network, xlabel="log10 of error / variance")
        figure.subplots_adjust(left=0.14, wspace=0.4, bottom=0.16)
        return figure


_NAMES = {"none": "no norm", "batch at each step": "batch,\nper step"}


@lru_cache(maxsize=1)
def sequences() -> Samples:
    """The task, the same for all trials: steps with a third feature that is 1 where they are real."""
    return Samples(*_steps(TRAINING, seed=1), *_steps(VALIDATION, seed=2))


def _steps(count: int, seed: int) -> tuple[Tensor, Tensor]:
    x, lengths, y = adding(count, seed, LONGEST)
    real = (np.arange(LONGEST) < lengths[:, None]).astype(np.float32)
    return torch.from_numpy(np.concatenate([x, real[..., None]], 2)), torch.from_numpy(y)


def _share_explained(outputs: Tensor, targets: Tensor) -> float:
    return 1 - F.mse_loss(outputs, targets).item() / VARIANCE


def _arm(results: Results, network: str, norm: str) -> dict[str, Level]:
    lr = best_level(results, "lr", "error", most=False, network=network, norm=norm)
    return {"network": network, "norm": norm, "lr": lr}


def _logs(results: Results, network: str, norm: str) -> list[float]:
    return [float(np.log10(e)) for e in column(results, "error", **_arm(results, network, norm))]


def _ratio(results: Results, network: str, a: str, b: str, claimed: str) -> Effect:
    assert claimed in ("above", "below")
    pairs = results.paired("error", _arm(results, network, a), _arm(results, network, b))
    return Effect(f"{a} / {b}, {network}: error", bootstrap_ratio(*pairs), 1.0, claimed, "x")


STUDY = SequenceModels()
