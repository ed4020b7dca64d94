"""Tensors whose values are not what memory holds, or that share it: negated views, memoryless zeros, expanded ones."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import normkit.functional as F

ZEROS, ONES = torch.zeros(3), torch.ones(3)
MASK = torch.tensor([True, False, True, True])[:, None, None]
NORMS: dict[str, Callable[..., Tensor]] = {
    "batch": lambda x, w, r: F.batch_norm(x, None, None, w, w, training=True, residual=r, mask=MASK),
    "given": lambda x, w, r: F.batch_norm(x, w, ONES, w, w, residual=r, mask=MASK),
    "ghost": lambda x, w, r: F.ghost_batch_norm(x, 2, None, None, w, w, training=True, residual=r, mask=MASK),
    "renorm": lambda x, w, r: F.batch_renorm(
        x, ZEROS.clone(), ONES.clone(), w, w, training=True, residual=r, mask=MASK
    ),
    "switch": lambda x, w, r: F.switch_norm(x, None, None, w, w, w, w, training=True, residual=r, mask=MASK),
    "adaptive": lambda x, w, r: F.adaptive_batch_norm(x, w, ONES, w, w, residual=r, mask=MASK),
}
every_norm = pytest.mark.parametrize("name", NORMS)


def _tensors() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x, r, dy = (torch.randn(4, 3, 5, 2, generator=generator) for _ in range(3))
    return x, torch.rand(3, generator=generator) + 0.5, r, dy


@every_norm
@pytest.mark.parametrize("negated", range(4), ids=["x", "weight", "residual", "dy"])
def test_negated_views(name: str, negated: int) -> None:
    """What `torch.imag` of a conjugate is: a view whose sign is a bit of the tensor."""
    results = []
    for negate in (torch.neg, torch._neg_view):
        *inputs, dy = (negate(t) if i == negated else t for i, t in enumerate(_tensors()))
        x = inputs[0].detach().requires_grad_()
        y = NORMS[name](x, *inputs[1:])
        results.append((y, *torch.autograd.grad(y, x, dy)))
    # Negated inputs go to torch operations, which round otherwise.
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-5)


@every_norm
def test_a_gradient_of_zeros_without_memory(name: str) -> None:
    x, w, r, dy = _tensors()
    y = NORMS[name](x.requires_grad_(), w, r)
    (dx,) = torch.autograd.grad(y, x, torch._efficientzerotensor(dy.shape))
    assert torch.equal(dx, torch.zeros_like(x))


@pytest.mark.parametrize("which", ["running_mean", "running_var"])
def test_running_statistics_that_share_memory(which: str) -> None:
    """They are written in place; evaluation only reads them."""
    x, batches = _tensors()[0], torch.tensor(0)
    running = {"running_mean": ZEROS.clone(), "running_var": ONES.clone()}
    running[which] = running[which][:1].expand(3)
    before = {name: value.clone() for name, value in running.items()}
    for norm in (F.batch_norm, F.batch_renorm):
        with pytest.raises(RuntimeError, match=rf"^{which} is changed in place.* got an expanded .* \[3\]"):
            norm(x, **running, training=True, num_batches_tracked=batches)
        assert batches == 0
        assert all(torch.equal(running[name], value) for name, value in before.items())
        assert norm(x, **running).isfinite().all()


@pytest.mark.parametrize("which", range(4), ids=["weight", "bias", "running_mean", "running_var"])
def test_negated_parameters_on_the_short_way(which: int) -> None:
    x, w, *_ = _tensors()
    results = []
    for negate in (torch.neg, torch._neg_view):
        weight, bias, mean, var = (negate(-w) if i == which else w.clone() for i in range(4))
        results.append([F.batch_norm(x, mean, var, weight, bias)])
        if which < 2:
            results[-1] += F.batch_norm(x, mean, var, weight, bias, training=True), mean, var
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-5)


def test_running_statistics_that_are_negated() -> None:
    x, mean, var = _tensors()[0], torch._neg_view(torch.ones(3)), ONES.clone()
    with pytest.raises(
        RuntimeError, match=r"^running_mean is changed in place.* got a negated view of shape \[3\]"
    ):
        F.batch_norm(x, mean, var, training=True)
    assert torch.equal(var, ONES)


@pytest.mark.parametrize("short", [True, False])
@pytest.mark.parametrize("batches", [torch.tensor(0, device="meta"), torch.tensor(0, dtype=torch.int32)])
def test_a_counter_that_cannot_be_written(batches: Tensor, short: bool) -> None:
    x, mean, var = _tensors()[0], ZEROS.clone(), ONES.clone()
    with pytest.raises(RuntimeError, match=r"num_batches_tracked must be .*int64 on the cpu.* got torch.int"):
        F.batch_norm(x, mean, var, training=True, num_batches_tracked=batches, mask=None if short else MASK)
    assert torch.equal(mean, ZEROS)
    assert torch.equal(var, ONES)
