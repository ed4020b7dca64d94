"""Norms of others are known by their structure: written here as timm writes them, which is not imported."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from networks import lived
from torch import Tensor, nn

import normkit as nk


class LayerNorm(nn.LayerNorm):
    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)


class LayerNorm2d(nn.LayerNorm):
    def forward(self, x: Tensor) -> Tensor:
        x = F.layer_norm(x.permute(0, 2, 3, 1), self.normalized_shape, self.weight, self.bias, self.eps)
        return x.permute(0, 3, 1, 2)


class LayerNormFp32(nn.LayerNorm):
    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight.float() if self.weight is not None else None
        bias = self.bias.float() if self.bias is not None else None
        return F.layer_norm(x.float(), self.normalized_shape, weight, bias, self.eps).to(x.dtype)


class RMSNorm2d(nn.RMSNorm):
    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.permute(0, 2, 3, 1), self.normalized_shape, self.weight, self.eps).permute(
            0, 3, 1, 2
        )


class GroupNormAct(nn.GroupNorm):
    def __init__(self, groups: int, channels: int, act: nn.Module, drop: nn.Module | None = None) -> None:
        super().__init__(groups, channels)
        self.drop = drop or nn.Identity()
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        x = F.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)
        return self.act(self.drop(x))


class BatchNormAct2d(nn.BatchNorm2d):
    """With torch's forward copied, as it counts batches and chooses statistics."""

    def __init__(self, channels: int, act: nn.Module, drop: nn.Module | None = None) -> None:
        super().__init__(channels)
        self.drop = drop or nn.Identity()
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        torch._assert(x.ndim == 4, f"expected 4D input (got {x.ndim}D input)")
        if self.training and self.track_running_stats:
            self.num_batches_tracked.add_(1)
        args = self.weight, self.bias, self.training, self.momentum, self.eps
        return self.act(self.drop(F.batch_norm(x, self.running_mean, self.running_var, *args)))


class OtherBatchNormAct2d(BatchNormAct2d):
    """The same children, and something else."""

    def forward(self, x: Tensor) -> Tensor:
        args = self.weight, self.bias, self.training, self.momentum, self.eps
        return F.batch_norm(self.act(x), self.running_mean, self.running_var, *args)


def test_all_become_ours() -> None:
    norms = [
        BatchNormAct2d(8, nn.SiLU()), BatchNormAct2d(8, nn.Identity()), GroupNormAct(2, 8, nn.ReLU(inplace=True)),
        LayerNorm2d(8), LayerNormFp32(9), LayerNorm(9), RMSNorm2d(8),
    ]  # fmt: skip
    torch.manual_seed(0)
    old = lived(nn.Sequential(*norms))
    new = copy.deepcopy(old)
    x = torch.randn(4, 8, 9, 9) + 3
    outcome = nk.accelerate(new, x)
    assert list(outcome.done) == [str(i) for i in range(7)]
    assert outcome.left == {}
    assert new[0].activation == "silu"
    for i in range(7):
        assert type(new[i]).__name__ == type(old[i]).__name__
        assert isinstance(new[i], type(old[i]))
    for training in (True, False):
        # Float32 through seven norms, each of which divides by a deviation about 1.
        torch.testing.assert_close(new.train(training)(x), old.train(training)(x), rtol=1e-4, atol=1e-4)
    assert torch.equal(new[0].num_batches_tracked, old[0].num_batches_tracked)
    assert list(new.state_dict()) == list(old.state_dict())
    y = new(x)
    for other in (copy.deepcopy(new), pickle.loads(pickle.dumps(new))):
        assert torch.equal(other(x), y)
    assert nk.accelerate(new, x).done == {}


def test_it_is_our_kernel_that_runs() -> None:
    """At a mean of a million, torch's batch norm keeps no digit in float32, and ours all but one."""
    model = nn.Sequential(BatchNormAct2d(3, nn.Identity()))
    nk.accelerate(model)
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 2, (16, 3, 8, 8), generator=generator).float() + 1e6
    # Exact in float32, so what remains is ours.
    torch.testing.assert_close(model(x), nn.BatchNorm2d(3).double()(x.double()).float(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("layer", "why"),
    [
        (BatchNormAct2d(3, nn.Mish()), "its activation Mish is none of ours"),
        (
            BatchNormAct2d(3, nn.ReLU(), nn.Dropout()),
            "BatchNormAct2d has dropout between its norm and its activation",
        ),
        (OtherBatchNormAct2d(3, nn.ReLU()), "OtherBatchNormAct2d does something else than torch's norm"),
        (
            type("Own", (nn.LayerNorm,), {"forward": lambda self, x: x - x.mean()})(3),
            "calls none of torch's norms",
        ),
        (
            type("Own", (nn.LayerNorm,), {"forward": lambda self, x: x if x.sum() > 0 else -x})(3),
            "cannot follow",
        ),
        (nk.freeze(nn.BatchNorm2d(3)), "layer '0' must train, but is frozen: unfreeze(model) first"),
        (nn.LazyBatchNorm1d(), "must know its channels, but is a LazyBatchNorm1d: run a batch first"),
    ],
)
def test_others_are_left(layer: nn.Module, why: str) -> None:
    before, kind, state = dict(vars(layer)), type(layer), torch.get_rng_state()
    outcome = nk.accelerate(nn.Sequential(layer))
    assert why in outcome.left["0"]
    assert outcome.done == {}
    assert type(layer) is kind
    assert vars(layer).keys() == before.keys()
    assert torch.equal(torch.get_rng_state(), state)
