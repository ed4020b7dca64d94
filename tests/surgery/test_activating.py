"""An activation reaches the norm at the end of the module that it is applied to, where nobody can tell."""

from __future__ import annotations

import copy
import pickle
from collections import OrderedDict
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from networks import ConvNorm, lived
from torch import Tensor, nn

import normkit as nk

Way = Callable[["Parts", Tensor], Tensor]
U = torch.finfo(torch.float64).eps
TOLERANCE = {"rtol": 1e3 * U, "atol": 1e3 * U}  # sums of 27 terms, two layers deep


def pair() -> list[nn.Module]:
    return [nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)]


class Block(nn.Module):
    """One with a norm that is activated in its own forward, and one at its end, perhaps with a sum."""

    def __init__(self, *, adds: bool = False) -> None:
        super().__init__()
        self.first, self.last, self.adds = ConvNorm(3), ConvNorm(3), adds
        self.norm = nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.last(F.relu(self.norm(x)))
        return y + x if self.adds else y


class Parts(nn.Module):
    """Modules that end in a norm, and a way to go through them."""

    def __init__(self, way: Way) -> None:
        super().__init__()
        self.body = nn.Sequential(*pair())
        self.deep = nn.ModuleList([nn.Sequential(nn.Identity(), nn.Sequential(ConvNorm(3)))])
        self.block, self.act = Block(), nn.SiLU(inplace=True)
        self.group = nn.Sequential(nn.Conv2d(3, 3, 1), nn.GroupNorm(1, 3))
        self.instance = nn.Sequential(nn.InstanceNorm2d(3, affine=True))
        self.listed = nn.Sequential(nn.Sequential(*pair()), self.act)
        self.longer = nn.Sequential(*pair(), nn.Identity())
        self.way = way

    def forward(self, x: Tensor) -> Tensor:
        return self.way(self, x)


def agrees(new: nn.Module, old: nn.Module) -> None:
    """Values, gradients and buffers are those before, in both modes."""
    for training in (True, False):
        results = []
        for model in (new, old):
            x = torch.randn(4, 3, 5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
            y = model.train(training)(x.requires_grad_() + 0)
            y.square().sum().backward()
            grads = [p.grad for p in model.parameters() if p.grad is not None]
            results.append([y, x.grad, *grads, *model.buffers()])
            model.zero_grad()
        scale = max(float(t.detach().abs().max()) for t in results[1])
        for a, b in zip(*results, strict=True):
            torch.testing.assert_close(a, b, rtol=1e4 * U, atol=1e3 * U * scale)


def accelerated(model: nn.Module) -> tuple[nn.Module, nn.Module, nk.surgery.outcome.Outcome]:
    """The model after acceleration, as it was before, and what was done."""
    torch.manual_seed(0)
    model = lived(model).double()
    old = copy.deepcopy(model)
    outcome = nk.accelerate(model)
    agrees(model, old)
    return model, old, outcome


@pytest.mark.parametrize(
    ("way", "norm", "done"),
    [
        (lambda m, x: F.relu(m.body(x)), "body.1", "BatchNorm2d with relu"),
        (lambda m, x: m.act(m.body(x)) * 2, "body.1", "BatchNorm2d with silu"),
        (lambda m, x: m.act(m.act(m.body(x))), "body.1", "BatchNorm2d with silu"),
        (lambda m, x: m.body(x).tanh_(), "body.1", "BatchNorm2d with tanh"),
        (lambda m, x: F.relu(m.deep[0](x)), "deep.0.1.0.bn", "BatchNorm2d with relu"),
        (lambda m, x: m.act(m.block(x)), "block.last.bn", "BatchNorm2d with silu"),
        (lambda m, x: F.relu(m.group(x)), "group.1", "GroupNorm with relu"),
        (lambda m, x: F.relu(m.instance(x)), "instance.0", "InstanceNorm2d with relu"),
        (lambda m, x: m.listed(x), "listed.0.1", "BatchNorm2d with silu"),
        (
            lambda m, x: F.relu(m.block(y := m.group[0](x)) + y),
            "block.last.bn",
            "BatchNorm2d with residual and relu",
        ),
        (lambda m, x: m.listed(y := m.group[0](x)) + y, "listed.0.1", "BatchNorm2d with silu"),
    ],
)
def test_every_way_of_writing_it(way: Way, norm: str, done: str) -> None:
    _, _, outcome = accelerated(Parts(way))
    assert outcome.done[norm] == done


def test_what_the_block_activates_by_itself_is_fused_too() -> None:
    _, _, outcome = accelerated(Parts(lambda m, x: m.act(m.block(x))))
    assert outcome.done["block.norm"] == "BatchNorm2d with relu"


def test_sum_and_activation_in_two_forwards() -> None:
    """As in residual networks whose blocks are lists: the sum in one, the activation in the list around it."""

    def resnet() -> nn.Module:
        return nn.Sequential(nn.Conv2d(3, 3, 1), nn.Sequential(Block(adds=True), nn.ReLU(inplace=True)))

    model, old, outcome = accelerated(resnet())
    assert outcome.done["1.0.last.bn"] == "BatchNorm2d with residual and relu"
    assert outcome.left == {}
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    torch.testing.assert_close(model[1][0](x), old[1][0](x), **TOLERANCE)


def test_a_module_computes_what_it_did_by_itself() -> None:
    """So hooks that come later, and others who call it, see what they saw."""
    model, old, outcome = accelerated(nn.Sequential(nn.Sequential(*pair()), nn.ReLU()))
    assert outcome.done == {"0.1": "BatchNorm2d with relu"}
    assert type(model[1]) is nn.ReLU
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    assert (old[0](x) < 0).any()
    torch.testing.assert_close(model[0](x), old[0](x), **TOLERANCE)
    written, old, _ = accelerated(Parts(lambda m, x: m.act(m.block(x))))
    torch.testing.assert_close(written.block(x), old.block(x), **TOLERANCE)


def test_a_list_goes_on_to_be_one() -> None:
    model, old, _ = accelerated(
        nn.Sequential(nn.Sequential(*pair()), nn.ReLU(), nn.Sequential(*pair()), nn.Tanh())
    )
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    for part in (slice(0, 1), slice(0, 2), slice(1, 4)):
        torch.testing.assert_close(model[part](x), old[part](x), **TOLERANCE)
    for one in (model, old):
        one[1] = nn.Tanh()  # which it takes as well
        one[3] = nn.Mish()  # which it does not
        one.append(nn.ReLU())
    agrees(model, old)
    for one in (model, old):
        del one[1]
    agrees(model, old)
    named = OrderedDict(a=nn.Sequential(*pair()), b=nn.ReLU())
    accelerated(nn.Sequential(named))


def test_hooks_that_come_later_see_what_they_would_have_seen() -> None:
    model, old, _ = accelerated(nn.Sequential(nn.Sequential(*pair()), nn.ReLU()))
    seen: list[tuple[Tensor, Tensor]] = []
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    for one in (model, old):
        one[1].register_forward_hook(lambda module, args, y: seen.append((args[0], y)))
        one(x)
    (a, b), (c, d) = seen
    torch.testing.assert_close(a, c, **TOLERANCE)
    torch.testing.assert_close(b, d, **TOLERANCE)


@pytest.mark.parametrize("hooked", ["0", "0.1", "1"])
def test_hooks_that_are_there_keep_it_where_it_is(hooked: str) -> None:
    model = lived(nn.Sequential(nn.Sequential(*pair()), nn.ReLU()))
    seen: list[Tensor] = []
    model.get_submodule(hooked).register_forward_hook(lambda module, args, y: seen.append(y.clone()))
    x = torch.randn(2, 3, 4, 4)
    model.eval()(x)
    assert "hooks" in nk.accelerate(model).left["0.1"]
    model(x)
    torch.testing.assert_close(seen[0], seen[1])


class Sideways(nn.Module):
    """One module makes, another one activates."""

    def __init__(self) -> None:
        super().__init__()
        self.make, self.act = (
            nn.Sequential(*pair()),
            nn.Sequential(nn.ReLU(), nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.make(x))


class More(nn.Module):
    """One whose forward does more than the norm, for those who call it by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = ConvNorm(3)

    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        return self.inner(x) if scale == 1.0 else self.inner(x) * scale


def test_what_is_left() -> None:
    _, _, outcome = accelerated(Sideways())
    assert outcome.left == {"make.1": "its activation runs in the forward of another module, so not fused"}
    _, _, outcome = accelerated(nn.Sequential(More(), nn.ReLU()))
    assert outcome.left["0.inner.bn"].endswith(
        "not fused: its forward may do other things where scale is given"
    )
    adaptive = nn.Sequential(nn.Sequential(nk.VirtualBatchNorm2d(3)), nn.ReLU())
    with torch.no_grad(), nk.reference_batch(adaptive):
        adaptive(torch.randn(4, 3, 5, 5))
    assert nk.accelerate(adaptive).done == {}


@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["copy", "pickle"]
)
def test_copies(duplicate: Callable[[nn.Module], nn.Module]) -> None:
    """Of lists, and of forwards that were written twice: for the sum and for the activation above."""
    model, old, outcome = accelerated(
        nn.Sequential(nn.Sequential(Block(adds=True), nn.ReLU()), Block(), nn.ReLU())
    )
    assert sum(what.endswith("relu") for what in outcome.done.values()) == 4
    other = duplicate(model)
    agrees(other, old)
    assert list(other.state_dict()) == list(old.state_dict())
    assert isinstance(other[1], Block)
    assert nk.accelerate(model).done == nk.accelerate(other).done == {}


def test_compiles_and_exports() -> None:
    model, old, _ = accelerated(nn.Sequential(nn.Sequential(Block(adds=True), nn.ReLU()), Block(), nn.ReLU()))
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    y = old.eval()(x)
    model.eval()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), y, **TOLERANCE)
    torch.testing.assert_close(torch.export.export(model, (x,)).module()(x), y, **TOLERANCE)


def test_folding_comes_after() -> None:
    model, old, _ = accelerated(nn.Sequential(nn.Sequential(*pair()), nn.ReLU(), Block(), nn.Tanh()))
    outcome = nk.fold(model.eval())
    assert outcome.done == {"0.1": "folded into 0.0", "2.last.bn": "folded into 2.last.conv"}
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    torch.testing.assert_close(model(x), old.eval()(x), **TOLERANCE)
    torch.testing.assert_close(model[0](x), old[0](x), **TOLERANCE)


@pytest.mark.parametrize("batches", [None, 2])
def test_converting_comes_after(batches: int | None) -> None:
    """Norms that take the activation become others; the rest is told."""
    x = torch.randn(8, 3, 4, 4, dtype=torch.float64)
    given = None if batches is None else [x] * batches
    for to, done in (("group", 1), ("ghost", 1), ("rms", 0), ("frn", 0)):
        model, _, _ = accelerated(nn.Sequential(nn.Sequential(*pair()), nn.ReLU()))
        options = {"ghost_size": 4} if to == "ghost" else {"num_groups": 1} if to == "group" else {}
        outcome = nk.convert(model, to, given, **options)
        assert len(outcome.done) == done
        if not done:
            assert outcome.left == {
                "0.1": "it is called with an activation, which the new norm does not take: convert before "
                "nk.accelerate, which fuses activations"
            }
        assert (model(x) >= 0).all()


@pytest.mark.parametrize(
    "layer",
    [nk.BatchNorm2d(3, activation="relu"), nk.GhostBatchNorm2d(3, 2), nk.BatchRenorm2d(3), nk.SyncBatchNorm(3),
     nk.AdaptiveBatchNorm2d(3), nk.GroupNorm(1, 3), nk.InstanceNorm2d(3, activation="relu")],
)  # fmt: skip
@pytest.mark.parametrize("training", [True, False])
def test_a_layer_takes_an_activation(layer: nn.Module, training: bool) -> None:
    """In place of its own."""
    layer, plain = layer.double().train(training), copy.deepcopy(layer).double().train(training)
    plain.activation = None
    x = torch.randn(4, 3, 5, 5, dtype=torch.float64)
    torch.testing.assert_close(layer(x, activation="tanh"), plain(x).tanh(), rtol=8 * U, atol=8 * U)
