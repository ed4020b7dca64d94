"""The short way of ghosts, of renorm's warm-up and of blends: the same bits as the long one, and closed to the rest."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

import normkit as nk
from normkit import kernels

LAYERS = {
    "ghost": lambda: nk.GhostBatchNorm2d(5, 2, activation="relu"),
    "ghost, cumulative": lambda: nk.GhostBatchNorm2d(5, 4, momentum=None, affine=False),
    "ghost, untracked": lambda: nk.GhostBatchNorm2d(5, 3, track_running_stats=False),
    "renorm around the end of its warm-up": lambda: nk.BatchRenorm2d(5, warmup=2, r_steps=2, d_steps=4),
    "renorm": lambda: nk.BatchRenorm2d(
        5, warmup=0, r_steps=0, d_steps=0, r_max=1.1, d_max=0.2, activation="silu"
    ),
    "adaptive": lambda: nk.AdaptiveBatchNorm2d(5, activation="silu"),
    "adaptive, each": lambda: nk.AdaptiveBatchNorm2d(5, per_sample=True),
}


def close(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("straight_ghosts", "straight_channels", "straight_renorm", "straight_blended"):
        monkeypatch.setattr(kernels, name, lambda *_: None)


def run(layer: torch.nn.Module, *, last: bool, residual: bool) -> list[Tensor]:
    """Four steps of training and an evaluation: all that comes of them."""
    found = []
    for i in range(4):
        generator = torch.Generator().manual_seed(i)
        x, other, dy = (torch.randn(7, 5, 4, 3, generator=generator) + i for _ in range(3))
        if last:
            x, other = (t.to(memory_format=torch.channels_last) for t in (x, other))
        x.requires_grad_()
        y = layer(x, residual=other if residual else None)
        y.backward(dy)
        found += [y.detach(), x.grad, *(p.grad.clone() for p in layer.parameters())]
        found += [buffer.clone() for buffer in layer.buffers()]
    with torch.no_grad():
        found.append(layer.eval()(x, residual=other if residual else None))
    return found


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("name", LAYERS)
def test_the_same_bits(name: str, last: bool, residual: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    short = LAYERS[name]()
    long = copy.deepcopy(short)
    found = run(short, last=last, residual=residual)
    close(monkeypatch)
    for a, b in zip(found, run(long, last=last, residual=residual), strict=True):
        assert torch.equal(a, b)


def ghosts(**changed: Any) -> Tensor | None:
    running = torch.zeros(5), torch.ones(5), 0.1, torch.tensor(0)
    call = {"x": torch.randn(7, 5, 4, 3), "size": 2, "weight": torch.ones(5), "bias": None, "eps": 1e-5}
    call |= {"activation": None, "residual": None, "running": running}
    return kernels.straight_ghosts(*{**call, **changed}.values())


def test_it_is_taken() -> None:
    assert ghosts() is not None
    x, one = torch.randn(4, 5), torch.ones(5)
    with torch.no_grad():
        y = kernels.straight_blended(x, torch.zeros(5), one, 0.5, False, one, None, 1e-5, None, None)
    assert y is not None


@pytest.mark.parametrize(
    "changed",
    [
        {"x": torch.randn(7, 5), "size": 2},  # one value in the last run
        {"weight": torch.ones(7, 5)},
        {"x": torch.randn(7, 5, 4, 3).to_sparse()},
        {"x": torch.randn(7, 5, 4, 3, device="meta")},
        {"residual": torch.randn(7, 5, 4)},
        {"running": (torch.zeros(5), torch.ones(5), None, None)},
        {"eps": 0.0},
        {"activation": "softmax"},
    ],
)
def test_closed_to_what_is_not_ordinary(changed: dict[str, Any]) -> None:
    assert ghosts(**changed) is None


def test_closed_where_somebody_watches_or_records() -> None:
    x, one = torch.randn(4, 5, requires_grad=True), torch.ones(5)
    assert kernels.straight_blended(x, one, one, 0.5, False, one, None, 1e-5, None, None) is None
    with FlopCounterMode(display=False):
        assert ghosts() is None


def test_a_recomputation_repeats_the_step_at_the_end_of_the_warm_up() -> None:
    """The step before it is plain batch norm; repeated after the count has moved, it is that again."""
    layer = nk.BatchRenorm2d(5, warmup=1, r_steps=1, d_steps=1)
    other = copy.deepcopy(layer)
    x, dy = torch.randn(7, 5, 4, 3) + 3, torch.randn(7, 5, 4, 3)
    gradients = []
    for call in (layer, lambda x: checkpoint(other, x, use_reentrant=False)):
        z = x.clone().requires_grad_()
        call(z).backward(dy)
        gradients.append(z.grad)
    assert torch.equal(*gradients)
    assert all(torch.equal(a, b) for a, b in zip(layer.buffers(), other.buffers(), strict=True))
