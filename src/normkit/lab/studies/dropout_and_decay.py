"""C8: can dropout be dropped with batch norm, and how does L2 go with it? A factorial design."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from normkit.lab import drawing
from normkit.lab.bootstrap import bootstrap_mean
from normkit.lab.intervals import Estimate
from normkit.lab.models import build
from normkit.lab.studies.choices import best_level, numbers
from normkit.lab.studies.conclusion import told
from normkit.lab.studies.design import crossed
from normkit.lab.studies.fit import Recipe, Samples, chance, fit, scaled
from normkit.lab.studies.networks import check_samples, fitting
from normkit.lab.studies.study import Effect, Finding, Result, Results, Scale, Study, Subject, Trial

NORMS = ("none", "batch")
DROPOUTS: Mapping[Scale, tuple[float, ...]] = {"quick": (0.0, 0.3), "full": (0.0, 0.15, 0.3, 0.5)}
DECAYS: Mapping[Scale, tuple[float, ...]] = {"quick": (0.0, 0.003), "full": (0.0, 0.003, 0.01)}
DROPOUT, DECAY = 0.3, 0.003  # those that effects are of
RATES = (0.01, 0.05)
SAMPLES, STEPS, BATCH = 200, 150, 32
MARGIN = 0.5  # points of accuracy that dropping dropout may cost


class DropoutAndDecay(Study):
    """Batch norm, dropout and L2, in all combinations."""

    name = "dropout-and-decay"
    claim = "C8"
    statement = "With batch norm dropout can be dropped; L2 interacts with it."
    source = "articles 002, 003, 004, which disagree: dropped (003), or best used together (002, 004)"
    question = (
        "What does dropout add to a network with batch norm, and what does L2, beside what they add to one "
        "without?"
    )
    design = (
        f"The CNN (on samples without space the MLP) on {SAMPLES} training samples, others for each seed, SGD "
        f"with momentum 0.9, batch size {BATCH}, {STEPS} steps: with and without batch norm, dropout 0 and "
        f"{DROPOUT:g} after each hidden layer, an L2 term of 0 and {DECAY:g} on all parameters, crossed (the "
        f"full run has more of both). Each cell stands at its better learning rate of {RATES[0]:g} and "
        f"{RATES[1]:g}. Validation accuracy in points."
    )
    rule = (
        "By the first effect, the accuracy with batch norm without dropout less that with it, paired by "
        f"seed, without L2: supported (it can be dropped) where the 95% interval lies above -{MARGIN:g} "
        "points, contradicted where it lies below. The others, interactions of dropout and of L2 with batch "
        "norm, are told beside it."
    )
    literature = (
        "Ioffe and Szegedy (2015) drop dropout from Inception and lose nothing. Li et al. (2019) find that "
        "dropout before batch norm shifts variances between training and inference. Van Laarhoven (2017) "
        "shows that L2 on weights before a norm acts by the effective learning rate alone."
    )

    def trials(self, scale: Scale) -> Sequence[Trial]:
        return crossed(scale, norm=NORMS, dropout=DROPOUTS[scale], decay=DECAYS[scale], lr=RATES)

    def check(self, subject: Subject) -> None:
        super().check(subject)
        check_samples(self, subject, BATCH)

    def measure(self, trial: Trial, subject: Subject) -> Result:
        dataset, levels = scaled(subject.data), trial.levels
        recipe = Recipe(STEPS, float(levels["lr"]), BATCH, weight_decay=float(levels["decay"]))
        training = fit(
            lambda: build(
                fitting(dataset),
                norm=str(levels["norm"]),
                placement="pre",
                input_shape=dataset.x_train.shape[1:],
                classes=dataset.classes,
                dropout=float(levels["dropout"]),
            ),
            Samples.of(dataset).first(SAMPLES, seed=trial.seed),
            recipe,
            seed=trial.seed,
        )
        return {"accuracy": 100 * (chance(dataset) if training.diverged else training.last.val_score)}

    def judge(self, results: Results) -> Finding:
        def gain(norm: str, dropout: float, decay: float) -> list[float]:
            """What dropout and L2 add to a norm, by seed."""
            bare = accuracies(results, norm, 0.0, 0.0)
            return [a - b for a, b in zip(accuracies(results, norm, dropout, decay), bare, strict=True)]

        def interaction(dropout: float, decay: float) -> Estimate:
            pairs = zip(gain("batch", dropout, decay), gain("none", dropout, decay), strict=True)
            return bootstrap_mean([a - b for a, b in pairs])

        without = bootstrap_mean([-g for g in gain("batch", DROPOUT, 0.0)])
        effects = (
            Effect("batch norm without dropout - with it, accuracy", without, -MARGIN, "above", "points"),
            Effect(
                "dropout's gain with batch norm - without", interaction(DROPOUT, 0.0), 0.0, "below", "points"
            ),
            Effect("L2's gain with batch norm - without", interaction(0.0, DECAY), 0.0, "below", "points"),
        )
        return Finding(
            effects[0].verdict,
            effects,
            f"With batch norm, leaving dropout out changes accuracy by {told(without)} points; dropout gains "
            f"{told(effects[1].estimate)} points more with batch norm than without, L2 {told(effects[2].estimate)}.",
        )

    def figure(self, results: Results) -> Figure:
        figure = Figure((drawing.WIDTH, 1.6 * drawing.HEIGHT))
        axes = figure.subplots()
        axes.set(xlabel="validation accuracy, %")
        names = list[str]()
        for norm in NORMS:
            for dropout in results.levels("dropout"):
                for decay in results.levels("decay"):
                    values = accuracies(results, norm, float(dropout), float(decay))
                    drawing.dots(axes, len(names), values, drawing.color(norm))
                    names.append(f"{norm}, dropout {dropout:g}, L2 {decay:g}")
        drawing.rows(axes, names)
        figure.subplots_adjust(left=0.34)
        return figure


def accuracies(results: Results, norm: str, dropout: float, decay: float) -> list[float]:
    """The accuracy of each seed in a cell, at its better learning rate."""
    lr = best_level(results, "lr", "accuracy", norm=norm, dropout=dropout, decay=decay)
    return numbers(results.of(norm=norm, dropout=dropout, decay=decay, lr=lr), "accuracy")


STUDY = DropoutAndDecay()
