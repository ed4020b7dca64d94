"""Norms switched alone on a part of a batch: what switching them on the whole batch gives, or nothing."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import normkit as nk
from normkit.doctor.switching import Part
from normkit.errors import InputError

N, C = 12, 6


class AsItIs(nn.BatchNorm2d):
    """Written by hand: in evaluation it gives what it got, which others still use."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) if self.training else input


def hooked(channels: int) -> nn.Module:
    """With a hook before it and one after it."""
    norm = nn.BatchNorm2d(channels)
    norm.register_forward_pre_hook(lambda _, args: (args[0].square(),))
    norm.register_forward_hook(lambda _, args, output: output.sin())
    return norm


class Masked(nk.BatchNorm2d):
    """By statistics of half of each picture."""

    def forward(self, input: Tensor, **kwargs: Any) -> Tensor:
        mask = torch.ones(input.shape[0], *input.shape[2:], dtype=torch.bool)
        mask[:, :, : input.shape[3] // 2] = False
        return super().forward(input, mask=mask, **kwargs)


class Block(nn.Module):
    """A shortcut, and an activation that writes over the norm's output."""

    def __init__(self, norm: Callable[..., nn.Module]) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(C, C, 3, padding=1), norm(C)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return x + nn.functional.relu_(self.norm(y) + 0.5 * y)


def pictures() -> Tensor:
    return torch.randn(N, C, 6, 6, generator=torch.Generator().manual_seed(1)).double() + 0.5


def network(norm: Callable[..., nn.Module] = nn.BatchNorm2d) -> nn.Sequential:
    """Five norms at 0.norm, 1.norm, ..., whose statistics are those that they start from."""
    torch.manual_seed(0)
    return nn.Sequential(*(Block(norm) for _ in range(5)), nn.Flatten(), nn.Linear(36 * C, 3)).double().eval()


def norms_in(model: nn.Module) -> dict[str, nn.Module]:
    return {name: layer for name, layer in model.named_modules() if hasattr(layer, "running_mean")}


def on_the_whole(model: nn.Module, name: str, x: Tensor) -> Tensor:
    model = copy.deepcopy(model)
    model.get_submodule(name).train()
    return model(x)


@torch.no_grad()
def on_a_part(model: nn.Module, x: Tensor, count: int = 4) -> tuple[list[int], dict[str, Tensor]]:
    """Which samples, and their outputs by the norm that is switched."""
    part, layers = Part(count, len(x)), norms_in(model)
    with part.holding(layers):
        base = part.of(model(x))
    assert base is not None
    found = dict(part.switched(layers, base, lambda rows: model(x[rows])))
    assert not any(module.training for module in model.modules())
    return part.rows, found


@pytest.mark.parametrize(("count", "passes"), [(1, [6]), (2, [12]), (4, [12, 12]), (7, [7] * 6)])
def test_passes_are_no_larger_than_the_batch(count: int, passes: list[int]) -> None:
    """Six copies, one of them with nothing switched."""
    model, sizes = network(), list[int]()
    model.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    assert len(on_a_part(model, pictures(), count)[1]) == 5
    assert sizes == [N, *passes]


NORMS = {
    "torch": nn.BatchNorm2d,
    "ours": nk.BatchNorm2d,
    "cumulative": lambda c: nk.BatchNorm2d(c, momentum=None, activation="relu"),
    "renorm": lambda c: nk.BatchRenorm2d(c, warmup=0, r_steps=0, d_steps=0, r_max=1.5, d_max=0.5),
    "ghost": lambda c: nk.GhostBatchNorm2d(c, 5),
    "switch": nk.SwitchNorm2d,
    "batch-instance": nk.BatchInstanceNorm2d,
    "adaptive": lambda c: nk.AdaptiveBatchNorm2d(c, per_sample=True),
    "synchronized": nk.SyncBatchNorm,
    "instance": lambda c: nn.InstanceNorm2d(c, track_running_stats=True),
    "guarded": lambda c: nk.BatchNorm2d(c, guard="nonfinite"),
    "masked": Masked,
    "by hand": AsItIs,
    "with hooks": hooked,
}


@pytest.mark.parametrize("norm", NORMS.values(), ids=NORMS)
@pytest.mark.parametrize("count", [1, 4, 7])
def test_it_is_what_the_whole_batch_gives(norm: Callable[..., nn.Module], count: int) -> None:
    model, x = network(norm), pictures()
    before = copy.deepcopy(model.state_dict())
    hooks = [len(module._forward_hooks | module._forward_pre_hooks) for module in model.modules()]
    some, found = on_a_part(model, x, count)
    assert [len(module._forward_hooks | module._forward_pre_hooks) for module in model.modules()] == hooks
    assert some == [i * N // count for i in range(count)]
    assert list(found) == [f"{i}.norm" for i in range(5)]
    with torch.no_grad():
        base = model(x)[some]
        for name, output in found.items():
            whole = on_the_whole(model, name, x)[some]
            # Sums of a convolution in another order: 54 values, five times, with room for what norms stretch.
            assert (output - whole).abs().max() <= 1e-12 * whole.abs().max()
            assert (output - base).abs().max() > 1e-3 * whole.abs().max()
    assert all(value.equal(before[key]) for key, value in model.state_dict().items())


class Sequences(nn.Module):
    """(N, T, C) as rows of a norm, those of a sample one after another or those of a step."""

    def __init__(self, steps_first: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.steps_first = steps_first
        self.first, self.norm, self.last = nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        if self.steps_first:
            x = x.transpose(0, 1)
        x = self.norm(x.reshape(-1, 4)).reshape(x.shape)
        return self.last(x.transpose(0, 1) if self.steps_first else x)


def test_rows_of_a_sample_one_after_another() -> None:
    model, x = Sequences(steps_first=False), torch.randn(N, 5, 4).double() + 1
    some, found = on_a_part(model, x)
    with torch.no_grad():
        assert torch.allclose(found["norm"], on_the_whole(model, "norm", x)[some], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("count", [4, 7])  # of 7 there is one copy in a pass
def test_rows_in_another_order_are_known(count: int) -> None:
    assert not on_a_part(Sequences(steps_first=True), torch.randn(N, 5, 4).double() + 1, count)[1]


def test_norms_that_evaluate_by_the_batch_too_are_known() -> None:
    assert not on_a_part(network(nk.AdaptiveBatchNorm2d), pictures())[1]


class Odd(nn.Module):
    """A model in which a sample's output is no matter of that sample, or of that norm, alone."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.what = what
        self.body, self.norm = network()[:-2], nn.BatchNorm2d(C).double()

    def forward(self, x: Tensor) -> Tensor:
        if self.what == "of one size" and len(x) != N:
            raise ValueError("batches of another size")
        if self.what == "coupled":
            x = x + x.mean(0)
        if self.what == "random":
            x = x + torch.randn_like(x)
        x = self.norm(self.body(self.norm(x) if self.what == "twice" else x))
        if self.what == "coupled at the end":
            x = x + x.mean(0)
        if self.what == "turned":
            return torch.cat([x, x], 1).movedim(1, 0)  # N = 2C
        return x.mean() if self.what == "a scalar" else x


ODD = ["of one size", "coupled", "coupled at the end", "random", "twice", "a scalar", "turned"]


@torch.no_grad()
@pytest.mark.parametrize("what", ODD)
def test_where_it_would_be_something_else_there_is_nothing(what: str) -> None:
    model, x = Odd(what).eval(), pictures()
    part, layers = Part(5, N), norms_in(model)  # two copies, 10 samples
    with part.holding(layers):
        base = part.of(model(x))
    if what == "a scalar":
        assert base is None
        return
    assert base is not None

    def output(rows: Sequence[int]) -> Tensor:
        try:
            return model(x[rows])
        except ValueError as error:  # as the probe does
            raise InputError(str(error)) from error

    found = dict(part.switched(layers, base, output))
    assert set(found) == ({f"body.{i}.norm" for i in range(5)} if what == "twice" else set())
