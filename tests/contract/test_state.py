"""Modes, state and life as a module: what torch's layer of the same name does, where there is one, ours does."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from case import Case
from cases import CASES, every_case, every_mode, every_twin, every_twinless
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune


def assert_same_state(ours: nn.Module, twin: nn.Module) -> None:
    a, b = ours.state_dict(), twin.state_dict()
    assert list(a) == list(b)
    for key in a:
        torch.testing.assert_close(a[key], b[key], rtol=1e-5, atol=1e-6)


@every_twin
def test_trains_and_evaluates_as_the_twin(case: Case) -> None:
    """Three steps of training, then evaluation: outputs and running statistics agree all along."""
    ours, twin = case.make(), case.make_twin()
    for step in range(3):
        x = case.input(seed=step) * (step + 1) + step
        torch.testing.assert_close(ours(x), case.activate(twin(x)), rtol=1e-5, atol=1e-5)
        assert_same_state(ours, twin)
    ours.eval(), twin.eval()
    x = case.input(seed=7)
    torch.testing.assert_close(ours(x), case.activate(twin(x)), rtol=1e-5, atol=1e-5)
    assert_same_state(ours, twin)


@every_twin
def test_state_dict_both_ways(case: Case) -> None:
    ours, twin = case.make(seed=1), case.make_twin(seed=2)
    ours(case.input()), twin(case.input(seed=9))
    into_twin, into_ours = case.make_twin(), case.make()
    into_twin.load_state_dict(ours.state_dict(), strict=True)
    into_ours.load_state_dict(twin.state_dict(), strict=True)
    x = case.input(seed=5)
    for a, b in ((ours.eval(), into_twin.eval()), (into_ours.eval(), twin.eval())):
        torch.testing.assert_close(a(x), case.activate(b(x)), rtol=1e-5, atol=1e-5)


@every_case
@every_mode
def test_state_dict_is_all_the_state(case: Case, training: bool) -> None:
    """Another layer that loads it goes on to the bit as this one does."""
    layer, other = case.make(seed=1), case.make(seed=2)
    layer(case.input()), other(case.input(seed=9))
    other.load_state_dict(layer.state_dict(), strict=True)
    x = case.input(seed=5)
    assert torch.equal(layer.train(training)(x), other.train(training)(x))
    for key, value in layer.state_dict().items():
        assert torch.equal(value, other.state_dict()[key])


class Doubled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


def stand_in(layer: nn.Module, how: str) -> None:
    """Put something in the place of the parameter `weight`."""
    if how == "parametrized":
        parametrize.register_parametrization(layer, "weight", Doubled())
    elif how == "pruned":
        prune.random_unstructured(layer, "weight", amount=0.5)
    elif how == "an attribute":
        weight = layer.weight.detach()
        del layer.weight
        layer.weight = 2 * weight


@pytest.mark.parametrize("how", ["parametrized", "pruned", "an attribute"])
@pytest.mark.parametrize(
    "case", [c for c in CASES if c.twin and c.make().weight is not None], ids=lambda case: case.name
)
def test_what_stands_in_for_the_weight_is_used(case: Case, how: str) -> None:
    ours, twin = case.make(), case.make_twin()
    for layer in (ours, twin):
        torch.manual_seed(0)  # what is pruned is drawn
        stand_in(layer, how)
    assert "weight" not in dict(ours.named_parameters())
    x = case.input()
    torch.testing.assert_close(ours(x), case.activate(twin(x)), rtol=1e-5, atol=1e-5)


@every_case
@pytest.mark.parametrize("duplicate", ["deepcopy", "pickle", "save"])
def test_copies_are_equal_and_independent(case: Case, duplicate: str) -> None:
    layer = case.make()
    layer(case.input())
    if duplicate == "deepcopy":
        other = copy.deepcopy(layer)
    elif duplicate == "pickle":
        other = pickle.loads(pickle.dumps(layer))
    else:
        file = io.BytesIO()
        torch.save(layer, file)
        file.seek(0)
        other = torch.load(file, weights_only=False)
    assert repr(other) == repr(layer)
    before = {k: v.clone() for k, v in layer.state_dict().items()}
    x = case.input(seed=4) + 3
    y = other.eval().train()(x)
    for key, value in layer.state_dict().items():
        assert torch.equal(value, before[key])
    assert torch.equal(layer(x), y)


@every_twin
def test_repr_is_the_twins(case: Case) -> None:
    """And names the activation, which torch's layer has not."""
    expected = repr(case.make_twin())
    if case.activation:
        expected = f"{expected[:-1]}, activation={case.activation!r})"
    assert repr(case.make()) == expected


@every_twinless
def test_repr_names_the_layer_and_its_options(case: Case) -> None:
    layer = case.make()
    shown = repr(layer)
    assert shown.startswith(f"{type(layer).__name__}(")
    for name, value in {
        **case.options,
        **({"activation": case.activation} if case.activation else {}),
    }.items():
        assert f"{name}={value!r}" in shown


@every_twin
def test_is_an_instance_of_the_twins_class(case: Case) -> None:
    """User code asks isinstance(m, nn.BatchNorm2d) for weight decay, initialization and freezing."""
    assert isinstance(case.make(), case.base or type(case.make_twin()))


@every_case
@every_mode
def test_meta_device(case: Case, training: bool) -> None:
    layer = case.make(device="meta").train(training)
    y = layer(case.input().to("meta"))
    assert y.is_meta
    assert y.shape == case.shape
    real = layer.to_empty(device="cpu")
    real.load_state_dict(case.make().state_dict())
    assert torch.equal(real(case.input()), case.make().train(training)(case.input()))


@every_case
@every_mode
def test_empty_batch(case: Case, training: bool) -> None:
    """It passes through, moves no statistic, counts as no batch, and gives zero gradients."""
    layer = case.make().train(training)
    before = {k: v.clone() for k, v in layer.state_dict().items()}
    x = torch.empty(0, *case.shape[1:], requires_grad=True)
    y = layer(x)
    assert y.shape == x.shape
    y.sum().backward()
    assert x.grad is not None
    assert x.grad.shape == x.shape
    for parameter in layer.parameters():
        assert torch.equal(parameter.grad, torch.zeros_like(parameter))
    for key, value in layer.state_dict().items():
        assert torch.equal(value, before[key])


@every_case
@every_mode
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")  # of torch's RMS norm
def test_autocast(case: Case, training: bool, dtype: torch.dtype) -> None:
    """Under autocast, parameters in float32 and input in either dtype, as torch takes them.

    Without a twin: in the input's dtype, what float32 gives.
    """
    x = case.input(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = case.make().train(training)(x)
        expected = case.activate(case.make_twin().train(training)(x)) if case.twin else None
    if expected is None:
        expected = case.make().train(training)(x.float()).to(dtype)
    assert got.dtype == expected.dtype
    torch.testing.assert_close(got, expected, rtol=2e-2, atol=2e-2)


@every_case
def test_moves_between_dtypes(case: Case) -> None:
    layer = case.make().double()
    assert layer(case.input(torch.float64)).dtype == torch.float64
    assert layer.bfloat16()(case.input(torch.bfloat16)).dtype == torch.bfloat16
