"""The specification backward: central differences, and what must hold besides."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from known_norms import EPS, NORMS, Norm, U, close, derivative, every_norm, slopes

from normkit import reference
from normkit.reference import Array


@every_norm
@pytest.mark.parametrize("affine", [True, False], ids=["affine", "plain"])
def test_backward_is_the_slope_of_forward(norm: Norm, affine: bool) -> None:
    rng = np.random.default_rng(1)
    # Distinct multiples of 1/4 keep the deviation of every set, and so the higher derivatives, of order one.
    x = rng.permutation(math.prod(norm.shape)).reshape(norm.shape) / 4
    dy = rng.standard_normal(norm.shape)
    weight, bias = norm.parameters(rng) if affine else (None, None)

    def loss(x: Array, weight: Array | None, bias: Array | None) -> float:
        return float((dy * norm.forward(x, weight, bias)[0]).sum())

    dx, dweight, dbias = reference.backward(dy, norm.forward(x, weight, bias)[1])
    # h⁴ = 1e-12 and u / h = 1e-13, times derivatives and a loss that stay below 1e3 here.
    close(dx, slopes(lambda a: loss(a, weight, bias), x), atol=1e-9)
    assert (dweight is None, dbias is None) == (weight is None, bias is None)
    if weight is not None:
        close(dweight, slopes(lambda a: loss(x, a, bias), weight), atol=1e-9)
    if bias is not None:
        close(dbias, slopes(lambda a: loss(x, weight, a), bias), atol=1e-9)


@pytest.mark.parametrize("norm", [norm for norm in NORMS if norm.mean is None], ids=str)
def test_backward_loses_no_digits_to_a_large_mean(norm: Norm) -> None:
    rng = np.random.default_rng(2)
    x = rng.permutation(math.prod(norm.shape)).reshape(norm.shape) / 4  # so that x + 1e6 is exact
    dy = rng.standard_normal(norm.shape)
    weight, bias = norm.parameters(rng)
    for near, far in zip(
        reference.backward(dy, norm.forward(x, weight, bias)[1]),
        reference.backward(dy, norm.forward(x + 1e6, weight, bias)[1]),
        strict=True,
    ):
        close(far, near, atol=64 * U * np.abs(dy).sum())  # a few roundings of the terms


@pytest.mark.parametrize("learned_eps", [0.3, -0.3, None])
def test_backward_of_the_threshold_and_the_learned_eps(learned_eps: float | None) -> None:
    rng = np.random.default_rng(20)
    x, dz = rng.standard_normal((2, 3, 2, 5))
    names = ["weight", "bias", "threshold"] + ["learned_eps"] * (learned_eps is not None)
    values = [rng.uniform(0.5, 2.0, 2), rng.standard_normal(2), rng.standard_normal(2), np.array(learned_eps)]
    given = dict(zip(names, values, strict=False))

    def loss(**changed: Array) -> float:
        arguments = {"x": x, **given, **changed}
        return float((dz * reference.filter_response_norm(**arguments, eps=EPS)[0]).sum())

    _, cache = reference.filter_response_norm(x, **given, eps=EPS)
    assert cache.above is not None
    assert 0 < cache.above.sum() < cache.above.size
    gradients = dict(zip(["x", *names], reference.backward(dz, cache), strict=True))
    for name, value in {"x": x, **given}.items():
        expected = derivative(lambda a, n=name: loss(**{n: a}), value)
        close(gradients[name], expected, atol=1e-9)  # as above


def test_filter_response_norm_is_torch_operations() -> None:
    rng = np.random.default_rng(21)
    x, (weight, bias, threshold) = rng.standard_normal((3, 2, 4, 4)), rng.standard_normal((3, 2))
    z, _ = reference.filter_response_norm(x, weight, bias, threshold, 1e-6, 1e-4)
    t, w, b, tau = (torch.from_numpy(a) for a in (x, weight, bias, threshold))
    w, b, tau = (p.view(1, 2, 1, 1) for p in (w, b, tau))
    nu = t.square().mean((2, 3), keepdim=True)
    close(z, torch.maximum(w * t * torch.rsqrt(nu + 1e-6 + 1e-4) + b, tau).numpy(), atol=64 * U)


@pytest.mark.parametrize("affine", [True, False], ids=["affine", "plain"])
def test_backward_of_dynamic_tanh(affine: bool) -> None:
    rng = np.random.default_rng(22)
    x, dy = rng.standard_normal((2, 3, 4))
    given: dict[str, Array] = {"alpha": np.array(0.7)}
    if affine:
        given |= {"weight": rng.standard_normal(4), "bias": rng.standard_normal(4)}

    def loss(**changed: Array) -> float:
        return float((dy * reference.dynamic_tanh(**{"x": x, **given, **changed})[0]).sum())

    y, cache = reference.dynamic_tanh(x, **given)
    close(y, given.get("weight", 1) * np.tanh(0.7 * x) + given.get("bias", 0), atol=8 * U * np.abs(y).max())
    gradients = dict(zip(["x", "weight", "bias", "alpha"], reference.backward(dy, cache), strict=True))
    for name, value in {"x": x, **given}.items():
        close(gradients[name], derivative(lambda a, n=name: loss(**{n: a}), value), atol=1e-9)
    assert affine or gradients["weight"] is gradients["bias"] is None
