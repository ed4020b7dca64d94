"""C19: does batch norm hurt a segmentation with fine detail?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache, partial

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

import normkit as nk
from normkit.lab import drawing
from normkit.lab.bootstrap import bootstrap_difference
from normkit.lab.studies.choices import best_level
from normkit.lab.studies.conclusion import told
from normkit.lab.studies.design import column, crossed
from normkit.lab.studies.fit import Recipe, Samples, fit
from normkit.lab.studies.study import Effect, Finding, Level, Result, Results, Scale, Study, Subject, Trial
from normkit.lab.tasks.shapes import LINE, shapes

BATCHES = (2, 8)
RATES = (0.003, 0.01)
STEPS = 400
TRAINING, VALIDATION, CHANNELS = 256, 128, 12

_NORMS: dict[str, Callable[[int], nn.Module]] = {
    "none": lambda channels: nn.Identity(),
    "batch": nk.BatchNorm2d,
    "group": partial(nk.GroupNorm, 2),
    "instance": partial(nk.InstanceNorm2d, affine=True),
}


class FineDetail(Study):
    """Thin lines among shapes, labelled pixel by pixel."""

    name = "fine-detail"
    claim = "C19"
    statement = "Tasks with fine spatial detail, such as segmentation, can be hurt by batch norm."
    source = "article 002"
    question = "Are thin lines segmented worse with batch norm than without a norm?"
    design = (
        "256 generated images of 24x24 pixels, discs, rectangles and lines one pixel wide under noise, in different "
        "contrast and brightness. Three 3x3 convolutions of 12 channels at full resolution, dilated by 1, 2 and 1, a "
        "norm behind each, then a 1x1 convolution; 400 steps at batch size 2 and 8, Adam at the better of 0.003 and "
        "0.01. The score is the intersection over union of the lines in 128 other images, in evaluation mode."
    )
    rule = (
        "Score with batch norm minus without a norm, in points, paired by seed, at each batch size. Supported where "
        "either 95% interval lies below 0, since the claim is that it can hurt; contradicted where both lie above. "
        "Against group and instance norm is shown and does not count."
    )
    literature = (
        "Lim et al. (2017): super-resolution networks get better, and need 40% less memory, without batch norm. Chen "
        "et al. (2017): semantic segmentation wants batch norm trained on batches of 16 or more. Wu and He (2018): "
        "group norm beats frozen batch norm in instance segmentation. Isensee et al. (2021) segment medical images, "
        "in batches of about two, with instance norm."
    )
    takes_data = False

    def trials(self, scale: Scale) -> Sequence[Trial]:
        return crossed(scale, norm=tuple(_NORMS), batch=BATCHES, lr=RATES)

    def measure(self, trial: Trial, subject: Subject) -> Result:
        levels = trial.levels
        size = int(levels["batch"])
        recipe = Recipe(STEPS, float(levels["lr"]), size, "adam", score=overlap)
        curve = fit(partial(segmenter, str(levels["norm"])), images(), recipe, seed=trial.seed)
        return {"overlap": None if curve.diverged else 100 * curve.last.val_score}

    def judge(self, results: Results) -> Finding:
        decisive = [_effect(results, "none", size) for size in BATCHES]
        beside = [_effect(results, norm, size) for norm in ("group", "instance") for size in BATCHES]
        verdicts = [effect.verdict for effect in decisive]
        verdict = "undecided"
        if "supported" in verdicts:
            verdict = "supported"
        elif set(verdicts) == {"contradicted"}:
            verdict = "contradicted"
        none, group, instance = (
            " and ".join(told(effect.estimate) for effect in pair)
            for pair in (decisive, beside[:2], beside[2:])
        )
        return Finding(
            verdict,
            (*decisive, *beside),
            f"Overlap of lines with batch norm, in points at batch sizes {BATCHES[0]} and {BATCHES[1]}: "
            f"{none} from no norm, {group} from group norm, {instance} from instance norm.",
        )

    def figure(self, results: Results) -> Figure:
        figure = Figure((drawing.WIDTH, drawing.HEIGHT))
        axes = figure.subplots(1, len(BATCHES), sharey=True, sharex=True)
        for panel, size in zip(axes, BATCHES, strict=True):
            for row, norm in enumerate(_NORMS):
                drawing.dots(
                    panel, row, column(results, "overlap", **_arm(results, norm, size)), drawing.color(norm)
                )
            drawing.rows(panel, ["no norm" if norm == "none" else norm for norm in _NORMS])
            panel.set(title=f"batch size {size}", xlabel="overlap of lines, %")
        figure.subplots_adjust(left=0.14, bottom=0.14)
        return figure


@lru_cache(maxsize=1)
def images() -> Samples:
    """The task, the same for all trials."""
    return Samples(*map(torch.from_numpy, (*shapes(TRAINING, seed=1), *shapes(VALIDATION, seed=2))))


def segmenter(norm: str) -> nn.Module:
    """From images to the scores of each pixel's classes, at full resolution."""
    modules, channels = list[nn.Module](), 1
    for dilation in (1, 2, 1):
        modules.append(nn.Conv2d(channels, CHANNELS, 3, padding=dilation, dilation=dilation))
        modules += [_NORMS[norm](CHANNELS), nn.ReLU()]
        channels = CHANNELS
    return nn.Sequential(*modules, nn.Conv2d(CHANNELS, 3, 1))


def overlap(outputs: Tensor, labels: Tensor) -> float:
    """Intersection over union of the pixels that are lines and those that are called so; 0 where neither is."""
    called, are = outputs.argmax(1) == LINE, labels == LINE
    union = int((called | are).sum())
    return int((called & are).sum()) / union if union else 0.0


def _arm(results: Results, norm: str, size: int) -> dict[str, Level]:
    lr = best_level(results, "lr", "overlap", norm=norm, batch=size)
    return {"norm": norm, "batch": size, "lr": lr}


def _effect(results: Results, other: str, size: int) -> Effect:
    pairs = results.paired("overlap", _arm(results, "batch", size), _arm(results, other, size))
    return Effect(
        f"batch - {other}, batch size {size}: overlap of lines",
        bootstrap_difference(*pairs),
        0.0,
        "below",
        "points",
    )


STUDY = FineDetail()
