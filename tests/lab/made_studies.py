"""Studies made for tests, importable by worker processes: quick ones, slow ones, ones that fail or are killed."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import torch
from matplotlib.figure import Figure

from normkit.errors import InputError
from normkit.lab import drawing
from normkit.lab.bootstrap import bootstrap_difference
from normkit.lab.studies.study import Effect, Finding, Result, Results, Scale, Study, Subject, Trial


class Made(Study):
    """Sums of random numbers, those of `batch` a half below those of `none`."""

    name: ClassVar[str] = "made"
    claim: ClassVar[str] = "C1"
    statement: ClassVar[str] = "Sums are lower with <batch> norm."
    source: ClassVar[str] = "An article"
    question: ClassVar[str] = "Are sums lower?"
    design: ClassVar[str] = "Sums of 100 random numbers, in two arms."
    rule: ClassVar[str] = "Supported where the interval lies below 0."
    literature: ClassVar[str] = "Nobody asked."
    seeds: ClassVar[int] = 6

    def trials(self, scale: Scale) -> Sequence[Trial]:
        seeds = self.seeds if scale == "quick" else 2 * self.seeds
        return [Trial({"norm": norm}, seed) for seed in range(seeds) for norm in ("none", "batch")]

    def measure(self, trial: Trial, subject: Subject) -> Result:
        x = torch.randn(4, 100, generator=torch.Generator().manual_seed(trial.seed)).cumsum(1)
        lower = 0.5 if trial.levels["norm"] == "batch" else 0.0
        return {"sum": float(x[0, -1]) / 10 - lower, "curve": x[0, ::10].tolist(), "never": None}

    def judge(self, results: Results) -> Finding:
        estimate = bootstrap_difference(*results.paired("sum", {"norm": "batch"}, {"norm": "none"}))
        effect = Effect("batch - none, sum", estimate, 0.0, "below")
        return Finding(effect.verdict, (effect,), f"Lower by {-estimate.mean:.2f}.")

    def figure(self, results: Results) -> Figure:
        figure = Figure(figsize=(drawing.WIDTH, drawing.HEIGHT), layout="constrained")
        axes = figure.add_subplot()
        axes.set(xlabel="numbers", ylabel="sum")
        drawn = []
        for norm in results.levels("norm"):
            curves = [result["curve"] for result in results.of(norm=norm).values()]
            values = list(zip(*curves, strict=True))
            drawn.append(drawing.Curve(str(norm), range(0, 100, 10), values, drawing.color(str(norm))))
        drawing.curves(axes, drawn)
        return figure


class Noisy(Made):
    """Draws from every global generator: what trials before it drew must not matter."""

    name: ClassVar[str] = "noisy"

    def measure(self, trial: Trial, subject: Subject) -> Result:
        return {"sum": float(torch.randn(3).sum()) + trial.seed, "curve": [0.0] * 10}


class Slow(Made):
    """Each trial takes a while."""

    name: ClassVar[str] = "slow"

    def measure(self, trial: Trial, subject: Subject) -> Result:
        time.sleep(0.2 if trial.seed < 3 else 300)
        return super().measure(trial, subject)


class Killed(Made):
    """The worker is killed at one trial: so many times as the folder in the environment has no mark of."""

    name: ClassVar[str] = "killed"

    def measure(self, trial: Trial, subject: Subject) -> Result:
        marks = Path(os.environ["NORMKIT_TEST_MARKS"])
        first = trial.seed == 1 and trial.levels["norm"] == "none"
        if first and len([*marks.iterdir()]) < int(os.environ["NORMKIT_TEST_KILLS"]):
            (marks / str(os.getpid())).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().measure(trial, subject)


class Failing(Made):
    """One trial raises; another measures what is no number."""

    name: ClassVar[str] = "failing"

    def measure(self, trial: Trial, subject: Subject) -> Result:
        if trial.seed == 1:
            raise InputError("the data must have images, got rows of 64")
        if trial.seed == 2:
            return {"sum": float("nan")}
        return super().measure(trial, subject)


class Big(Made):
    """Each result takes a hundred kilobytes."""

    name: ClassVar[str] = "big"

    def measure(self, trial: Trial, subject: Subject) -> Result:
        return {**super().measure(trial, subject), "long": "0123456789" * 10_000}


if __name__ == "__main__":  # the command line with these studies in the place of its own
    import sys

    from normkit import cli
    from normkit.lab import studies

    made = {kind.name: kind() for kind in (Made, Noisy, Slow, Killed, Failing, Big)}
    studies.NAMES = tuple(made)
    studies.find = made.__getitem__
    sys.exit(cli.run(sys.argv[1:]))
