"""The loop that studies train with: a seed decides, arms are pairs, instruments change nothing."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn

from normkit.lab.models import build
from normkit.lab.studies.choices import best_level
from normkit.lab.studies.fit import (
    Instrument,
    Moment,
    Recipe,
    Samples,
    Training,
    accuracy,
    fit,
    scaled,
    seeded,
)
from normkit.lab.studies.study import Results, Trial

RECIPE = Recipe(steps=12, lr=0.05, batch_size=32, evaluate_every=4)


def digits() -> Samples:
    return Samples.of(scaled("digits")).first(200)


def network(norm: str = "batch", dropout: float = 0.0) -> nn.Module:
    return build("mlp", norm=norm, placement="pre", input_shape=(1, 8, 8), classes=10, dropout=dropout)


def same(a: Training, b: Training) -> bool:
    weights = zip(a.network.state_dict().values(), b.network.state_dict().values(), strict=True)
    return (
        a.readings == b.readings
        and a.batch_losses == b.batch_losses
        and all(torch.equal(p, q) for p, q in weights)
    )


def test_a_seed_decides_to_the_bit_and_leaves_the_process_alone() -> None:
    make = partial(network, dropout=0.2)
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    first = fit(make, digits(), RECIPE, seed=1)
    assert torch.equal(torch.rand(3), expected)
    assert same(first, fit(make, digits(), RECIPE, seed=1))
    assert not same(first, fit(make, digits(), RECIPE, seed=2))


def test_arms_of_a_seed_begin_alike_and_see_the_same_batches() -> None:
    class Batches(Instrument):
        def __init__(self) -> None:
            self.seen: list[torch.Tensor] = []
            self.weights: list[torch.Tensor] = []

        def before(self, moment: Moment) -> None:
            self.seen.append(moment.x)
            if moment.step == 0:
                self.weights = [
                    m.weight.detach().clone() for m in moment.network.modules() if type(m) is nn.Linear
                ]

    looks = {}
    for norm in ("none", "batch", "layer"):
        looks[norm] = Batches()
        fit(partial(network, norm), digits(), RECIPE, seed=4, instruments=[looks[norm]])
    for norm in ("batch", "layer"):
        for kind in ("seen", "weights"):
            pairs = zip(getattr(looks["none"], kind), getattr(looks[norm], kind), strict=True)
            assert all(torch.equal(a, b) for a, b in pairs)


def test_steps_are_those_of_gradient_descent() -> None:
    """One weight, w -> w - lr (w x - y) x, by hand in float64."""
    x, y = torch.tensor([[2.0]], dtype=torch.float64), torch.tensor([[3.0]], dtype=torch.float64)
    samples = Samples(x, y, x, y)

    def make() -> nn.Module:
        layer = nn.Linear(1, 1, bias=False, dtype=torch.float64)
        nn.init.constant_(layer.weight, 0.25)
        return layer

    recipe = Recipe(
        5,
        0.1,
        1,
        momentum=0.5,
        weight_decay=0.01,
        loss=lambda out, target: 0.5 * nn.functional.mse_loss(out, target),
        score=lambda out, target: -float(nn.functional.mse_loss(out, target)),
    )
    training = fit(make, samples, recipe, seed=0)
    w, velocity, losses = 0.25, 0.0, []
    for _ in range(5):
        losses.append(0.5 * (2 * w - 3) ** 2)
        velocity = 0.5 * velocity + (2 * w - 3) * 2 + 0.01 * w
        w -= 0.1 * velocity
    # five steps of a handful of roundings each, on values below 10
    assert training.batch_losses == pytest.approx(losses, rel=0, abs=1e-13)
    assert next(training.network.parameters()).item() == pytest.approx(w, rel=0, abs=1e-13)
    assert training.last.val_score == pytest.approx(-((2 * w - 3) ** 2), rel=0, abs=1e-12)


def test_readings_come_when_asked_for_and_say_when_a_score_was_reached() -> None:
    training = fit(network, digits(), RECIPE, seed=0)
    assert [r.step for r in training.readings] == [0, 4, 8, 12]
    assert len(training.batch_losses) == 12
    assert [r.step for r in fit(network, digits(), replace(RECIPE, evaluate_every=0), seed=0).readings] == [
        0,
        12,
    ]
    first = next(r.step for r in training.readings if r.val_score >= training.readings[2].val_score)
    assert training.steps_to(training.readings[2].val_score) == first
    assert training.steps_to(1.1) is None


def test_a_loss_that_is_not_finite_ends_it() -> None:
    training = fit(partial(network, "none"), digits(), replace(RECIPE, lr=1e12), seed=0)
    assert training.diverged
    assert len(training.batch_losses) < 12
    assert all(math.isfinite(loss) for loss in training.batch_losses)
    assert all(math.isfinite(r.train_loss + r.val_loss) for r in training.readings)


def test_accuracy_leaves_padding_out() -> None:
    outputs = torch.tensor([[[3.0, 0.0, 1.0], [1.0, 2.0, 0.0]]])  # one sample, two classes, three places
    assert accuracy(outputs, torch.tensor([[0, 0, -100]])) == 0.5


def test_a_batch_is_of_the_samples_there_are() -> None:
    with pytest.raises(ValueError, match=r"a batch must have 1 to 200 samples, got 201"):
        fit(network, digits(), replace(RECIPE, batch_size=201), seed=0)


def test_random_numbers_of_a_seed() -> None:
    with seeded(5) as order:
        first = torch.rand(2), torch.rand(2, generator=order)
    with seeded(5) as order:
        assert torch.equal(first[0], torch.rand(2))
        assert torch.equal(first[1], torch.rand(2, generator=order))


def test_an_arm_stands_at_its_best_level() -> None:
    values = {("a", 0.1): [1.0, 3.0], ("a", 0.2): [9.0, None], ("b", 0.1): [5.0, 5.0], ("b", 0.3): [4.0, 2.0]}
    results = Results(
        (Trial({"arm": arm, "lr": lr}, seed), {"v": value})
        for (arm, lr), of_seeds in values.items()
        for seed, value in enumerate(of_seeds)
    )
    assert best_level(results, "lr", "v", arm="a") == 0.1  # the other has a seed without a value
    assert best_level(results, "lr", "v", most=False, arm="b") == 0.3
