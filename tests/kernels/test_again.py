"""Gradients with a graph of their own are those without, also where one input of a norm is made of another."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

import normkit.functional as F

MEAN, VAR = torch.full((3,), 0.5, dtype=torch.float64), torch.full((3,), 2.0, dtype=torch.float64)
MASK = torch.tensor([True, False, True, True])[:, None]


def _inputs() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, 3, 2, dtype=torch.float64, generator=generator)
    w = torch.rand(3, dtype=torch.float64, generator=generator) + 0.5
    return x.requires_grad_(), w.requires_grad_()


def batch(norm: Callable[..., Tensor], *statistics: object, **options: object) -> Callable[..., Tensor]:
    """A norm whose residual x is made of, and whose weight is its bias too."""

    def call(x: Tensor, w: Tensor) -> Tensor:
        return norm(x.tanh() + x, *statistics, weight=w, bias=w, residual=x, activation="silu", **options)

    return call


def renorm(x: Tensor, w: Tensor, **options: object) -> Tensor:
    limited = partial(F.batch_renorm, training=True, r_max=1.01, d_max=0.01, **options)
    return batch(limited, MEAN.clone(), VAR.clone())(x, w)


NORMS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "batch": batch(F.batch_norm, None, None, training=True),
    "batch-masked": batch(F.batch_norm, None, None, training=True, mask=MASK),
    "given": batch(F.batch_norm, MEAN, VAR),
    "ghost": batch(F.ghost_batch_norm, 2, None, None, training=True),
    "renorm": renorm,
    "renorm-masked": partial(renorm, mask=MASK),
    "switch": lambda x, w: batch(F.switch_norm, None, None, w, w, training=True)(x, w),
    "batch-instance": lambda x, w: batch(F.batch_instance_norm, MEAN, VAR, w / 2)(x, w),
    "adaptive": batch(F.adaptive_batch_norm, MEAN, VAR),
    "virtual": batch(F.virtual_batch_norm, MEAN, VAR, 3),
    "samples": lambda x, w: F.batch_norm(x, None, None, x.mean(2), w, training=True),
    "group": lambda x, w: F.group_norm(x, 1, w, x.mean((0, 2))),
    "layer": lambda x, w: F.layer_norm(x.mT * w, (3,), w, x.mean((0, 2))),
    "rms": lambda x, w: F.rms_norm(x.mT * w, (3,), w),
    "filter-response": lambda x, w: F.filter_response_norm(x, w, w, w / 9, learned_eps=w[:1]),
}

every_norm = pytest.mark.parametrize("norm", NORMS.values(), ids=NORMS)


@every_norm
def test_inputs_made_of_each_other(norm: Callable[..., Tensor]) -> None:
    inputs = _inputs()
    torch.autograd.gradcheck(norm, inputs)  # so these are right
    dy = torch.arange(24, dtype=torch.float64).sin()
    plain, recorded = (
        torch.autograd.grad(norm(*inputs).flatten(), inputs, dy, create_graph=again)
        for again in (False, True)
    )
    # Two ways to sum a few numbers of order 1.
    torch.testing.assert_close(recorded, plain, rtol=0, atol=1e-13)


@every_norm
def test_gradients_in_batches(norm: Callable[..., Tensor]) -> None:
    inputs = _inputs()
    dys = torch.arange(48, dtype=torch.float64).sin().view(2, 24)
    y = norm(*inputs).flatten()
    at_once = torch.autograd.grad(y, inputs, dys, is_grads_batched=True, retain_graph=True)
    each = zip(*(torch.autograd.grad(y, inputs, dy, retain_graph=True) for dy in dys), strict=True)
    torch.testing.assert_close(at_once, tuple(map(torch.stack, each)), rtol=0, atol=1e-13)


@every_norm
def test_hooks_of_inputs_run_once(norm: Callable[..., Tensor]) -> None:
    found = []
    for again in (False, True):
        x, w = _inputs()
        hooked = x * 1, w * 1
        for t in hooked:
            t.register_hook(lambda g: 3 * g)
        found.append(torch.autograd.grad(norm(*hooked).sin().sum(), (x, w), create_graph=again))
    torch.testing.assert_close(*found, rtol=0, atol=1e-12)  # three times as large
