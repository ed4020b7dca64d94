"""Frozen batch norms normalize by their running statistics and move nothing, and everything else of them stays."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn

import normkit as nk
from normkit.errors import InputError

SHAPES = {"1d": (6, 4), "2d": (6, 4, 3, 3), "3d": (6, 4, 2, 2, 2)}
LAYERS = {
    f"{origin}-{size}": (getattr(module, f"BatchNorm{size}"), SHAPES[size])
    for origin, module in (("torch", nn), ("ours", nk))
    for size in SHAPES
}
LAYERS |= {
    "sync": (nn.SyncBatchNorm, SHAPES["2d"]),
    "ghost": (lambda c: nk.GhostBatchNorm2d(c, 2), SHAPES["2d"]),
    "renorm": (nk.BatchRenorm2d, SHAPES["2d"]),
    "switch": (nk.SwitchNorm2d, SHAPES["2d"]),
    "batch_instance": (nk.BatchInstanceNorm2d, SHAPES["2d"]),
    "instance": (lambda c: nn.InstanceNorm2d(c, affine=True, track_running_stats=True), SHAPES["2d"]),
}
every_layer = pytest.mark.parametrize("name", LAYERS)


def trained(name: str) -> tuple[nn.Module, Tensor]:
    """A layer that has seen a batch, and another batch."""
    make, shape = LAYERS[name]
    torch.manual_seed(0)
    layer = make(4)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.uniform_(0.5, 1.5)
    layer(torch.randn(shape) * 2 + 1)
    return layer, torch.randn(shape) - 3


def bits(layer: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in layer.state_dict().items()}


def assert_same(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=0)


@every_layer
def test_training_is_evaluation(name: str) -> None:
    layer, x = trained(name)
    kind, before, momentum = type(layer), bits(layer), layer.momentum
    expected = copy.deepcopy(layer).eval()(x)
    assert nk.freeze(layer) is layer
    for mode in (True, False, True):
        layer.train(mode)
        torch.testing.assert_close(layer(x), expected, rtol=0, atol=0)
    layer.training = True  # as tools do that pass train() by
    torch.testing.assert_close(layer(x), expected, rtol=0, atol=0)
    assert isinstance(layer, kind)
    assert type(layer).__name__ == kind.__name__
    assert layer.momentum == momentum
    assert_same(bits(layer), before)
    assert "frozen=True" in repr(layer)


@every_layer
@pytest.mark.parametrize("mode", [True, False])
def test_back(name: str, mode: bool) -> None:
    layer, x = trained(name)
    never = copy.deepcopy(layer).train(mode)
    nk.freeze(nk.freeze(layer, affine=False)).train(not mode).train(mode)
    assert nk.unfreeze(layer) is layer
    assert type(layer) is type(never)
    assert (layer.training, repr(layer)) == (mode, repr(never))
    assert [p.requires_grad for p in layer.parameters()] == [p.requires_grad for p in never.parameters()]
    torch.testing.assert_close(layer(x), never(x), rtol=0, atol=0)
    assert_same(bits(layer), bits(never))


@every_layer
@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))], ids=["copy", "pickle"]
)
def test_copies_are_frozen_and_thaw(name: str, duplicate: object) -> None:
    layer, x = trained(name)
    kind = type(layer)
    other = duplicate(nk.freeze(layer)).train()
    torch.testing.assert_close(other(x), layer.train()(x), rtol=0, atol=0)
    assert type(nk.unfreeze(other)) is kind
    assert all(p.requires_grad for p in other.parameters())


def network() -> nn.Sequential:
    shared = nn.BatchNorm1d(4)
    net = nn.Sequential(nn.Linear(4, 4), shared, nn.ReLU(), nk.BatchNorm1d(4), nn.Linear(4, 4), shared)
    net[3].weight.requires_grad_(False)
    return net


@pytest.mark.parametrize("affine", [True, False])
def test_what_learns(affine: bool) -> None:
    """An optimizer with weight decay and momentum moves all else, and what `affine` says of the norms."""
    torch.manual_seed(1)
    net = network().train()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    net(torch.randn(8, 4)).square().sum().backward()  # gradients that are there when it is frozen
    nk.freeze(net, affine=affine).train()
    before = bits(net)
    for _ in range(2):
        optimizer.step()
        optimizer.zero_grad()
        net(torch.randn(8, 4)).square().sum().backward()
    moved = {key for key, value in bits(net).items() if not torch.equal(value, before[key])}
    linear = {"0.weight", "0.bias", "4.weight", "4.bias"}
    norms = {"1.weight", "1.bias", "3.bias", "5.weight", "5.bias"}
    assert moved == (linear if affine else linear | norms)
    nk.unfreeze(net)
    assert {name for name, p in net.named_parameters() if not p.requires_grad} == {"3.weight"}


def test_a_user_subclass_keeps_its_forward() -> None:
    class Doubled(nn.BatchNorm1d):
        def forward(self, input: Tensor) -> Tensor:
            return 2 * super().forward(input)

    layer = nk.freeze(Doubled(3, eps=0.0))
    x = torch.randn(4, 3)
    torch.testing.assert_close(layer.train()(x), 2 * x, rtol=0, atol=0)
    assert type(nk.unfreeze(layer)) is Doubled


@pytest.mark.parametrize("name", ["torch-1d", "ours-1d"])
def test_compiled_and_exported(name: str) -> None:
    layer, x = trained(name)
    before = bits(nk.freeze(layer).train())
    expected = layer(x)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    exported = torch.export.export(layer, (x,)).module()
    for run in (compiled, exported):
        torch.testing.assert_close(run(x), expected)
    assert_same(bits(layer), before)


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (nn.BatchNorm1d(3, track_running_stats=False), "layer '1' must have running statistics to be frozen"),
        (nk.BatchNorm1d(3, track_running_stats=False), "layer '1' must have running statistics to be frozen"),
        (nn.LazyBatchNorm1d(), "layer '1' must know its channels"),
    ],
)
def test_refused_layers_leave_the_model_as_it_was(layer: nn.Module, message: str) -> None:
    net = nn.Sequential(nn.BatchNorm1d(3), layer)
    with pytest.raises(InputError, match=message):
        nk.freeze(net)
    assert type(net[0]) is nn.BatchNorm1d
    assert net[0].weight.requires_grad


def test_norms_without_running_statistics_stay() -> None:
    net = nn.Sequential(nn.LayerNorm(3), nn.InstanceNorm1d(3, affine=True), nn.GroupNorm(1, 3))
    before = [type(layer) for layer in net]
    assert [type(layer) for layer in nk.freeze(net)] == before
    assert all(p.requires_grad for p in net.parameters())


def test_a_frozen_layer_is_not_synchronized() -> None:
    net = nk.freeze(nn.Sequential(nn.BatchNorm1d(3)))
    with pytest.raises(InputError, match="layer '0' must train, but is frozen: unfreeze"):
        nk.synchronize(net)
    assert nk.synchronize(nk.unfreeze(net))[0].process_group == "world"
