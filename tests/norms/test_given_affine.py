"""A weight and a bias given to forward, whichever statistics normalize."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import pytest
import torch
from kinds import KINDS, U32, assert_same, batch, state_of
from torch import Tensor

import normkit as nk
from normkit.norms.tracking import Tracked

LAYERS: dict[str, Callable[..., Tracked]] = {
    **{kind: KINDS[kind] for kind in ("batch", "ghost", "renorm", "running", "guarded", "cumulative")},
    "warm-up": nk.BatchRenorm1d,
    "blend": lambda *a, **k: nk.BatchNorm1d(*a, evaluation_statistics="blend", **k),
    "evaluation by the batch": lambda *a, **k: nk.BatchNorm1d(*a, evaluation_statistics="batch", **k),
    "adaptive": nk.AdaptiveBatchNorm1d,
    "adaptive to each": lambda *a, **k: nk.AdaptiveBatchNorm1d(*a, per_sample=True, **k),
    "frozen": lambda *a, **k: nk.BatchNorm1d(*a, **k).freeze(),
}


def given(each: bool) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    shape = [10, 3] if each else [3]
    weight, bias = (torch.rand(shape, generator=generator) + 0.5 for _ in range(2))
    return weight.requires_grad_(), bias.requires_grad_()


@pytest.mark.parametrize("scope", ["plain", "domain", "accumulate"])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
@pytest.mark.parametrize("each", [False, True], ids=["shared", "each"])
@pytest.mark.parametrize("kind", LAYERS)
def test_is_the_layer_without_one_and_torch(
    kind: str, each: bool, masked: bool, training: bool, scope: str
) -> None:
    """Output, gradients and state are those of a layer that only normalizes, and of torch after it."""
    ours, plain = (LAYERS[kind](3, affine=False, dtype=torch.float64) for _ in range(2))
    mask = torch.rand(10, 4, generator=torch.Generator().manual_seed(6)) > 0.3 if masked else None
    padded = torch.zeros(10, 1, 4, dtype=torch.bool) if mask is None else ~mask[:, None]
    results = []
    for layer in (ours, plain):
        x, residual = (batch(seed).double().requires_grad_() for seed in (1, 2))
        weight, bias = (p.detach().double().requires_grad_() for p in given(each))
        around = {"plain": nullcontext(), "domain": nk.domain("photo"), "accumulate": nk.accumulate(layer)}
        with around[scope]:
            if scope == "domain" and kind != "frozen":
                layer(batch(3).double())
            elif scope == "domain":
                layer.unfreeze()(batch(3).double()), layer.freeze()
            layer.train(training)
            if layer is ours:
                y = layer(x, residual=residual, mask=mask, weight=weight, bias=bias)
            else:
                w, b = (p[:, :, None] if each else p[:, None] for p in (weight, bias))
                y = (layer(x, mask=mask) * w + b + residual).masked_fill(padded, 0)
        y.backward(batch(4).double())
        results.append((y, x.grad, residual.grad, weight.grad, bias.grad))
    for got, expected in zip(*results, strict=True):
        # The same sums in another order; values and gradients are below 1000.
        torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-11)
    for key, value in plain.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[key], value, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("kind", ["ghost", "renorm", "guarded", "frozen"])
def test_wrong_shape_changes_nothing(kind: str) -> None:
    layer = LAYERS[kind](3)
    before = state_of(layer)
    with pytest.raises(RuntimeError, match=r"weight must have shape \[3\], or \[10, 3\] .* got \[9, 3\]"):
        layer(batch(0), weight=torch.ones(9, 3))
    assert_same(layer, before)


def test_half_input_is_rounded_once() -> None:
    """The map of each sample is applied before the output is rounded to bfloat16, in ghosts too."""
    weight, bias = given(each=True)
    x = batch(0).bfloat16()
    for kind in ("ghost", "renorm"):
        exact, got = (LAYERS[kind](3, affine=False)(z, weight=weight, bias=bias) for z in (x.float(), x))
        torch.testing.assert_close(got.float(), exact, rtol=2.0**-8 + 40 * U32, atol=40 * U32)
