"""The studies of C1 to C10: their rules on results of each kind, and measurements that repeat to the bit."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator
from pathlib import Path

import numpy as np
import pytest
import torch

from normkit.errors import InputError
from normkit.lab import drawing
from normkit.lab.studies import (
    NAMES,
    batch_size,
    find,
    initialisation,
    loss_landscape,
    noisy_batch_norm,
    sigmoid_inputs,
)
from normkit.lab.studies.instruments import PERCENTILES
from normkit.lab.studies.study import Result, Results, Scale, Study, Subject, Trial, Verdict

# Of a trial and the side that its seed is on (1: the claim holds, -1: it does not), what was measured.
MadeUp = Callable[[Trial, int], Result]


def fewer_steps(trial: Trial, side: int) -> Result:
    reached = 30 if trial.levels["norm"] == "none" else 30 - 15 * side
    steps = list(range(0, 121, 3))
    return {
        "step": steps,
        "accuracy": [0.9 if step >= reached else 0.1 for step in steps],
        "final accuracy": 0.9,
        "chance": 0.1,
    }


def learning_rate(trial: Trial, side: int) -> Result:
    largest = 0.16 if trial.levels["norm"] == "none" or side < 0 else 1.28
    learned = float(trial.levels["lr"]) <= largest
    return {"accuracy": 0.9 if learned else None, "steps": 60, "chance": 0.1}


def sensitive(trial: Trial, side: int) -> Result:
    usual = all(trial.levels[name] == level for name, level in initialisation.USUAL.items())
    lost = 0.3 if trial.levels["norm"] == "none" else 0.3 - 0.2 * side
    return {"accuracy": 0.9 if usual else 0.9 - lost}


def drifting(trial: Trial, side: int) -> Result:
    factor = 1.0 if trial.levels["norm"] == "none" else 1 - 0.5 * side
    steps = list(range(0, sigmoid_inputs.STEPS, sigmoid_inputs.EVERY))
    percentiles = {f"p{p}": [p / 50 - 1.0] * len(steps) for p in PERCENTILES}
    measured = {"drift": factor * (1 + 0.1 * trial.seed), "loss": 1.0, "accuracy": 0.9, "step": steps}
    return {**measured, **percentiles}


def shifting(trial: Trial, side: int) -> Result:
    factor = 1.0 if trial.levels["norm"] == "none" else 1 - 0.5 * side
    return {"loss": 1.0, "change": factor * (1 + 0.1 * trial.seed), "distance": 1.0, "cosine": 0.5}


def noisy(trial: Trial, side: int) -> Result:
    loss = 1 + 0.1 * trial.seed + (0.5 * side if trial.levels["arm"] == "noisy batch" else 0.0)
    drift = 2.0 if trial.levels["arm"] == "noisy batch" else 1.0
    return {"loss": loss, "drift": drift, "accuracy": 0.9, "losses": [loss] * noisy_batch_norm.STEPS}


def uneven(trial: Trial, side: int) -> Result:
    slope = 0.3 + 0.01 * trial.seed - (0.0 if trial.levels["norm"] == "none" else 0.2 * side)
    return {"slope": slope, "first slope": slope, "accuracy": 0.9}


def rough(trial: Trial, side: int) -> Result:
    value = (1.0 if trial.levels["norm"] == "none" else 1 - 0.5 * side) * (1 + 0.1 * trial.seed)
    readings = [value] * (loss_landscape.STEPS // loss_landscape.EVERY)
    return {"loss": 1.0, "variation": value, "change": value, "variations": readings, "changes": readings}


def elastic(trial: Trial, side: int) -> Result:
    moved = 0.0 if trial.levels["norm"] == "none" else 0.5 * side
    lengths = [1.0 + k for k in range(9)]
    return {"below": lengths, "own": lengths, "slope below": 1 - moved, "slope own": -moved}


def gapped(trial: Trial, side: int) -> Result:
    gap = 5 + 0.1 * trial.seed - (0.0 if trial.levels["norm"] == "none" else 2.0 * side)
    read = {"step": [0, 15, 30], "train": [10.0, 90.0, 100.0], "val": [10.0, 80.0, 90.0]}
    return {
        "accuracy gap": gap,
        "loss gap": gap,
        "train accuracy": 1.0,
        "val accuracy": 0.9,
        "val loss": 1.0,
        **read,
    }


def dropped(trial: Trial, side: int) -> Result:
    hurts = trial.levels["norm"] == "batch" and trial.levels["dropout"] == 0.3
    return {"accuracy": 90 + 0.1 * trial.seed - (2.0 * side if hurts else 0.0)}


def placed(trial: Trial, side: int) -> Result:
    gain = 2.0 * side if trial.levels["placement"] == "pre" else 0.0
    return {"accuracy": 80 + 0.1 * trial.seed + gain, "final accuracy": 90.0}


def small(trial: Trial, side: int) -> Result:
    rise = 5.0 * side if (trial.levels["norm"], trial.levels["size"]) == ("batch", batch_size.SMALL) else 0.0
    return {"error": 10 + 0.1 * trial.seed + rise}


# name: (made-up results, the least costly trial)
STUDIES: dict[str, tuple[MadeUp, dict[str, str | float | int]]] = {
    "fewer-steps": (fewer_steps, {"norm": "batch", "lr": 0.03}),
    "learning-rate": (learning_rate, {"norm": "batch", "lr": 0.04}),
    "initialisation": (sensitive, {"norm": "batch", "lr": 0.03, "factor": 0.25, "momentum": 0.9}),
    "sigmoid-inputs": (drifting, {"norm": "batch", "lr": 0.3}),
    "gradient-shift": (shifting, {"norm": "batch", "lr": 0.03}),
    "noisy-batch-norm": (noisy, {"arm": "noisy batch", "lr": 0.03}),
    "gradient-flow": (uneven, {"norm": "batch", "beginning": "He's", "depth": 4, "lr": 0.03}),
    "loss-landscape": (rough, {"norm": "batch", "lr": 0.03}),
    "parameter-scale": (elastic, {"norm": "weight_norm", "steps": 50}),
    "regularisation": (gapped, {"norm": "batch", "lr": 0.03}),
    "dropout-and-decay": (dropped, {"norm": "batch", "dropout": 0.3, "decay": 0.003, "lr": 0.01}),
    "placement": (placed, {"network": "mlp", "norm": "batch", "placement": "post", "lr": 0.03}),
    "batch-size": (small, {"norm": "renorm", "size": 64, "lr": 0.002}),
}
SIDES: dict[Verdict, Callable[[int], int]] = {
    "supported": lambda seed: 1,
    "contradicted": lambda seed: -1,
    "undecided": lambda seed: 1 if seed % 2 else -1,
}


@pytest.fixture(autouse=True)
def _one_thread() -> Generator[None]:
    """As trials run in the workers of a sweep."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def results(study: Study, made_up: MadeUp, side: Callable[[int], int], scale: Scale = "quick") -> Results:
    return Results((trial, made_up(trial, side(trial.seed))) for trial in study.trials(scale))


def test_they_are_listed() -> None:
    assert set(STUDIES) <= set(NAMES)
    assert {find(name).claim for name in STUDIES} == {f"C{number}" for number in range(1, 11)}


@pytest.mark.parametrize("scale", ["quick", "full"])
@pytest.mark.parametrize("verdict", SIDES)
@pytest.mark.parametrize("name", STUDIES)
def test_the_rule_on_results_of_each_kind(name: str, verdict: Verdict, scale: Scale) -> None:
    study = find(name)
    finding = study.judge(results(study, STUDIES[name][0], SIDES[verdict], scale))
    assert finding.verdict == verdict
    assert finding.effects
    assert "\n" not in finding.sentence
    assert "nan" not in finding.sentence


@pytest.mark.parametrize("name", STUDIES)
def test_the_figure_draws_what_was_measured(name: str) -> None:
    study = find(name)
    measured = results(study, STUDIES[name][0], SIDES["supported"])
    drawn = drawing.svg(lambda: study.figure(measured), name)
    assert "<path" in drawn
    assert drawn == drawing.svg(lambda: study.figure(measured), name)


@pytest.mark.parametrize("name", STUDIES)
def test_a_quick_run_is_a_part_of_the_full_one(name: str) -> None:
    quick, full = (find(name).trials(scale) for scale in ("quick", "full"))
    assert all(trial in full for trial in quick)
    for trials, seeds in ((quick, 6), (full, 12)):
        order = [trial.seed for trial in trials]
        assert order == sorted(order)
        assert set(order) == set(range(seeds))


@pytest.mark.parametrize("name", STUDIES)
def test_a_trial_measures_the_same_to_the_bit(name: str) -> None:
    study, levels = find(name), STUDIES[name][1]
    (trial,) = [t for t in study.trials("quick") if dict(t.levels) == levels and t.seed == 1]
    first = json.dumps(study.measure(trial, Subject()), allow_nan=False)
    assert json.dumps(study.measure(trial, Subject()), allow_nan=False) == first
    made_up = STUDIES[name][0](trial, 1)
    assert set(json.loads(first)) == set(made_up)  # what rules are tested on is what is measured


def test_without_more_shift_noisy_batch_norm_shows_nothing() -> None:
    study = find("noisy-batch-norm")

    def calm(trial: Trial, side: int) -> Result:
        return {**noisy(trial, side), "drift": 0.5 if trial.levels["arm"] == "noisy batch" else 1.0}

    assert study.judge(results(study, calm, SIDES["contradicted"])).verdict == "undecided"


def test_where_every_run_diverges_no_rate_is_usable() -> None:
    study = find("learning-rate")
    finding = study.judge(
        results(study, lambda *_: {"accuracy": None, "steps": 3, "chance": 0.1}, SIDES["supported"])
    )
    assert finding.effects[0].estimate.mean == 1  # half the lowest rate on both sides


def test_runs_that_never_reach_the_target_count_as_if_at_their_end() -> None:
    study = find("fewer-steps")

    def never(trial: Trial, side: int) -> Result:
        reached = fewer_steps(trial, side)
        if trial.levels["norm"] == "none" and trial.seed == 0:
            return {**reached, "accuracy": [0.1] * 41}
        return reached

    (effect,) = study.judge(results(study, never, SIDES["supported"])).effects
    assert effect.estimate.mean == pytest.approx((0.5**5 * 15 / 120) ** (1 / 6))


@pytest.mark.parametrize("name", STUDIES)
def test_data_that_do_not_fit_are_refused_by_what_they_lack(name: str, tmp_path: Path) -> None:
    few = tmp_path / "few.npz"
    np.savez(few, x=np.random.default_rng(0).normal(size=(20, 3)), y=np.arange(20) % 2)
    with pytest.raises(
        InputError, match=rf"{name} needs (images|\d+ training samples or more).*few.npz"
    ) as refused:
        find(name).check(Subject(data=str(few)))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", STUDIES)
def test_a_network_of_the_users_where_it_makes_sense(name: str, tmp_path: Path) -> None:
    file = tmp_path / "net.py"
    file.write_text(
        "from torch import nn\n"
        "def make():\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 10))\n"
    )
    subject = Subject(model=f"{file}:make")
    study = find(name)
    if not study.takes_model:
        with pytest.raises(InputError, match="has its own networks"):
            study.check(subject)
        return
    study.check(subject)
    for norm in ("none", "batch"):
        trial = next(t for t in study.trials("quick") if t.levels["norm"] == norm)
        assert study.measure(trial, subject) != study.measure(trial, Subject())


def test_placement_takes_the_seeds_that_every_network_got_through() -> None:
    """Batch norm after the activation diverges with the CNN at seed 3, at every learning rate."""

    def lost(trial: Trial, side: int) -> Result:
        levels = trial.levels
        diverged = (levels["network"], levels["placement"], trial.seed) == ("cnn", "post", 3)
        return {"accuracy": None, "final accuracy": None} if diverged else placed(trial, side)

    finding = find("placement").judge(results(find("placement"), lost, lambda seed: 1))
    assert finding.verdict == "supported"
    counts = {effect.label.rpartition(", ")[2]: effect.estimate.count for effect in finding.effects}
    assert counts == {"all networks": 5, "mlp": 6, "cnn": 5, "sigmoid": 6, "residual": 6}
