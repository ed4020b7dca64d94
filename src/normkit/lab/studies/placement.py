"""C9: is before the activation better, or after it?"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from statistics import fmean

from matplotlib.figure import Figure

from normkit.lab import drawing
from normkit.lab.bootstrap import bootstrap_mean
from normkit.lab.models import PLACEMENTS, build
from normkit.lab.studies.choices import best_level
from normkit.lab.studies.conclusion import told
from normkit.lab.studies.design import crossed
from normkit.lab.studies.fit import Recipe, Samples, fit, scaled
from normkit.lab.studies.networks import check_images, check_samples
from normkit.lab.studies.study import Effect, Finding, Result, Results, Scale, Study, Subject, Trial

NETWORKS = ("mlp", "cnn", "sigmoid", "residual")
NORMS: Mapping[Scale, tuple[str, ...]] = {"quick": ("batch",), "full": ("batch", "layer")}
RATES = (0.01, 0.03, 0.1, 0.3)
STEPS, EVERY, BATCH = 60, 10, 64


class Placement(Study):
    """Norm before or after the activation, in several networks."""

    name = "placement"
    claim = "C9"
    statement = "Before the activation is better."
    source = "articles 001 and 002; article 000 says after it"
    question = (
        "How many points of accuracy does batch norm before the activation gain over batch norm after it?"
    )
    design = (
        f"Four networks ({', '.join(NETWORKS)}) on 1,000 training samples, SGD with momentum 0.9, batch size "
        f"{BATCH}, {STEPS} steps; batch norm at every hidden layer, before or after its activation, each at "
        f"its best learning rate ({RATES[0]:g} to {RATES[-1]:g}). What is compared is the mean of the "
        f"validation accuracies read every {EVERY} steps, so that speed and end both count. A run that "
        "diverges rules its learning rate out."
    )
    rule = (
        "The gain of before over after, paired by seed, as a mean over the four networks. Supported where "
        "the 95% interval lies above 0, contradicted where it lies below. The gain in each network is told "
        "beside it."
    )
    literature = (
        "Ioffe and Szegedy (2015) put it before the nonlinearity, where the distribution is closer to a "
        "Gaussian. He et al. (2016) find norm and activation both before the convolution best in very deep "
        "residual networks. Mishkin et al. (2017) find after slightly better on ImageNet for most "
        "activations."
    )

    def trials(self, scale: Scale) -> Sequence[Trial]:
        return crossed(scale, network=NETWORKS, norm=NORMS[scale], placement=PLACEMENTS, lr=RATES)

    def check(self, subject: Subject) -> None:
        super().check(subject)
        check_images(self, subject)
        check_samples(self, subject, BATCH)

    def measure(self, trial: Trial, subject: Subject) -> Result:
        dataset, levels = scaled(subject.data), trial.levels
        training = fit(
            lambda: build(
                str(levels["network"]),
                norm=str(levels["norm"]),
                placement=str(levels["placement"]),
                input_shape=dataset.x_train.shape[1:],
                classes=dataset.classes,
            ),
            Samples.of(dataset).first(1000),
            Recipe(STEPS, float(levels["lr"]), BATCH, evaluate_every=EVERY),
            seed=trial.seed,
        )
        if training.diverged:
            return {"accuracy": None, "final accuracy": None}
        scores = [100 * reading.val_score for reading in training.readings[1:]]
        return {"accuracy": fmean(scores), "final accuracy": scores[-1]}

    def judge(self, results: Results) -> Finding:
        effects = list[Effect]()
        for norm in map(str, results.levels("norm")):
            pairs = {model: _pairs(results, model, norm) for model in map(str, results.levels("network"))}
            for name, of_seed in {"all networks": _overall(pairs.values()), **pairs}.items():
                estimate = bootstrap_mean([before - after for before, after in of_seed.values()])
                effects.append(Effect(f"{norm} before - after, {name}", estimate, 0.0, "above", "points"))
        each = ", ".join(
            f"{told(effect.estimate)} in {model}"
            for model, effect in zip(NETWORKS, effects[1:], strict=False)
        )
        return Finding(
            effects[0].verdict,
            tuple(effects),
            f"Before the activation gains {told(effects[0].estimate)} points of mean accuracy: {each}.",
        )

    def figure(self, results: Results) -> Figure:
        effects = self.judge(results).effects
        figure = Figure((drawing.WIDTH, 0.5 * len(effects) + 1.2))
        axes = figure.subplots()
        axes.set(xlabel="accuracy over training, before less after the activation, points")
        rows = [
            (e.label.replace(" before - after", ""), e.estimate, drawing.color(e.label.split()[0]))
            for e in effects
        ]
        drawing.forest(axes, rows, 0.0, claimed="above")
        figure.subplots_adjust(left=0.28, bottom=0.25)
        return figure


def _pairs(results: Results, model: str, norm: str) -> dict[int, tuple[float, float]]:
    """The accuracies before and after, by seed, each at its best learning rate."""
    arms = [{"network": model, "norm": norm, "placement": placement} for placement in PLACEMENTS]
    chosen = [{**arm, "lr": _rate(results, arm)} for arm in arms]
    return results.pairs("accuracy", *chosen)


def _overall(networks: Collection[Mapping[int, tuple[float, float]]]) -> dict[int, tuple[float, float]]:
    """The means over all networks, for the seeds that are pairs in each."""
    whole = set.intersection(*map(set, networks))
    return {
        seed: (fmean(n[seed][0] for n in networks), fmean(n[seed][1] for n in networks))
        for seed in sorted(whole)
    }


def _rate(results: Results, arm: Mapping[str, str]) -> float:
    return float(best_level(results, "lr", "accuracy", most=True, **arm))


STUDY = Placement()
