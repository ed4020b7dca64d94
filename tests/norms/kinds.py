"""Every kind of layer that has running statistics, and what tests of these ask of all of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import normkit as nk
from normkit.norms.tracking import Tracked

U32 = 2.0**-24


class AtStep(nk.RecurrentBatchNorm):
    """At the second of three steps, for callers that know of none."""

    def __init__(self, num_features: int, **options: Any) -> None:
        super().__init__(num_features, max_length=3, **options)

    def forward(self, input: Tensor, *, step: int = 1, **options: Any) -> Tensor:
        return super().forward(input, step=step, **options)


KINDS: dict[str, Callable[..., Tracked]] = {
    "batch": nk.BatchNorm1d,
    "ghost": lambda *a, **k: nk.GhostBatchNorm1d(*a, ghost_size=4, **k),
    "renorm": lambda *a, **k: nk.BatchRenorm1d(*a, warmup=0, r_steps=4, d_steps=4, **k),
    "running": lambda *a, **k: nk.BatchNorm1d(*a, training_statistics="running", **k),
    "guarded": lambda *a, **k: nk.BatchNorm1d(*a, guard="nonfinite", **k),
    "cumulative": lambda *a, **k: nk.BatchNorm1d(*a, momentum=None, **k),
    "switch": nk.SwitchNorm1d,
    "batch-instance": nk.BatchInstanceNorm1d,
    "instance": lambda *a, **k: nk.InstanceNorm1d(*a, affine=True, track_running_stats=True, **k),
    "recurrent": AtStep,
}
every_kind = pytest.mark.parametrize("kind", KINDS)


def batch(seed: int, size: int = 10) -> Tensor:
    return torch.randn(size, 3, 4, generator=torch.Generator().manual_seed(seed)) * (seed + 1) + seed


def state_of(module: nn.Module) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in module.state_dict().items()}


def assert_same(module: nn.Module, before: dict[str, Tensor]) -> None:
    after = module.state_dict()
    assert list(after) == list(before)
    for key, value in after.items():
        assert torch.equal(value, before[key]), key


def network(kind: str) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv1d(3, 3, 1), KINDS[kind](3), nn.Tanh(), KINDS[kind](3))


def train(model: nn.Module, run: Callable[[Tensor], Tensor]) -> list[Tensor]:
    """Three steps; the gradients of the last one."""
    for step in range(3):
        model.zero_grad()
        x = batch(step).requires_grad_()
        run(x).square().sum().backward()
    return [x.grad, *(p.grad for p in model.parameters())]
