"""What looks on while networks learn, against closed forms, and without a trace in the training."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from normkit.lab.models import build
from normkit.lab.studies.fit import Instrument, Moment, Recipe, Samples, fit, scaled
from normkit.lab.studies.gradient_flow import as_he
from normkit.lab.studies.initialisation import scale_weights
from normkit.lab.studies.instruments import (
    PERCENTILES,
    AlongTheGradient,
    GradientShift,
    LayerGradients,
    Quantiles,
    layers,
)
from normkit.lab.studies.noisy_batch_norm import Noise, with_noise
from normkit.lab.studies.parameter_scale import FACTORS, elasticity, gradient_lengths


def half_square(outputs: Tensor, targets: Tensor) -> Tensor:
    return 0.5 * (outputs - targets).square().sum()


def train(net: nn.Module, x: Tensor, y: Tensor, look: Instrument, lr: float = 0.1, steps: int = 1) -> None:
    recipe = Recipe(steps, lr, len(x), momentum=0.0, loss=half_square, score=lambda *_: 0.0)
    fit(lambda: net, Samples(x, y, x, y), recipe, seed=0, instruments=[look])


def line(*weights: float) -> nn.Sequential:
    """y = w_k ... w_1 x in float64, with a ReLU after each weight but the last, which changes nothing above 0."""
    modules = list[nn.Module]()
    for weight in weights:
        layer = nn.Linear(1, 1, bias=False, dtype=torch.float64)
        nn.init.constant_(layer.weight, weight)
        modules += [layer, nn.ReLU()]
    return nn.Sequential(*modules[:-1])


ONE = torch.ones(1, 1, dtype=torch.float64)


@pytest.mark.parametrize("norm", ["none", "batch", "layer"])
def test_a_training_that_is_looked_at_is_the_same_to_the_bit(norm: str) -> None:
    """Also with random numbers in its layers, and running statistics."""
    samples = Samples.of(scaled("digits")).first(200)

    def make() -> nn.Module:
        shape = {"input_shape": (1, 8, 8), "classes": 10, "widths": (8, 8)}
        return with_noise(build("mlp", norm=norm, placement="pre", dropout=0.2, **shape))

    looks = [
        Quantiles(samples.x[:50], 2),
        GradientShift(2),
        LayerGradients(2),
        AlongTheGradient((0.1, 0.2), 2),
    ]
    trained = [
        fit(make, samples, Recipe(8, 0.05, 32), seed=3, instruments=instruments)
        for instruments in ([], looks)
    ]
    assert trained[0].batch_losses == trained[1].batch_losses
    states = [training.network.state_dict().values() for training in trained]
    assert all(torch.equal(a, b) for a, b in zip(*states, strict=True))
    assert trained[0].readings == trained[1].readings


def test_change_of_a_gradient_in_a_line_of_two_weights() -> None:
    """L = (ba - y)² / 2: the gradient for b is (ba - y) a, and a alone moves to a - lr (ba - y) b."""
    a, b, y, lr = 2.0, 0.5, 3.0, 0.1
    look = GradientShift(1)
    train(line(a, b), ONE, y * ONE, look, lr)
    moved = a - lr * (b * a - y) * b
    before, after = (b * a - y) * a, (b * moved - y) * moved
    # a few roundings of values near 4
    assert look.distances == pytest.approx([abs(after - before)], rel=0, abs=1e-14)
    assert look.changes == pytest.approx([abs(after - before) / abs(before)], rel=0, abs=1e-14)
    assert look.cosines == pytest.approx([1.0], rel=0, abs=1e-14)


def test_a_layer_does_not_shift_its_own_gradient() -> None:
    """Where only the last layer moves, no layer before another has: nothing changes."""
    net = line(2.0, 0.5)
    net[0].weight.register_hook(torch.zeros_like)  # its gradient is 0, so it stays
    look = GradientShift(1)
    train(net, ONE, 3 * ONE, look)
    assert look.distances == [0.0]


def test_gradients_of_layers_in_a_line() -> None:
    """Each weight w multiplies the gradient that goes back through it: the slope is log10 w a layer."""
    w = 3.0
    look = LayerGradients(1)
    train(line(0.5, w, w, w), ONE, ONE, look, lr=1e-9)
    output = 0.5 * w**3 - 1  # the gradient at the output
    assert look.readings[0] == pytest.approx([output * w**3, output * w**2, output * w], rel=1e-14)
    assert look.slopes() == pytest.approx([np.log10(w)], rel=1e-12)
    vanishing = LayerGradients(1)
    train(line(0.5, 0.1, 0.1, 0.1), ONE, ONE, vanishing, lr=1e-9)
    assert vanishing.slopes() == pytest.approx([-1.0], rel=1e-12)


def test_along_the_gradient_of_a_parabola() -> None:
    """L = (w - y)² / 2 with g = w - y: at w - η g the loss is (1 - η)² g² / 2, the gradient (1 - η) g."""
    g, lengths = 4.0 - 1.0, (0.25, 0.5, 1.0)
    look = AlongTheGradient(lengths, 1)
    train(line(4.0), ONE, ONE, look, lr=0.1)
    losses = [(1 - length) ** 2 * g**2 / 2 for length in lengths]
    assert look.variations == pytest.approx([max(losses) - min(losses)], rel=1e-14)
    assert look.distances == pytest.approx([g], rel=1e-14)  # the farthest point is the minimum
    assert look.changes == pytest.approx([1.0], rel=1e-14)


def test_percentiles_of_a_unit_and_their_drift() -> None:
    """One unit, w x over x = 0, ..., 100: its percentiles are 15 w, 50 w, 85 w, and w moves."""
    x = torch.arange(101.0, dtype=torch.float64)[:, None]
    net = nn.Sequential(nn.Linear(1, 1, bias=False, dtype=torch.float64), nn.Sigmoid())
    nn.init.constant_(net[0].weight, 1.0)
    look = Quantiles(x, 1)

    class Doubling(Instrument):
        def after(self, moment: Moment) -> None:
            with torch.no_grad():
                nn.init.constant_(moment.network[0].weight, 2.0 ** (moment.step + 1))

    recipe = Recipe(3, 1e-12, 1, loss=half_square, score=lambda *_: 0.0)
    fit(lambda: net, Samples(x, x, x[:1], x[:1]), recipe, seed=0, instruments=[look, Doubling()])
    assert look.steps == [0, 1, 2]
    for step, reading in enumerate(look.readings):
        assert reading[0][:, 0] == pytest.approx([2.0**step * p for p in PERCENTILES], rel=1e-14)
    # from w to 2 w each percentile p moves by p w, and the spread is 70 w
    assert look.drift() == pytest.approx(np.mean(PERCENTILES) / 70, rel=1e-14)


def test_a_layer_is_its_weights_and_the_norm_behind_it() -> None:
    net = build("mlp", norm="batch", placement="pre", input_shape=(4,), classes=3)
    hidden = [["1.weight", "1.bias", "2.weight", "2.bias"], ["4.weight", "4.bias", "5.weight", "5.bias"]]
    assert layers(net) == [*hidden, ["7.weight", "7.bias"]]


@pytest.mark.parametrize(("norm", "below", "own"), [("batch", 0, -1), ("none", 1, 0)])
def test_gradients_over_the_scale_of_weights(norm: str, below: float, own: float) -> None:
    """Without norm and bias a linear network has exact powers where the loss is linear; with batch norm always."""
    torch.manual_seed(0)
    net = build("mlp", norm=norm, placement="pre", input_shape=(16,), classes=2, widths=(12,) * 3).double()
    for module in net.modules():
        if isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eps = 1e-12  # eps is what batch norm is not invariant by
    if norm == "none":  # logits near 0, where the loss is linear in them to their square
        nn.init.normal_(net[-1].weight, std=1e-9)
    x, y = torch.randn(32, 16, dtype=torch.float64), torch.arange(32) % 2
    lengths = gradient_lengths(net, x, y)
    # eps against variances of 1e-4 and more under the smallest factor; logits of 1e-9 against 1
    assert elasticity(lengths[0]) == pytest.approx(below, abs=1e-6)
    assert elasticity(lengths[1]) == pytest.approx(own, abs=1e-6)
    assert len(lengths[0]) == len(FACTORS)


def test_initial_weights() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(400, 100), nn.BatchNorm1d(100))
    before = net[0].weight.detach().clone()
    scale_weights(net, 0.25)
    assert torch.equal(net[0].weight, 0.25 * before)
    assert torch.equal(net[1].weight, torch.ones(100))
    net.apply(as_he)
    # 4 standard errors of a sample's deviation, 1 / sqrt(2 n) of it
    assert net[0].weight.std().item() == pytest.approx((2 / 400) ** 0.5, rel=4 / (2 * 40_000) ** 0.5)
    assert not net[0].bias.any()


def test_noise_shifts_units_anew_at_each_step_and_is_gone_in_evaluation() -> None:
    torch.manual_seed(0)
    noise, x = Noise(), torch.randn(2000, 50)
    first, second = noise(x), noise(x)
    means = torch.stack([first.mean(0), second.mean(0)])
    # shifts are uniform over 1 unit: deviation 0.29, that of 50 of them within 0.2 to 0.37 by four standard errors
    assert ((means.std(1) > 0.2) & (means.std(1) < 0.37)).all()
    assert (means[0] - means[1]).abs().mean() > 0.2  # a third in expectation
    assert torch.equal(noise.eval()(x), x)
    net = with_noise(build("mlp", norm="batch", placement="pre", input_shape=(4,), classes=3))
    assert [type(m).__name__ for m in net][1:5] == ["Linear", "BatchNorm1d", "Noise", "ReLU"]
