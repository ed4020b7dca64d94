"""Where recalibrating raises, the model is as it was, to the bit; batches of every usual structure are understood."""

from __future__ import annotations

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
        (nn.BatchNorm1d(4), {"estimator": "random", "process_group": "world"}, "which processes do not have"),
        (nn.ModuleList([nn.BatchNorm1d(4)]), {"forward": lambda batch: batch}, "batches reached none"),
    ],
)
def test_bad_input(model: nn.Module, options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        nk.recalibrate(model, [X], **options)
