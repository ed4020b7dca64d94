"""`synchronize` and back leave everything of a model as it is but where its batch norms take statistics from."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn

import normkit as nk
from normkit.errors import InputError


class Loud(nn.BatchNorm2d):
    """A user's subclass, which leaves normalizing to its base."""

    loudness = 2.0

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) * self.loudness


class Own(nn.BatchNorm1d):
    """One that does not."""

    def forward(self, input: Tensor) -> Tensor:
        return nn.functional.batch_norm(input, self.running_mean, self.running_var, training=self.training)


def model() -> nn.Sequential:
    """Every kind of batch norm, one of them in two places; one frozen, one half as precise, one with a hook."""
    shared = nn.BatchNorm2d(4)
    norms = [
        nn.BatchNorm2d(4, momentum=None),
        Loud(4),
        nk.BatchNorm2d(4, activation="relu"),
        nn.SyncBatchNorm(4),
    ]
    net = nn.Sequential(nn.Conv2d(3, 4, 1), shared, *norms, nn.ReLU(), shared)
    norms[0].eval().requires_grad_(requires_grad=False)
    norms[1].register_forward_hook(lambda module, args, y: y + 1)
    return net


def batch() -> Tensor:
    return torch.randn(8, 3, 5, 5, generator=torch.Generator().manual_seed(0))


def test_everything_else_stays() -> None:
    before, net = copy.deepcopy(model()), model()
    net.load_state_dict(before.state_dict())
    modules, parameters, training = (
        dict(net.named_modules()),
        dict(net.named_parameters()),
        [m.training for m in net],
    )
    keys = list(net.state_dict())

    assert nk.synchronize(net) is net
    assert dict(net.named_modules()) == modules
    assert net[1] is net[7]
    assert all(
        a is b for a, b in zip(dict(net.named_parameters()).values(), parameters.values(), strict=True)
    )
    assert [p.requires_grad for p in net.parameters()] == [p.requires_grad for p in before.parameters()]
    assert [m.training for m in net] == training
    assert list(net.state_dict()) == keys
    assert net[4].activation == "relu"
    assert isinstance(net[3], Loud)
    for index in (1, 2, 3, 4):
        assert isinstance(net[index], nk.BatchNorm2d)
        assert net[index].process_group == "world"
    assert isinstance(net[5], nk.SyncBatchNorm)
    assert all("process_group='world'" in repr(net[i]) for i in (1, 2, 3, 4))
    torch.testing.assert_close(net(batch()), before(batch()), rtol=1e-5, atol=1e-5)


def test_back() -> None:
    net, local = nk.synchronize(model()), model()
    local.load_state_dict(net.state_dict())
    assert nk.desynchronize(net) is net
    assert all(net[i].process_group is None for i in range(1, 6))
    torch.testing.assert_close(net(batch()), local(batch()), rtol=1e-5, atol=1e-5)


def test_back_leaves_torchs_local_layers_alone() -> None:
    net = nk.desynchronize(model())
    assert type(net[1]) is nn.BatchNorm2d
    assert type(net[5]) is nk.SyncBatchNorm


def test_the_model_is_a_layer() -> None:
    layer = nn.BatchNorm1d(3)
    assert nk.synchronize(layer) is layer
    assert type(layer) is nk.BatchNorm1d


@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["copy", "pickle"]
)
def test_a_joined_subclass_can_be_copied(duplicate: object) -> None:
    layer = nk.synchronize(Loud(4))
    layer.loudness = 3.0
    other = duplicate(layer)
    assert type(other) is type(layer)
    assert type(other).__name__ == "Loud"
    x = torch.randn(2, 4, 3, 3)
    assert torch.equal(other(x), layer(x))


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (Own(3), r"layer '1' must normalize by super\(\)\.forward\(\), but Own"),
        (
            nn.LazyBatchNorm1d(),
            r"layer '1' must know its channels, but is a LazyBatchNorm1d: run a batch first",
        ),
        (type("Mine", (nn.SyncBatchNorm,), {})(3), r"layer '1' must normalize"),
    ],
)
def test_refused_layers_leave_the_model_as_it_was(layer: nn.Module, message: str) -> None:
    net = nn.Sequential(nn.BatchNorm1d(3), layer)
    with pytest.raises(InputError, match=message):
        nk.synchronize(net)
    assert type(net[0]) is nn.BatchNorm1d


def test_wrong_group() -> None:
    net = nn.Sequential(nn.BatchNorm1d(3))
    with pytest.raises(TypeError, match=r"ProcessGroup, 'world' or None, got 'wrold'"):
        nk.synchronize(net, "wrold")
    assert type(net[0]) is nn.BatchNorm1d
    with pytest.raises(TypeError, match="ProcessGroup"):
        nk.BatchNorm2d(3, process_group=1)


def test_relatives_of_batch_norm_too() -> None:
    """By their names in the model, as far down as an LSTM's."""
    lstm = nk.BatchNormLSTM(4, 3, max_length=2)
    net = nn.Sequential(nk.GhostBatchNorm1d(3, 2), nk.SwitchNorm1d(3), nk.BatchInstanceNorm1d(3), lstm)
    layers = [*net[:3], lstm.cell.norm_ih, lstm.cell.norm_hh, lstm.cell.norm_c]
    nk.synchronize(net)
    assert [layer.process_group for layer in layers] == ["world"] * 6
    assert [layer.identity.title for layer in layers][2:4] == ["2", "3.cell.norm_ih"]
    assert "process_group='world'" in repr(net[1])
    copied = pickle.loads(pickle.dumps(net))
    assert copied[1].process_group == "world"
    nk.desynchronize(net)
    assert [layer.process_group for layer in layers] == [None] * 6
