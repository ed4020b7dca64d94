"""What surgery is given and cannot take: which batch, which dtype, which function, and what to do instead."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import normkit as nk
from normkit.errors import InputError


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).eval()


def images(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    return torch.randn(4, 3, 8, 8).to(dtype), torch.zeros(4)


VERBS = {
    "recalibrate": nk.recalibrate,
    "adapt": nk.adapt,
    "adapt by entropy": lambda model, batches, **k: nk.adapt(model, batches, minimize_entropy=True, **k),
    "convert": lambda model, batches, **k: nk.convert(model, "group", batches, **k),
}
every_verb = pytest.mark.parametrize("verb", VERBS)


def assert_untouched(model: nn.Module, before: dict[str, Tensor]) -> None:
    assert type(model[1]) is nn.BatchNorm2d
    torch.testing.assert_close(dict(model.state_dict()), before, rtol=0, atol=0)


@every_verb
def test_a_batch_of_another_dtype(verb: str) -> None:
    """float32 labels behind it are no input."""
    model = network()
    before = copy.deepcopy(dict(model.state_dict()))
    message = (
        r"^inputs must have the model's dtype, float32, but batch 2 has float64: convert one with .*Error"
    )
    with pytest.raises(InputError, match=message) as raised:
        VERBS[verb](model, [images(), images(torch.float64)])
    assert isinstance(raised.value.__cause__, RuntimeError)
    assert_untouched(model, before)


@every_verb
def test_other_failures_stay_what_they_are(verb: str) -> None:
    """Of another shape in another dtype that the model's first layer takes."""
    model = network()
    model.insert(0, Casting())
    with pytest.raises(RuntimeError, match="channels"):
        VERBS[verb](model, [(torch.randn(4, 2, 8, 8).double(), None)])
    nk.recalibrate(model, [images(torch.float64)])


class Casting(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.float()


@every_verb
def test_forward_is_of_the_batch_alone(verb: str) -> None:
    model = network()
    before = copy.deepcopy(dict(model.state_dict()))
    with pytest.raises(
        InputError, match=r"^forward must be a function of one batch, got one of \(m, batch\): "
    ):
        VERBS[verb](model, [images()], forward=lambda m, batch: m(batch[0]))
    assert_untouched(model, before)


@pytest.mark.parametrize("verb", [nk.accelerate, nk.fold])
def test_examples(verb: object) -> None:
    model = network()
    before = copy.deepcopy(dict(model.state_dict()))
    with pytest.raises(InputError, match=r"^example must hold tensors, got a NumPy array: torch.from_numpy"):
        verb(model, example=np.zeros((2, 3, 8, 8), np.float32))
    with pytest.raises(InputError, match="the model's dtype, float32, but the example has float64: convert"):
        verb(model, example=torch.zeros(2, 3, 8, 8, dtype=torch.float64))
    assert_untouched(model, before)


def test_a_second_time_is_told() -> None:
    model = network()
    nk.accelerate(model)
    assert repr(nk.accelerate(model)) == "accelerate: 0 changed, 0 left: its norms are normkit's already"


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda net: nk.adapt(net, [images()], prior="16"), "prior counts samples .*, got '16'"),
        (
            lambda net: nk.adapt(net, [images()], minimize_entropy=True, lr="1"),
            "lr must be positive, got '1'",
        ),
        (lambda net: nk.recalibrate(net, [images()], tolerance="1"), "tolerance must be positive.*, got '1'"),
        (lambda net: nk.param_groups(net, "1e-4"), "weight_decay must be 0 or more and finite, got '1e-4'"),
    ],
)
def test_numbers_in_quotes_are_shown_as_such(call: Callable[[nn.Module], object], told: str) -> None:
    model = network()
    before = copy.deepcopy(dict(model.state_dict()))
    with pytest.raises(InputError, match=f"^{told}$"):
        call(model)
    assert_untouched(model, before)


class Handwritten(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(8)), 1e-6

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps) * self.weight


def test_norms_written_by_hand_are_named() -> None:
    model = nn.Sequential(nn.Linear(6, 8), Handwritten())
    for _ in range(2):
        outcome = nk.convert(model, "layer", [torch.randn(5, 6)])
        assert outcome.left == {
            "1": "Handwritten has the parts of a norm, and inherits none: put torch's or normkit's in its place"
        }
        nk.accelerate(model)


@pytest.mark.parametrize(
    ("kind", "name"),
    [(nk.GroupNorm, "group"), (nn.BatchNorm2d, "batch"), (nk.FilterResponseNorm, "frn"),
     (nk.VirtualBatchNorm3d, "virtual"), (nk.BatchInstanceNorm1d, "batch_instance")],
)  # fmt: skip
def test_a_class_is_no_name(kind: type[nn.Module], name: str) -> None:
    with pytest.raises(InputError, match=f"got the class {kind.__name__}: pass '{name}'$"):
        nk.convert(network(), kind)
    with pytest.raises(InputError, match="got the class Linear: choose from batch, "):
        nk.convert(network(), nn.Linear)


@pytest.mark.parametrize(("prior", "refused"), [(0, True), (1, False), (16, False)])
def test_constant_data_pass_where_the_prior_holds(prior: float, refused: bool) -> None:
    """As the page says: it is the blend that may not stop."""
    model = network()
    black = [torch.zeros(4, 3, 16, 16)] * 3
    if refused:
        with pytest.raises(InputError, match="data must vary"):
            nk.adapt(model, black, prior)
        return
    old = model[1].running_var.clone()
    nk.adapt(model, black, prior)
    # Of constant data the variance is 0 but for float32's rounding of the mean, some 1e-16 here.
    torch.testing.assert_close(model[1].running_var, old * prior / (12 + prior), rtol=1e-6, atol=1e-12)
