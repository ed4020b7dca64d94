"""The networks: the layers that were promised, in their order, and paired weights across norms."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

import normkit as nk
from normkit.errors import InputError
from normkit.lab.models import MODELS, NORMS, PLACEMENTS, build

IMAGE = (3, 9, 8)
BUILDABLE = [
    (model, norm, placement)
    for model, norm, placement in itertools.product(MODELS, NORMS, PLACEMENTS)
    if norm != "instance" or model == "cnn"
]
NORM_LAYERS = (nk.BatchNorm1d, nk.BatchNorm2d, nk.LayerNorm, nk.GroupNorm, nk.InstanceNorm2d, nk.RMSNorm)


def network(model: str, norm: str = "batch", placement: str = "pre", dropout: float = 0.0) -> nn.Module:
    return build(model, norm=norm, placement=placement, input_shape=IMAGE, classes=7, dropout=dropout)


def names(module: nn.Module) -> list[str]:
    return [type(layer).__name__ for layer in module.children()]


@pytest.mark.parametrize(("model", "norm", "placement"), BUILDABLE)
def test_images_become_logits_and_every_parameter_learns(model: str, norm: str, placement: str) -> None:
    torch.manual_seed(0)
    net = network(model, norm, placement, dropout=0.1)
    x = torch.randn(5, *IMAGE)
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


@pytest.mark.parametrize("model", MODELS)
def test_one_seed_gives_one_set_of_weights_whatever_the_norm(model: str) -> None:
    def weights(norm: str, placement: str) -> list[torch.Tensor]:
        torch.manual_seed(3)
        net = network(model, norm, placement)
        layers = [layer for layer in net.modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
        drawn = [parameter for layer in layers for parameter in layer.parameters()]
        return [*drawn, torch.get_rng_state()]  # and dropout goes on from the same point

    expected = weights("none", "pre")
    for _, norm, placement in (case for case in BUILDABLE if case[0] == model):
        for left, right in zip(weights(norm, placement), expected, strict=True):
            assert torch.equal(left, right)


@pytest.mark.parametrize("norm", [norm for norm in NORMS if norm != "none"])
def test_norms_of_the_cnn_share_over_the_axes_they_name(norm: str) -> None:
    """Before training a convolution's norm gives zero mean (but RMS) and unit square over its set of axes."""
    torch.manual_seed(0)
    convolution, layer, *_ = network("cnn", norm).children()
    x = 3 + 2 * torch.randn(6, *IMAGE)
    y = layer(convolution(x)).detach()
    axes = {"batch": (0, 2, 3), "layer": (1, 2, 3), "group": (2, 3, 4), "instance": (2, 3), "rms": (1,)}[norm]
    if norm == "group":
        y = y.unflatten(1, (4, 8))
    square = y.square().mean(axes)
    torch.testing.assert_close(square, torch.ones_like(square), rtol=1e-3, atol=0)  # eps against the variance
    if norm != "rms":
        torch.testing.assert_close(y.mean(axes), torch.zeros_like(square), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("norm", "per_channel"), [("batch", 2), ("layer", 2), ("group", 2), ("instance", 2), ("rms", 1)]
)
def test_norms_of_the_cnn_learn_as_many_numbers_per_channel(norm: str, per_channel: int) -> None:
    def count(name: str) -> int:
        return sum(parameter.numel() for parameter in network("cnn", name).parameters())

    dense = 0 if norm == "instance" else 128
    assert count(norm) - count("none") == per_channel * (32 + 64 + dense)


@pytest.mark.parametrize(("model", "groups"), [("mlp", [2, 4]), ("sigmoid", [5, 5, 5]), ("cnn", [4, 8, 8])])
def test_groups_hold_eight_units_or_more(model: str, groups: list[int]) -> None:
    layers = [layer for layer in network(model, "group").modules() if isinstance(layer, nk.GroupNorm)]
    assert [layer.num_groups for layer in layers] == groups
    assert all(layer.num_channels / layer.num_groups >= 8 for layer in layers)


@pytest.mark.parametrize("model", MODELS)
def test_without_norm_there_is_none(model: str) -> None:
    assert not any(isinstance(layer, NORM_LAYERS) for layer in network(model, "none").modules())


@pytest.mark.parametrize("model", ["mlp", "sigmoid"])
def test_instance_norm_is_undefined_for_dense_networks(model: str) -> None:
    with pytest.raises(
        InputError, match=f"more than one value per channel, the dense layers of '{model}' have one"
    ):
        network(model, "instance")


def test_instance_norm_leaves_the_cnn_s_dense_layer_alone() -> None:
    norms = [type(layer) for layer in network("cnn", "instance").modules() if isinstance(layer, NORM_LAYERS)]
    assert norms == [nk.InstanceNorm2d, nk.InstanceNorm2d]


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
