"""What follows a norm is fused where nobody can tell, in every form of writing it, and stays where somebody could."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from networks import lived
from torch import Tensor, nn

import normkit as nk

Forward = Callable[["Parts", Tensor], object]


class Parts(nn.Module):
    """A convolution, two norms, an activation, and a way to go through them."""

    def __init__(self, way: Forward) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.norm = nn.BatchNorm2d(3)
        self.other = nn.BatchNorm2d(3)
        self.group = nn.GroupNorm(1, 3)
        self.act = nn.ReLU()
        self.way = way

    def forward(self, x: Tensor) -> object:
        return self.way(self, x)


def accelerated(way: Forward) -> tuple[nn.Module, object]:
    """The model after acceleration, compared on another input than the example in both modes; and the outcome."""
    torch.manual_seed(0)
    model = lived(Parts(way)).double()
    old = copy.deepcopy(model)
    x, example = torch.randn(2, 4, 3, 5, 5, dtype=torch.float64)
    outcome = nk.accelerate(model, example)
    for training in (True, False):
        torch.testing.assert_close(model.train(training)(x), old.train(training)(x))
    return model, outcome


@pytest.mark.parametrize(
    ("way", "done"),
    [
        (lambda m, x: F.relu(m.norm(x)), "relu"),
        (lambda m, x: F.relu_(m.norm(x)), "relu"),
        (lambda m, x: torch.relu(m.norm(x)), "relu"),
        (lambda m, x: m.norm(x).relu(), "relu"),
        (lambda m, x: m.norm(x).relu_(), "relu"),
        (lambda m, x: F.leaky_relu(m.norm(x)), "leaky_relu"),
        (lambda m, x: F.silu(m.norm(x), inplace=True), "silu"),
        (lambda m, x: F.gelu(m.norm(x)), "gelu"),
        (lambda m, x: F.elu(m.norm(x)), "elu"),
        (lambda m, x: m.norm(x).sigmoid(), "sigmoid"),
        (lambda m, x: torch.tanh(m.norm(x)), "tanh"),
        (lambda m, x: m.act(m.norm(x)), "relu"),
        (lambda m, x: m.act(m.act(m.norm(x)) - 1), "relu"),
        (lambda m, x: m.norm(x) + x, "residual"),
        (lambda m, x: x + m.norm(x), "residual"),
        (lambda m, x: torch.add(x, m.norm(x)), "residual"),
        (lambda m, x: m.norm(x).add(x).relu(), "residual and relu"),
        (lambda m, x: m.norm(x).add_(x).tanh(), "residual and tanh"),
        (lambda m, x: m.act(m.norm(m.conv(x)) + m.conv(x).sin()), None),
    ],
)  # fmt: skip
def test_every_way_of_writing_it(way: Forward, done: str | None) -> None:
    _, outcome = accelerated(way)
    assert outcome.done["norm"] == (
        f"BatchNorm2d with {done}" if done else "BatchNorm2d with residual and relu"
    )


def test_of_two_norms_the_later_one_takes_the_sum() -> None:
    _, outcome = accelerated(lambda m, x: torch.relu(m.norm(x) + m.other(m.conv(x))))
    assert outcome.done["norm"] == "BatchNorm2d"
    assert outcome.done["other"] == "BatchNorm2d with residual and relu"
    assert outcome.left == {}


def test_group_norm_takes_an_activation_and_no_residual() -> None:
    assert accelerated(lambda m, x: torch.tanh(m.group(x)))[1].done["group"] == "GroupNorm with tanh"
    assert accelerated(lambda m, x: m.group(x) + x)[1].left == {"group": "only batch norm takes a residual"}


def both(y: Tensor) -> tuple[Tensor, Tensor]:
    return torch.relu(y), y


def twice(m: nn.Module, x: Tensor) -> Tensor:
    return torch.relu(m.norm(x)) + m.norm(x * 2)


def over_the_residual(m: nn.Module, x: Tensor) -> Tensor:
    shortcut = m.conv(x)
    both = shortcut
    both += m.norm(x)
    return shortcut + both


def input_changes(m: nn.Module, x: Tensor) -> Tensor:
    y = m.conv(x).view(x.shape)
    normed = m.norm(y)
    y.add_(1)
    return normed + torch.cos(y)


@pytest.mark.parametrize(
    ("way", "why"),
    [
        (lambda m, x: both(m.norm(x)), None),
        (lambda m, x: (y := m.norm(x), F.relu_(y))[0], None),
        (twice, "called 2 times"),
        (lambda m, x: m.norm(x) + x.mean((2, 3), keepdim=True), "another shape or dtype"),
        (lambda m, x: m.norm(x) + x.float(), "another shape or dtype"),
        (over_the_residual, "changed in place by the addition"),
        (input_changes, "may change before its residual is there"),
        (lambda m, x: F.leaky_relu(m.norm(x), 0.2), None),
        (lambda m, x: F.gelu(m.norm(x), approximate="tanh"), None),
        (lambda m, x: torch.add(m.norm(x), x, alpha=2), None),
        (lambda m, x: (y := m.norm(x)) + y, None),
        (lambda m, x: F.dropout(F.relu(m.norm(x)), 0.0, m.training), "other things in training"),
    ],
)
def test_what_somebody_could_tell_stays(way: Forward, why: str | None) -> None:
    model, outcome = accelerated(way)
    assert outcome.done["norm"] == "BatchNorm2d"
    assert model.norm.activation is None
    assert why is None or why in outcome.left["norm"]


def changes_the_residual(m: nn.Module, x: Tensor) -> Tensor:
    shortcut = m.conv(x)
    y = m.norm(x) + shortcut
    shortcut.mul_(2)
    return torch.relu(y) + shortcut


def changes_the_input(m: nn.Module, x: Tensor) -> Tensor:
    x = m.conv(x)
    y = m.norm(x)
    x *= 2
    return torch.relu(y) + x


@pytest.mark.parametrize("way", [changes_the_residual, changes_the_input])
def test_what_changes_in_between_changes_afterwards(way: Forward) -> None:
    assert " with " in accelerated(way)[1].done["norm"]


def test_constants_and_counters_of_a_forward() -> None:
    def way(m: nn.Module, x: Tensor) -> Tensor:
        m.calls = getattr(m, "calls", 0) + 1
        return torch.relu(m.norm(x)) * torch.tensor(2.0) + m.norm.eps

    model, outcome = accelerated(way)
    assert outcome.left["norm"] == "not fused with what follows: its forward makes tensors of constants"
    assert model.calls == 4  # two comparisons with an example, two of this test
    assert not hasattr(model, "_tensor_constant0")


@pytest.mark.parametrize("hooked", ["norm", "act"])
def test_hooks_go_on_seeing_what_they_saw(hooked: str) -> None:
    model = nn.Sequential()
    model.norm, model.act = nn.BatchNorm1d(3), nn.ReLU()
    seen: list[Tensor] = []
    model.get_submodule(hooked).register_forward_hook(lambda module, args, y: seen.append(y.clone()))
    x = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
    model(x)
    outcome = nk.accelerate(model, x)
    model(x)
    assert len(seen) == 2  # surgery itself is not seen
    torch.testing.assert_close(seen[0], seen[1])
    assert "see what" in outcome.left["norm"]


def test_one_activation_at_several_places_of_a_list() -> None:
    relu = nn.ReLU()
    torch.manual_seed(0)
    model = lived(nn.Sequential(nn.Conv2d(3, 3, 1), relu, nn.BatchNorm2d(3), relu, nn.Conv2d(3, 3, 1), relu))
    old, x = copy.deepcopy(model), torch.randn(2, 3, 4, 4)
    assert nk.accelerate(model, x).done == {"2": "BatchNorm2d with relu"}
    assert [type(m) for m in model] == [nn.Conv2d, nn.ReLU, nk.BatchNorm2d, nn.Identity, nn.Conv2d, nn.ReLU]
    # Float32 after two convolutions of three terms.
    torch.testing.assert_close(model(x), old(x), rtol=1e-5, atol=1e-5)


def test_a_subclass_that_does_more_is_not_fused() -> None:
    class Loud(nn.BatchNorm1d):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input) * -2

    outcome = nk.accelerate(model := nn.Sequential(Loud(3), nn.ReLU()))
    assert isinstance(model[0], nk.BatchNorm1d)
    assert outcome.left == {"0": "Loud does more in its forward than normalize"}
