"""The networks: the layers that were promised, in their order, and paired weights across norms."""

from __future__ import annotations

import inspect
import itertools

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

import normkit as nk
from normkit.errors import InputError
from normkit.lab.models import GHOST, MODELS, NORMS, PLACEMENTS, begin, build, check_ghosts, least_batch

IMAGE = (3, 9, 8)
OVER_SPACE = ("instance", "batch_instance", "frn")  # nothing to share behind a dense layer
IN_LSTM = ("none", "batch", "layer", "group", "rms", "dynamic_tanh", "recurrent")
WEIGHTS = ("weight_norm", "weight_standardization", "spectral_norm")
BUILDABLE = [
    (model, norm, placement)
    for model, norm, placement in itertools.product(("mlp", "cnn", "sigmoid", "residual"), NORMS, PLACEMENTS)
    if norm != "recurrent" and (norm not in OVER_SPACE or model in ("cnn", "residual"))
]
BUILDABLE += [("lstm", norm, "pre") for norm in IN_LSTM]
NORM_LAYERS = tuple(
    value
    for name in nk.__all__
    if inspect.isclass(value := getattr(nk, name)) and issubclass(value, nn.Module)
)


def network(model: str, norm: str = "batch", placement: str = "pre", dropout: float = 0.0) -> nn.Module:
    return build(model, norm=norm, placement=placement, input_shape=IMAGE, classes=7, dropout=dropout)


def names(module: nn.Module) -> list[str]:
    return [type(layer).__name__ for layer in module.children()]


@pytest.mark.parametrize(("model", "norm", "placement"), BUILDABLE)
def test_images_become_logits_and_every_parameter_learns(model: str, norm: str, placement: str) -> None:
    torch.manual_seed(0)
    net = network(model, norm, placement, dropout=0.1)
    x = torch.randn(5, *IMAGE)
    begin(net, norm, x)
    logits = net(x)
    assert logits.shape == (5, 7)
    logits.logsumexp(1).sum().backward()
    assert all(parameter.grad is not None for parameter in net.parameters())
    assert net.eval()(x[:1]).shape == (1, 7)


def test_mlp_layer_by_layer() -> None:
    block = ["Linear", "BatchNorm1d", "ReLU"]
    assert names(network("mlp")) == ["Flatten", *block, *block, "Linear"]
    assert [layer.out_features for layer in network("mlp").children() if isinstance(layer, nn.Linear)] == [
        *(16, 32),
        7,
    ]


def test_sigmoid_layer_by_layer() -> None:
    block = ["Linear", "Sigmoid", "LayerNorm"]
    net = network("sigmoid", "layer", "post")
    assert names(net) == ["Flatten", *block, *block, *block, "Linear"]
    linear = [layer for layer in net.children() if isinstance(layer, nn.Linear)]
    assert [layer.out_features for layer in linear] == [100, 100, 100, 7]


def test_cnn_layer_by_layer() -> None:
    conv = ["Conv2d", "ReLU", "BatchNorm2d", "Dropout"]
    dense = ["Linear", "ReLU", "BatchNorm1d", "Dropout", "Linear"]
    net = network("cnn", placement="post", dropout=0.5)
    assert names(net) == [*conv, *conv, "MaxPool2d", "Flatten", *dense]
    weights = [tuple(p.shape) for name, p in net.named_parameters() if name.endswith("weight") and p.ndim > 1]
    assert weights == [(32, 3, 3, 3), (64, 32, 3, 3), (128, 64 * 2 * 2), (7, 128)]


def test_residual_layer_by_layer() -> None:
    hidden, pool = ["Conv2d", "BatchNorm2d", "ReLU"], ["MaxPool2d"]
    end = ["AdaptiveAvgPool2d", "Flatten", "Linear"]
    net = network("residual")
    assert names(net) == [*hidden, "_Block", *pool, *hidden, "_Block", *end]
    block = net[3]
    assert names(block.branch) == [*hidden, "Conv2d", "BatchNorm2d"]
    assert names(block.after) == ["ReLU"]
    after = network("residual", placement="post", dropout=0.5)[4]
    assert names(after.branch) == ["Conv2d", "ReLU", "BatchNorm2d", "Dropout", "Conv2d"]
    assert names(after.after) == ["ReLU", "BatchNorm2d", "Dropout"]
    frn = network("residual", "frn")[2]
    assert names(frn.branch) == ["Conv2d", "FilterResponseNorm"] * 2
    assert names(frn.after) == []


def test_a_block_adds_what_it_is_given() -> None:
    torch.manual_seed(0)
    block = network("residual", "none")[2]
    x = torch.randn(2, 16, 4, 4)
    first, second = (layer for layer in block.modules() if isinstance(layer, nn.Conv2d))
    assert torch.equal(block(x), (x + second(first(x).relu())).relu())
    nn.init.zeros_(second.weight)
    nn.init.zeros_(second.bias)
    assert torch.equal(block(x), x.relu())


def test_widths_are_the_hidden_layers_of_dense_networks() -> None:
    net = build("mlp", norm="batch", placement="pre", input_shape=(5,), classes=3, widths=(8,) * 4)
    assert [m.out_features for m in net.modules() if isinstance(m, nn.Linear)] == [8, 8, 8, 8, 3]
    assert names(net)[1:4] == ["Linear", "BatchNorm1d", "ReLU"]


def test_sigmoid_weights_are_small_gaussians_without_bias() -> None:
    torch.manual_seed(0)
    net = build("sigmoid", norm="none", placement="pre", input_shape=(400,), classes=100)
    for layer in net.children():
        if isinstance(layer, nn.Linear):
            count = layer.weight.numel()
            # standard errors of a sample's deviation and mean: 4 of them are exceeded once in 16,000 draws
            assert layer.weight.std().item() == pytest.approx(0.1, abs=4 * 0.1 / (2 * count) ** 0.5)
            assert layer.weight.mean().item() == pytest.approx(0, abs=4 * 0.1 / count**0.5)
            assert not layer.bias.any()


def drawn_weight(layer: nn.Module) -> torch.Tensor:
    """The weight before a norm of weights: weight norm keeps it as the direction."""
    if not parametrize.is_parametrized(layer):
        return layer.weight
    kept = layer.parametrizations.weight
    return kept.original1 if hasattr(kept, "original1") else kept.original


@pytest.mark.parametrize("model", MODELS)
def test_one_seed_gives_one_set_of_weights_whatever_the_norm(model: str) -> None:
    def weights(norm: str, placement: str) -> list[torch.Tensor]:
        torch.manual_seed(3)
        net = network(model, norm, placement)
        layers = [layer for layer in net.modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
        drawn = [tensor for layer in layers for tensor in (drawn_weight(layer), layer.bias)]
        for cell in (module for module in net.modules() if isinstance(module, nn.LSTMCell)):
            drawn += [cell.weight_ih, cell.weight_hh]
        return [*drawn, torch.get_rng_state()]  # and dropout goes on from the same point

    expected = weights("none", "pre")
    for _, norm, placement in (case for case in BUILDABLE if case[0] == model):
        for left, right in zip(weights(norm, placement), expected, strict=True):
            assert torch.equal(left, right)


AXES = {
    **dict.fromkeys(("batch", "ghost", "renorm", "adaptive", "sync", "batch_instance"), (0, 2, 3)),
    "layer": (1, 2, 3),
    "group": (2, 3, 4),
    "instance": (2, 3),
    "rms": (1,),
}


@pytest.mark.parametrize("norm", AXES)
def test_norms_of_the_cnn_share_over_the_axes_they_name(norm: str) -> None:
    """Before training a convolution's norm gives zero mean (but RMS) and unit square over its set of axes.

    Batch renorm begins as batch norm, batch-instance norm too; six samples are one sub-batch.
    """
    torch.manual_seed(0)
    convolution, layer, *_ = network("cnn", norm).children()
    x = 3 + 2 * torch.randn(6, *IMAGE)
    y = layer(convolution(x)).detach()
    if norm == "group":
        y = y.unflatten(1, (4, 8))
    square = y.square().mean(AXES[norm])
    torch.testing.assert_close(square, torch.ones_like(square), rtol=1e-3, atol=0)  # eps against the variance
    if norm != "rms":
        torch.testing.assert_close(y.mean(AXES[norm]), torch.zeros_like(square), rtol=0, atol=1e-5)


def test_ghosts_are_sub_batches() -> None:
    torch.manual_seed(0)
    convolution, layer, *_ = network("cnn", "ghost").children()
    y = layer(convolution(torch.randn(2 * GHOST, *IMAGE))).detach()
    mean = y.unflatten(0, (2, GHOST)).mean((1, 3, 4))
    torch.testing.assert_close(mean, torch.zeros_like(mean), rtol=0, atol=1e-5)


@pytest.mark.parametrize("norm", ["virtual", "frn", "dynamic_tanh", *WEIGHTS])
def test_norms_that_know_no_batch(norm: str) -> None:
    """A sample comes out as it would alone, but for the order of sums: 1e-5 of values about 1."""
    torch.manual_seed(0)
    net = network("cnn", norm)
    x = torch.randn(6, *IMAGE)
    begin(net, norm, x)
    net.eval()  # in training spectral norm sharpens its vectors with every use
    torch.testing.assert_close(net(x)[:1], net(x[:1]), rtol=0, atol=1e-5)


def test_weight_norm_begins_with_outputs_of_unit_deviation() -> None:
    torch.manual_seed(0)
    net = network("cnn", "weight_norm", dropout=0.5)
    x, state = 3 + torch.randn(64, *IMAGE), torch.get_rng_state()
    begin(net, "weight_norm", x)
    assert torch.equal(torch.get_rng_state(), state)
    assert net.training
    y = net.get_submodule("0")(x).detach()
    for moment, value in ((y.mean((0, 2, 3)), 0.0), (y.std((0, 2, 3), correction=0), 1.0)):
        torch.testing.assert_close(moment, torch.full_like(moment, value), rtol=0, atol=1e-4)


def test_samples_that_weight_norm_cannot_begin_with() -> None:
    with pytest.raises(InputError, match=r"norm 'weight_norm' cannot begin with these samples: .*variance"):
        begin(network("mlp", "weight_norm"), "weight_norm", torch.ones(4, *IMAGE))


def test_norms_of_weights_are_on_every_hidden_layer() -> None:
    for model, norm in itertools.product(("mlp", "cnn", "sigmoid", "residual"), WEIGHTS):
        layers = [m for m in network(model, norm).modules() if isinstance(m, nn.Linear | nn.Conv2d)]
        assert [parametrize.is_parametrized(layer) for layer in layers] == [True] * (len(layers) - 1) + [
            False
        ]


def test_the_threshold_of_frn_is_its_activation() -> None:
    conv = ["Conv2d", "FilterResponseNorm"]
    for placement in PLACEMENTS:
        dense = ["Linear", "ReLU", "Linear"]  # without a norm
        assert names(network("cnn", "frn", placement)) == [*conv, *conv, "MaxPool2d", "Flatten", *dense]


@pytest.mark.parametrize(
    ("norm", "per_channel", "per_layer"),
    [
        *((norm, 2, 0) for norm in ("batch", "layer", "group", "instance", "ghost", "renorm")),
        *((norm, 2, 0) for norm in ("virtual", "adaptive", "sync")),
        ("switch", 2, 6),  # the shares of three means and three variances
        ("batch_instance", 3, 0),  # and the gate
        ("frn", 3, 0),  # and the threshold
        ("dynamic_tanh", 2, 1),  # and the slope
        ("rms", 1, 0),
        ("weight_norm", 1, 0),
        ("weight_standardization", 2, 0),  # those of the group norm behind it
        ("spectral_norm", 0, 0),
    ],
)
def test_norms_of_the_cnn_learn_so_many_numbers(norm: str, per_channel: int, per_layer: int) -> None:
    def count(name: str) -> int:
        return sum(parameter.numel() for parameter in network("cnn", name).parameters())

    channels = (32, 64) if norm in OVER_SPACE else (32, 64, 128)
    assert count(norm) - count("none") == per_channel * sum(channels) + per_layer * len(channels)


@pytest.mark.parametrize(("model", "groups"), [("mlp", [2, 4]), ("sigmoid", [5, 5, 5]), ("cnn", [4, 8, 8])])
def test_groups_hold_eight_units_or_more(model: str, groups: list[int]) -> None:
    layers = [layer for layer in network(model, "group").modules() if isinstance(layer, nk.GroupNorm)]
    assert [layer.num_groups for layer in layers] == groups
    assert all(layer.num_channels / layer.num_groups >= 8 for layer in layers)


@pytest.mark.parametrize("model", MODELS)
def test_without_norm_there_is_none(model: str) -> None:
    assert not any(isinstance(layer, NORM_LAYERS) for layer in network(model, "none").modules())


@pytest.mark.parametrize("norm", OVER_SPACE)
@pytest.mark.parametrize("model", ["mlp", "sigmoid"])
def test_norms_over_space_are_undefined_for_dense_networks(model: str, norm: str) -> None:
    words = f"'{norm}' needs more than one value per channel, the dense layers of '{model}' have one"
    with pytest.raises(InputError, match=words):
        network(model, norm)


@pytest.mark.parametrize("norm", OVER_SPACE)
def test_norms_over_space_leave_the_cnn_s_dense_layer_alone(norm: str) -> None:
    norms = [layer for layer in network("cnn", norm).modules() if isinstance(layer, NORM_LAYERS)]
    assert len(norms) == 2


@pytest.mark.parametrize("norm", NORMS)
def test_the_least_batch_is_the_least_that_trains(norm: str) -> None:
    def trains(samples: int) -> bool:
        net = network("lstm" if norm == "recurrent" else "cnn", norm)
        begin(net, norm, torch.randn(4, *IMAGE))
        try:
            net(torch.randn(samples, *IMAGE))
        except ValueError:
            return False
        return True

    torch.manual_seed(0)
    least = least_batch(norm)
    assert trains(least)
    assert least == 1 or not trains(least - 1)


def test_ghosts_that_leave_one_alone_are_refused() -> None:
    for batch_size, samples in ((GHOST, 100 + GHOST), (GHOST + 2, 1000), (64, 64 * 5 + 1)):
        check_ghosts("ghost", batch_size, samples)
    check_ghosts("batch", GHOST + 1, 100)
    with pytest.raises(InputError, match="of a batch of 17 one would be left: choose another batch size"):
        check_ghosts("ghost", GHOST + 1, 100)
    with pytest.raises(InputError, match="of a batch of 33 one would be left"):
        check_ghosts("ghost", 64, 64 * 5 + 33)


def test_cnn_takes_the_smallest_image_and_no_smaller() -> None:
    small = build("cnn", norm="instance", placement="pre", input_shape=(1, 6, 6), classes=2)
    assert small(torch.randn(2, 1, 6, 6)).shape == (2, 2)
    with pytest.raises(InputError, match="6×6 pixels or more, these are 6×5"):
        build("cnn", norm="batch", placement="pre", input_shape=(1, 6, 5), classes=2)
    with pytest.raises(
        InputError, match=r"needs images \(channels, height, width\), the input's shape is \(9,\)"
    ):
        build("cnn", norm="batch", placement="pre", input_shape=(9,), classes=2)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"model": "cn"}, "unknown model 'cn'.*did you mean 'cnn'"),
        ({"norm": "bacth"}, "unknown norm 'bacth'.*did you mean 'batch'"),
        ({"placement": "past"}, "unknown placement 'past'.*did you mean 'post'"),
        ({"dropout": 1.0}, "dropout must be 0 or more and below 1, got 1"),
        ({"dropout": float("nan")}, "dropout must be 0 or more and below 1, got nan"),
    ],
)
def test_bad_options(options: dict[str, str | float], words: str) -> None:
    with pytest.raises(InputError, match=words):
        network(**{"model": "mlp", **options})  # type: ignore[arg-type]
