"""A residual reaches the norm at the end of the module that it is added to, where nobody can tell."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from networks import ConvNorm, lived
from torch import Tensor, nn

import normkit as nk

Forward = Callable[["Parts", Tensor], object]


class Twice(nn.Module):
    """A convolution and a norm, which its own forward runs as it likes."""

    def __init__(self, way: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.inner = ConvNorm(3)
        self.way = way

    def forward(self, x: Tensor) -> Tensor:
        return self.way(self, x)


class Parts(nn.Module):
    """Modules that end in a norm, and a way to go through them."""

    def __init__(self, way: Forward, inner: Callable[[nn.Module, Tensor], Tensor] | None = None) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))
        self.blocks = nn.ModuleList([nn.Sequential(ConvNorm(3))])
        self.twice = Twice(inner or (lambda m, x: m.inner(x)))
        self.longer = nn.Sequential(ConvNorm(3), nn.Identity())
        self.conv, self.skip = nn.Conv2d(3, 3, 3, padding=1), nn.Identity()
        self.way = way

    def forward(self, x: Tensor) -> object:
        return self.way(self, x)


def accelerated(
    way: Forward, inner: Callable[[nn.Module, Tensor], Tensor] | None = None
) -> tuple[nn.Module, nk.surgery.outcome.Outcome]:
    """The model after acceleration without an example, compared in both modes, gradients included."""
    torch.manual_seed(0)
    model = lived(Parts(way, inner)).double()
    old = copy.deepcopy(model)
    outcome = nk.accelerate(model)
    for training in (True, False):
        inputs = [
            torch.randn(4, 3, 5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
            for _ in "ab"
        ]
        results = []
        for one, x in zip((model, old), inputs, strict=True):
            x.requires_grad_()
            y = one.train(training)(x + 0)
            y.square().sum().backward()
            results.append((y, x.grad))
        torch.testing.assert_close(results[0], results[1])
    for (name, p), (_, q) in zip(model.named_parameters(), old.named_parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, msg=lambda text, name=name: f"{name}: {text}")
    return model, outcome


@pytest.mark.parametrize(
    ("way", "norm"),
    [
        (lambda m, x: x + m.body(x.clone()), None),  # clone: of another shape, as far as anybody knows
        (lambda m, x: (y := m.conv(x)) + m.body(y), "body.2"),
        (lambda m, x: m.body(y := m.conv(x)) + y, "body.2"),  # of which ReLU changes y first in both
        (lambda m, x: m.body(y := m.conv(x)) + m.skip(y), "body.2"),
        (lambda m, x: torch.add(y := m.conv(x), m.blocks[0](y)), "blocks.0.0.bn"),
        (lambda m, x: m.twice(y := m.conv(x)).add_(y), "twice.inner.bn"),
        (lambda m, x: (y := m.conv(x)) + m.body(m.body[2](y)), None),  # called twice
    ],
)
def test_every_way_of_writing_it(way: Forward, norm: str | None) -> None:
    _, outcome = accelerated(way)
    with_residual = [name for name, what in outcome.done.items() if what.endswith("with residual")]
    assert with_residual == ([] if norm is None else [norm])


@pytest.mark.parametrize(
    ("way", "inner", "why"),
    [
        (lambda m, x: m.twice(m.conv(x)) + m.conv(x), None, "called 2 times|made after it"),
        (lambda m, x: m.twice(y := m.conv(x)) + m.skip(m.conv.weight.sum() + y), None, "not known"),
        (lambda m, x: m.body(y := m.conv(x)) + m.longer[0].conv(y), None, "made after it"),
        (
            lambda m, x: m.twice(y := m.conv(x)) + y,
            lambda m, x: m.inner.bn(m.inner.conv(x)),
            "does more than return what it gives",
        ),
        (
            lambda m, x: m.twice(y := m.conv(x)) + y,
            lambda m, x: m.inner(x) if m.training else m.inner(x.relu()),
            "other things in training",
        ),
    ],
)
def test_what_is_left(way: Forward, inner: Callable[[nn.Module, Tensor], Tensor] | None, why: str) -> None:
    _, outcome = accelerated(way, inner)
    assert not any(" with " in what for what in outcome.done.values())
    assert any(part in reason for reason in outcome.left.values() for part in why.split("|"))


@pytest.mark.parametrize("hooked", ["body", "body.2"])
def test_hooks_go_on_seeing_what_they_saw(hooked: str) -> None:
    torch.manual_seed(0)
    model = lived(Parts(lambda m, x: (y := m.conv(x)) + m.body(y))).eval()
    seen: list[Tensor] = []
    model.get_submodule(hooked).register_forward_hook(lambda module, args, y: seen.append(y.clone()))
    x = torch.randn(2, 3, 5, 5)
    model(x)
    assert "hooks" in nk.accelerate(model, x).left["body.2"]
    model(x)
    torch.testing.assert_close(seen[0], seen[1])


def test_folding_comes_after() -> None:
    model, outcome = accelerated(lambda m, x: (y := m.conv(x)) + m.body(y))
    x = torch.randn(2, 3, 5, 5, dtype=torch.float64)
    y = model.eval()(x.clone())
    folded = nk.fold(model)
    assert folded.done == {"body.2": "folded into body.1"}
    torch.testing.assert_close(model(x.clone()), y)
    assert nk.accelerate(model).done == {}
    assert outcome.done["body.2"] == "BatchNorm2d with residual"
