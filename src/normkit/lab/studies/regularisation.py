"""C7: does it regularise, so that training and validation lie closer together?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from normkit.lab import drawing
from normkit.lab.bootstrap import bootstrap_difference
from normkit.lab.studies.choices import best_level, curve, numbers
from normkit.lab.studies.conclusion import agreed, told
from normkit.lab.studies.design import crossed
from normkit.lab.studies.fit import Recipe, Samples, fit, scaled
from normkit.lab.studies.networks import check_own_network, check_samples, network
from normkit.lab.studies.study import Effect, Finding, Result, Results, Scale, Study, Subject, Trial

NORMS: Mapping[Scale, tuple[str, ...]] = {
    "quick": ("none", "batch"),
    "full": ("none", "batch", "layer", "group"),
}
RATES = (0.01, 0.03, 0.1)
SAMPLES, STEPS, EVERY, BATCH = 200, 150, 15, 32


class Regularisation(Study):
    """The gap between training and validation where a network can learn its few samples by heart."""

    name = "regularisation"
    claim = "C7"
    statement = "It regularises: a smaller gap between training and validation."
    source = "articles 002, 003"
    question = "How much smaller is the gap between training and validation with batch norm?"
    design = (
        f"The CNN (on samples without space the MLP) on {SAMPLES} training samples, others for each seed, "
        f"which it learns by heart: SGD with momentum 0.9, batch size {BATCH}, {STEPS} steps, each arm at its "
        f"best learning rate ({RATES[0]:g} to {RATES[-1]:g}) by final validation loss, no other regulariser. "
        "Both splits are read in evaluation mode at the end."
    )
    rule = (
        "Paired by seed, batch norm less none: the gap in accuracy (training less validation) and in loss "
        "(validation less training). Supported where both 95% intervals lie below 0, contradicted where both "
        "lie above."
    )
    literature = (
        "Ioffe and Szegedy (2015) need less dropout with batch norm and take the noise of its statistics for "
        "a regulariser. Luo et al. (2019) derive the penalty that this noise amounts to. Zhang et al. (2017) "
        "find its effect on generalisation small beside that of the architecture."
    )
    takes_model = True

    def trials(self, scale: Scale) -> Sequence[Trial]:
        return crossed(scale, norm=NORMS[scale], lr=RATES)

    def check(self, subject: Subject) -> None:
        super().check(subject)
        check_samples(self, subject, BATCH)
        check_own_network(subject, "batch")

    def measure(self, trial: Trial, subject: Subject) -> Result:
        dataset = scaled(subject.data)
        training = fit(
            lambda: network(subject, str(trial.levels["norm"]), dataset),
            Samples.of(dataset).first(SAMPLES, seed=trial.seed),
            Recipe(STEPS, float(trial.levels["lr"]), BATCH, evaluate_every=EVERY),
            seed=trial.seed,
        )
        if training.diverged:
            return dict.fromkeys(("accuracy gap", "loss gap", "train accuracy", "val accuracy", "val loss"))
        last = training.last
        return {
            "accuracy gap": 100 * (last.train_score - last.val_score),
            "loss gap": last.val_loss - last.train_loss,
            "train accuracy": last.train_score,
            "val accuracy": last.val_score,
            "val loss": last.val_loss,
            "step": [r.step for r in training.readings],
            "train": [100 * r.train_score for r in training.readings],
            "val": [100 * r.val_score for r in training.readings],
        }

    def judge(self, results: Results) -> Finding:
        rates = _rates(results)
        effects = tuple(
            Effect(
                f"{norm} - none, gap in {of}",
                bootstrap_difference(
                    *results.paired(
                        f"{of} gap", {"norm": norm, "lr": rates[norm]}, {"norm": "none", "lr": rates["none"]}
                    )
                ),
                0.0,
                "below",
                unit,
            )
            for norm in rates
            if norm != "none"
            for of, unit in (("accuracy", "points"), ("loss", "nats"))
        )
        batch, none = (
            float(np.mean(numbers(results.of(norm=n, lr=rates[n]), "accuracy gap")))
            for n in ("batch", "none")
        )
        return Finding(
            agreed(effects[:2]),
            effects,
            f"The gap in accuracy is {batch:.1f} points with batch norm and {none:.1f} without, a difference of "
            f"{told(effects[0].estimate)}; in loss {told(effects[1].estimate)} nats.",
            counted=2,
        )

    def figure(self, results: Results) -> Figure:
        figure = Figure((drawing.WIDTH, drawing.HEIGHT))
        axes = figure.subplots()
        axes.set(xlabel="steps", ylabel="accuracy, %", ylim=(50, 101))
        lines = list[drawing.Curve]()
        for norm, lr in _rates(results).items():
            runs = [run for run in results.of(norm=norm, lr=lr).values() if run["val loss"] is not None]
            steps = curve(runs[0], "step")[1:]
            for split, dashes in (("train", (0, (2, 2))), ("val", "-")):
                values = np.array([curve(run, split)[1:] for run in runs]).T.tolist()
                lines.append(
                    drawing.Curve(f"{norm} {split}", steps, values, drawing.color(norm), dashes, "interval")
                )
        drawing.curves(axes, lines)
        figure.subplots_adjust(right=0.8)
        return figure


def _rates(results: Results) -> dict[str, float]:
    norms = map(str, results.levels("norm"))
    return {norm: float(best_level(results, "lr", "val loss", most=False, norm=norm)) for norm in norms}


STUDY = Regularisation()
