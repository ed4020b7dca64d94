"""`fold` leaves what a model computes, to the last digits, and refuses where it could not."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from networks import NETWORKS, Untraceable, batch, lived, network
from torch import Tensor, nn

import normkit as nk
from normkit.surgery import folding
from normkit.surgery.fold import Folded

U = torch.finfo(torch.float64).eps
DIMENSIONS = {1: nk.BatchNorm1d, 2: nk.BatchNorm2d, 3: nk.BatchNorm3d}


def same(model: nn.Module, old: nn.Module, *inputs: Tensor) -> None:
    """Equal in float64 but for rounding: sums of at most a thousand terms, each rounded once."""
    y, expected = model(*inputs), old(*inputs)
    assert float((y - expected).detach().abs().max()) <= 1e3 * U * float(expected.detach().abs().max())


def folded(model: nn.Module, x: Tensor, **arguments: Any) -> tuple[nn.Module, nk.surgery.outcome.Outcome]:
    model = lived(model).double().eval()
    old = copy.deepcopy(model)
    outcome = nk.fold(model, **arguments)
    same(model, old, x)
    return model, outcome


def values(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


@pytest.mark.parametrize("dimension", DIMENSIONS)
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("bias", [False, True])
def test_into_the_convolution_before(dimension: int, transposed: bool, groups: int, bias: bool) -> None:
    torch.manual_seed(0)
    name = f"Conv{'Transpose' if transposed else ''}{dimension}d"
    conv = getattr(nn, name)(4, 6, 3, stride=2, padding=1, groups=groups, bias=bias)
    model, outcome = folded(nn.Sequential(conv, DIMENSIONS[dimension](6)), values(2, 4, *[7] * dimension))
    assert outcome.done == {"1": "folded into 0"}
    assert outcome.errors["1"] < 1e2 * U
    assert isinstance(model[1], Folded)


@pytest.mark.parametrize("dimension", DIMENSIONS)
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize(
    "padding",
    [{}, {"padding": 1, "padding_mode": "reflect"}, {"padding": 1, "padding_mode": "circular"}],
    ids=str,
)
def test_into_the_convolution_after(dimension: int, groups: int, padding: dict[str, Any]) -> None:
    if dimension == 3 and padding.get("padding_mode") == "reflect":
        padding = {"padding": 1, "padding_mode": "replicate"}
    torch.manual_seed(0)
    conv = getattr(nn, f"Conv{dimension}d")(4, 6, 3, stride=2, dilation=2, groups=groups, **padding)
    _, outcome = folded(nn.Sequential(DIMENSIONS[dimension](4), conv), values(2, 4, *[7] * dimension))
    assert outcome.done == {"0": "folded into 1"}


@pytest.mark.parametrize("dimension", DIMENSIONS)
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize(
    ("arguments", "folds"),
    [
        ({"kernel_size": 1}, True),
        ({"kernel_size": 3, "padding": 2}, True),
        ({"kernel_size": 3, "padding": 5, "dilation": 2}, True),
        ({"kernel_size": 3, "padding": 1}, False),
        ({"kernel_size": 2, "stride": 2}, False),
        ({"kernel_size": 1, "stride": 2}, False),
    ],
    ids=str,
)
def test_into_the_transposed_convolution_after(
    dimension: int, groups: int, arguments: dict[str, int], folds: bool
) -> None:
    torch.manual_seed(0)
    conv = getattr(nn, f"ConvTranspose{dimension}d")(4, 6, groups=groups, **arguments)
    pair = nn.Sequential(DIMENSIONS[dimension](4), conv)
    _, outcome = folded(pair, values(2, 4, *[12, 11, 9][:dimension]))
    assert outcome.done == ({"0": "folded into 1"} if folds else {})
    assert folds or outcome.left["0"] == (
        f"1: a transposed convolution with kernel {arguments['kernel_size']}, stride {arguments.get('stride', 1)} "
        f"and padding {arguments.get('padding', 0)} gives positions different shares of its input, so of what the "
        "batch norm adds"
    )


def test_where_nothing_is_added_padding_does_not_matter() -> None:
    torch.manual_seed(0)
    for conv in (nn.Conv2d(3, 3, 3, padding=1), nn.ConvTranspose2d(3, 3, 2, 2)):
        model = nn.Sequential(lived(nn.BatchNorm2d(3, affine=False)), conv).double().eval()
        model[0].running_mean.zero_()
        old, x = copy.deepcopy(model), values(2, 3, 6, 5)
        assert nk.fold(model).done == {"0": "folded into 1"}
        same(model, old, x)


def test_a_model_without_batch_norm_is_told() -> None:
    outcome = nk.fold(nn.Sequential(nn.Conv2d(3, 3, 1), nn.GroupNorm(1, 3)))
    assert repr(outcome) == "fold: 0 changed, 0 left: the model has no batch norm"


@pytest.mark.parametrize("optional", [False, True])
def test_optional_arguments_are_followed_left_out_and_given(optional: bool) -> None:
    class Early(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
            self.block = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))

        def forward(self, x: Tensor, raw: bool = False) -> Tensor:
            y = self.conv(x)
            return self.block(y if raw else self.norm(y))

    class Loop(Early):
        def forward(self, x: Tensor, times: int = 1) -> Tensor:
            for _ in range(int(times)):
                x = self.block(self.norm(self.conv(x)))
            return x

    torch.manual_seed(0)
    _, outcome = folded(Loop() if optional else Early(), values(2, 3, 4, 4))
    assert outcome.done == {"block.1": "folded into block.0"}
    why = outcome.left["norm"]
    assert ("where times is given" if optional else "called without the batch norm") in why


def test_into_linear_layers() -> None:
    torch.manual_seed(0)
    before = nn.Sequential(nn.Linear(3, 5, bias=False), nn.Identity(), nk.BatchNorm1d(5), nn.ReLU())
    assert folded(before, values(6, 3))[1].done == {"2": "folded into 0"}
    assert folded(nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 5)), values(6, 3))[1].done == {
        "0": "folded into 1"
    }


@pytest.mark.parametrize("name", NETWORKS)
def test_networks(name: str) -> None:
    model = network(name).eval()
    old = copy.deepcopy(model)
    outcome = nk.fold(model, batch(name))
    for seed in (0, 1):
        same(model, old, batch(name, seed))
    norms = sum(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in old.modules())
    assert len(outcome.done) + len(outcome.left) == norms
    assert len(outcome.left) == {"densenet": 2}.get(name, 0)


@pytest.mark.parametrize("name", ["resnet", "unet", "rnn"])
def test_accelerated_networks_keep_their_activations(name: str) -> None:
    model = network(name).eval()
    old = copy.deepcopy(model)
    nk.accelerate(model, batch(name))
    assert nk.fold(model, batch(name)).left == {}
    same(model, old, batch(name, 1))
    assert not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules())


@pytest.mark.parametrize("magnitude", [-8, -4, 0, 4, 8])
def test_exact_over_a_wide_range(magnitude: int) -> None:
    """Each weight and bias is within a few roundings of what exact arithmetic gives."""
    from fractions import Fraction

    generator = torch.Generator().manual_seed(magnitude + 100)
    scale = 10.0**magnitude
    mean, bias, weight, shift = (torch.randn(4, generator=generator, dtype=torch.float64) for _ in range(4))
    var = torch.rand(4, generator=generator, dtype=torch.float64) * scale**2
    kernel = torch.randn(4, 3, 2, generator=generator, dtype=torch.float64)
    s, t = folding.affine_of(mean * scale, var, weight, shift, 1e-5)
    new_kernel, new_bias = folding.after(kernel, bias * scale, s, t)
    for c in range(4):
        root = Fraction(float(var[c]) + 1e-5)
        exact = Fraction(float(weight[c])) ** 2 / root  # of the scale, squared
        # A sum, a root, a quotient, a product: half a unit each, twice that in the square.
        assert abs(Fraction(float(s[c])) ** 2 - exact) <= 8 * Fraction(U) * exact
        got, one, moved = Fraction(float(new_bias[c])), Fraction(float(s[c])), float(mean[c] * scale)
        terms = [
            Fraction(float(shift[c])),
            -one * Fraction(moved),
            one * Fraction(float(bias[c] * scale)),
        ]
        assert abs(got - sum(terms)) <= 4 * Fraction(U) * sum(map(abs, terms))
        for old, new in zip(kernel[c].flatten(), new_kernel[c].flatten(), strict=True):
            product = Fraction(float(old)) * one
            assert abs(Fraction(float(new)) - product) <= Fraction(U) * abs(product)


def input_changes(m: nn.Module, x: Tensor) -> Tensor:
    x = x.clone()
    y = m.norm(x)
    x *= 2
    return m.last(y)


class Ways(nn.Module):
    """Two of each, and a way through them."""

    def __init__(self, way: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.last = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 1)
        self.norm, self.other = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
        self.way = way

    def forward(self, x: Tensor) -> Tensor:
        return self.way(self, x)


@pytest.mark.parametrize(
    ("way", "left"),
    [
        (lambda m, x: m.norm(m.conv(x)) + m.conv(x * 2), {"norm": "conv: it is called 2 times"}),
        (lambda m, x: m.norm(y := m.conv(x)) + y, {"norm": "conv: its output is used elsewhere too"}),
        (lambda m, x: m.norm(m.conv(x)) + m.norm(x), {"norm": "it is called 2 times"}),
        (lambda m, x: m.conv(m.norm(x)), {"norm": "conv: it pads with zeros, which the batch norm does not move"}),
        (lambda m, x: m.norm(F.relu(m.conv(x))), {"norm": "no convolution or linear layer beside it alone"}),
        (lambda m, x: m.last(y := m.norm(x)) + y, {"norm": "no convolution or linear layer beside it alone"}),
        (lambda m, x: m.norm(m.conv(x)) * m.conv.weight.sum(),
         {"norm": "conv: its parameters are shared with another layer"}),
        (lambda m, x: m.norm(m.conv(x)) * m.norm.running_var.sum(),
         {"norm": "its parameters or statistics are used elsewhere too"}),
        (lambda m, x: m.other(m.norm(m.conv(x))), {"other": "no convolution or linear layer beside it alone"}),
        (lambda m, x: m.norm(m.last(x.abs())) + 1, {}),
        (lambda m, x: m.last(m.norm(x)) + m.conv(x), {}),
        (input_changes, {"norm": "last: what goes into the batch norm may change between them"}),
    ],
)  # fmt: skip
def test_by_dataflow_and_not_by_registration(way: Any, left: dict[str, str]) -> None:
    _, outcome = folded(Ways(way), values(2, 3, 6, 6))
    outcome.left.pop("other" if "other" not in left else "norm", None)
    assert outcome.left == left


def test_the_same_weight_in_two_layers() -> None:
    model = Ways(lambda m, x: m.norm(m.conv(x)) + m.tied(x))
    model.tied = nn.Conv2d(3, 3, 3, padding=1)
    model.tied.weight = model.conv.weight
    assert (
        folded(model, values(2, 3, 6, 6))[1].left["norm"]
        == "conv: its parameters are shared with another layer"
    )


def refused(change: Any) -> str:
    model = lived(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))).eval()
    change(model)
    before = [(type(m), list(m.state_dict())) for m in model.modules()]
    outcome = nk.fold(model)
    assert outcome.done == {}
    assert [(type(m), list(m.state_dict())) for m in model.modules()] == before
    return outcome.left["1"]


class Louder(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) ** 2


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda m: m.train(), "it is in training mode: model.eval() first"),
        (lambda m: m[0].train(), "0: it is in training mode"),
        (
            lambda m: setattr(m, "1", nn.BatchNorm2d(4, track_running_stats=False).eval()),
            "no running statistics",
        ),
        (
            lambda m: setattr(m, "1", nk.BatchNorm2d(4, evaluation_statistics="batch").eval()),
            "does not evaluate by",
        ),
        (
            lambda m: setattr(m, "1", nk.AdaptiveBatchNorm2d(4).eval()),
            "does not evaluate by running statistics",
        ),
        (lambda m: m[0].register_forward_hook(lambda *_: None), "0: it has hooks"),
        (lambda m: m[1].register_forward_pre_hook(lambda *_: None), "it has hooks"),
        (lambda m: nk.weight_norm(m[0]), "0: its weight is computed"),
        (lambda m: setattr(m[0], "weight_fake_quant", nn.Identity()), "0: it is prepared for quantization"),
        (
            lambda m: setattr(m[1], "activation_post_process", nn.Identity()),
            "it is prepared for quantization",
        ),
        (lambda m: setattr(m, "0", Louder(3, 4, 3).eval()), "0: Louder has a forward of its own"),
        (lambda m: m[1].running_var.fill_(float("nan")), "0: the new weight or bias would not be finite"),
    ],
)
def test_refusals(change: Any, why: str) -> None:
    assert why in refused(change)


def test_hooks_between_the_layers() -> None:
    model = lived(nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 3)), nn.BatchNorm2d(4))).eval()
    model[0].register_forward_hook(lambda *_: None)
    assert nk.fold(model).left == {"1": "0.0: hooks see what passes between them"}


def test_untraceable_models_stay() -> None:
    assert nk.fold(Untraceable().eval()).left["norm"].startswith("torch.fx cannot follow its forward")


def test_axes_that_are_no_channels() -> None:
    """Behind a linear layer (N, L, C), batch norm takes L for channels; here as many as there are features."""
    model = lived(nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5))).double().eval()
    old, x = copy.deepcopy(model), values(2, 5, 4)
    assert "its output has 3 axes" in nk.fold(model, x).left["1"]
    same(model, old, x)
    nk.fold(model, values(2, 4))
    with pytest.raises(
        ValueError, match=r"folded for input of 2 axes, got \[2, 5, 5\]: fold a model with an example"
    ):
        model(x)


def test_parameters_stay_the_objects_that_they_were() -> None:
    model = network("resnet").eval()
    weight, names = model.conv1.weight, {key for key, _ in model.named_modules()}
    model.conv1.weight.requires_grad_(requires_grad=False)
    nk.fold(model)
    assert model.conv1.weight is weight
    assert not model.conv1.bias.requires_grad
    assert {key for key, _ in model.named_modules()} == names
    assert not any("bn" in key for key in model.state_dict())


def test_half_precision_is_rounded_once() -> None:
    model = lived(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))).eval()
    exact = copy.deepcopy(model).bfloat16().double()
    model.bfloat16()
    nk.fold(exact)
    nk.fold(model)
    assert torch.equal(model[0].weight, exact[0].weight.bfloat16())
    assert torch.equal(model[0].bias, exact[0].bias.bfloat16())
