"""Where recalibrating raises, the model is as it was, to the bit; batches of every usual structure are understood."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence

import normkit as nk
from normkit.errors import InputError

X = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """A norm, a module that takes note of what is in training mode, and a buffer that forward replaces."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.dropout = nn.BatchNorm1d(4), nn.Dropout()
        self.register_buffer("calls", torch.zeros(()))
        self.fails = False
        self.modes: list[tuple[bool, bool, bool]] = []

    def forward(self, image: Tensor, scale: float = 1.0) -> Tensor:
        self.calls = self.calls + 1
        self.modes.append((self.training, self.norm.training, self.dropout.training))
        y = self.dropout(self.norm(image * scale))
        if self.fails:
            raise RuntimeError("out of memory")
        return y


def breaking() -> Iterator[Tensor]:
    yield X
    raise OSError("disk")


def failing(net: Net) -> Iterator[Tensor]:
    yield X
    net.fails = True
    yield X


@pytest.mark.parametrize(
    ("batches", "error", "message"),
    [
        (lambda net: breaking(), OSError, "disk"),
        (failing, RuntimeError, "out of memory"),
        (lambda net: [X, X[:1]], ValueError, "more than 1 value per channel"),
        (lambda net: [X, X * torch.nan], InputError, "batch 2 brings norm some that are not"),
        (lambda net: [], InputError, "one batch or more, got none"),
        (lambda net: [X, 3], InputError, "a batch is a tensor, .* got a int: give forward="),
        (lambda net: [X, ["a", X]], InputError, "got a list of str"),
        (lambda net: [X, ()], InputError, "got a tuple"),
        (lambda net: [X, {"x": X}], InputError, "forward needs image, and the batch has x"),
    ],
)
def test_the_model_is_as_it_was(batches: object, error: type[Exception], message: str) -> None:
    net = Net()
    net.norm(X)
    net.norm.eval()
    buffers = dict(net.named_buffers())
    values = {name: value.clone() for name, value in buffers.items()}
    with pytest.raises(error, match=message):
        nk.recalibrate(net, batches(net))
    for name, buffer in net.named_buffers():
        assert buffer is buffers[name]
        assert torch.equal(buffer, values[name])
    assert (net.training, net.norm.training, net.dropout.training) == (True, False, True)
    assert not net.norm._forward_pre_hooks


@pytest.mark.parametrize(
    "batch",
    [
        X, (X, 1), [X, 1], ({"image": X, "label": 1}, 2), ((X,), 1), {"image": X, "label": 1},
    ],
    ids=["tensor", "tuple", "list", "tuple of mapping", "tuple of tuple", "mapping"],
)  # fmt: skip
def test_structures(batch: object) -> None:
    net = Net()
    nk.recalibrate(net, [batch])
    torch.testing.assert_close(net.norm.running_mean, X.mean(0))
    assert net.modes == [(False, True, False)]


def test_two_inputs_and_a_function() -> None:
    net = Net()
    nk.recalibrate(net, [((X, torch.tensor(2.0)), "label")])
    torch.testing.assert_close(net.norm.running_mean, 2 * X.mean(0))
    nk.recalibrate(net, [{"anything": X}], forward=lambda batch: net(batch["anything"], scale=3.0))
    torch.testing.assert_close(net.norm.running_mean, 3 * X.mean(0))


def test_packed_sequences_are_one_input() -> None:
    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(4)

        def forward(self, sequences: PackedSequence) -> Tensor:
            return self.norm(sequences.data)

    net = Reader()
    packed = pack_sequence([X[:3], X[3:5], X[5:]])
    for batch in (packed, (packed, "labels")):
        nk.recalibrate(net, [batch])
        torch.testing.assert_close(net.norm.running_mean, X.mean(0))


def test_a_wrapped_model_takes_its_entries() -> None:
    net = Net()
    nk.recalibrate(nn.DataParallel(net), [{"image": X, "label": 1}])
    torch.testing.assert_close(net.norm.running_mean, X.mean(0))


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (nn.Linear(4, 4), {}, r"must have a batch norm .* has none \(no norm\)"),
        (nn.InstanceNorm1d(4, track_running_stats=True), {}, "its statistics are of single samples"),
        (nk.freeze(nn.BatchNorm1d(4)), {}, "BatchNorm1d: frozen"),
        (nn.LazyBatchNorm1d(), {}, "must know its channels"),
        (nn.BatchNorm1d(4), {"estimator": "exakt"}, "unknown estimator 'exakt': .* did you mean 'exact'"),
        (nn.BatchNorm1d(4), {"tolerance": 0.0}, "tolerance must be positive"),
        (
            nn.BatchNorm1d(4),
            {"estimator": "exponential", "process_group": "world"},
            "which processes do not have",
        ),
        (nn.BatchNorm1d(4), {"tolerance": "0.1"}, "tolerance must be positive"),
        (nn.BatchNorm1d(4), {"until": "done"}, "unknown until 'done': choose from all, enough"),
        (
            nn.BatchNorm1d(4),
            {"until": "enough", "process_group": "world"},
            "would stop processes at different",
        ),
        (nn.ModuleList([nn.BatchNorm1d(4)]), {"forward": lambda batch: batch}, "batches reached none"),
    ],
)
def test_bad_input(model: nn.Module, options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        nk.recalibrate(model, [X], **options)


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        (torch.zeros(8, 4), r"got one tensor, \[8, 4\]: put it in a list"),
        ({"image": X}, "got one dict: put it in a list"),
        ("data", "a list of batches, got str"),
        (None, "a list of batches, got NoneType"),
        (nn.Linear(4, 4), "a list of batches, got Linear"),
    ],
    ids=str,
)
@pytest.mark.parametrize(
    "verb",
    [
        nk.recalibrate,
        nk.adapt,
        lambda model, batches: nk.convert(model, "group", [] if batches is None else batches),
    ],
)
def test_batches_that_are_none(verb: object, batches: object, message: str) -> None:
    net = nn.Sequential(nn.BatchNorm1d(4))
    before = copy.deepcopy(net.state_dict())
    if batches is None and verb not in (nk.recalibrate, nk.adapt):
        message = "one batch or more"
    with pytest.raises(InputError, match=message):
        verb(net, batches)
    assert type(net[0]) is nn.BatchNorm1d
    torch.testing.assert_close(dict(net.state_dict()), dict(before), rtol=0, atol=0)


VERBS = {
    "accelerate": nk.accelerate, "fold": nk.fold, "freeze": nk.freeze, "unfreeze": nk.unfreeze,
    "convert": lambda model: nk.convert(model, "group"), "recalibrate": lambda model: nk.recalibrate(model, [X]),
    "adapt": lambda model: nk.adapt(model, [X]), "param_groups": lambda model: nk.param_groups(model, 0.1),
    "synchronize": nk.synchronize, "desynchronize": nk.desynchronize,
}  # fmt: skip


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize(
    ("model", "message"),
    [
        (None, "got NoneType$"),
        ([nn.BatchNorm1d(4)], "got list$"),
        (nn.BatchNorm1d(4).state_dict(), "got OrderedDict: load it into the model$"),
        (nn.BatchNorm1d, "got the class BatchNorm1d$"),
    ],
    ids=["none", "list", "state_dict", "class"],
)
def test_what_is_no_model(verb: str, model: object, message: str) -> None:
    with pytest.raises(InputError, match=f"^model must be a torch.nn.Module, {message}"):
        VERBS[verb](model)


@pytest.mark.parametrize("weight_decay", ["0.1", None, -1.0, float("nan")])
def test_a_weight_decay_that_is_none(weight_decay: object) -> None:
    with pytest.raises(InputError, match="weight_decay must be 0 or more and finite"):
        nk.param_groups(nn.Linear(2, 2), weight_decay)
    with pytest.raises(InputError, match="prior counts samples and must be 0 or more"):
        nk.adapt(nn.BatchNorm1d(4), [X], prior="16")
    with pytest.raises(InputError, match="lr must be positive"):
        nk.adapt(nn.BatchNorm1d(4), [X], minimize_entropy=True, lr="0.1")
