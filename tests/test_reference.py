"""The specification itself, held to exact rational arithmetic, finite differences and the source articles."""

from __future__ import annotations

import ast
import math
import re
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from numpy.typing import NDArray

from normkit import reference
from normkit.reference import Array, Cache

U = 2.0**-53  # unit roundoff of float64
EPS = 1e-3  # not the default, which the tests of the articles and of torch use
DEFAULT_EPS = 1e-5
PACKAGE = Path(reference.__file__).parent
Index = tuple[int, ...]


def close(actual: Array | None, expected: Array | list[float] | None, atol: float) -> None:
    assert actual is not None
    assert expected is not None
    assert_allclose(actual, expected, rtol=0, atol=atol)


# The norms under test, each beside what the scalar oracle needs to know: which elements share a statistic
# (an equal `set_of(index)`), and which entry of weight and bias an element meets (`affine_of(index)`).


@dataclass(frozen=True)
class Norm:
    name: str
    shape: Index
    forward: Callable[[Array, Array | None, Array | None], tuple[Array, Cache]]  # (x, weight, bias)
    set_of: Callable[[Index], Index]
    affine_of: Callable[[Index], Index] = lambda index: index[1:2]  # its channel
    mean: Array | None = None  # where the statistic is a constant
    var: Array | None = None
    mask: NDArray[np.bool_] | None = None
    mask_lacks: int = 1  # the axis of x that the mask has not
    has_bias: bool = True

    def __str__(self) -> str:
        return f"{self.name}-{'x'.join(map(str, self.shape))}"

    def is_valid(self, index: Index) -> bool:
        """Whether the element is no padding."""
        lacks = self.mask_lacks % len(self.shape)
        return self.mask is None or bool(self.mask[index[:lacks] + index[lacks + 1 :]])

    def valid(self) -> NDArray[np.bool_]:
        assert self.mask is not None
        return np.broadcast_to(np.expand_dims(self.mask, self.mask_lacks), self.shape)

    def parameters(self, rng: np.random.Generator) -> tuple[Array, Array | None]:
        shape = self.affine_of(self.shape)
        return rng.uniform(0.5, 2.0, shape), rng.standard_normal(shape) if self.has_bias else None


def batch(shape: Index, mask: NDArray[np.bool_] | None = None) -> Norm:
    name = "batch" if mask is None else "batch-mask"
    return Norm(
        name, shape, lambda x, w, b: reference.batch_norm(x, w, b, EPS, mask), lambda i: i[1:2], mask=mask
    )


def inference(shape: Index, mask: NDArray[np.bool_] | None = None) -> Norm:
    name = "inference" if mask is None else "inference-mask"
    mean, var = np.array([0.5, -1.0, 2.0]), np.array([0.25, 4.0, 1.5])

    def forward(x: Array, weight: Array | None, bias: Array | None) -> tuple[Array, Cache]:
        return reference.batch_norm_inference(x, mean, var, weight, bias, EPS, mask)

    return Norm(name, shape, forward, lambda i: i[1:2], mean=mean, var=var, mask=mask)


def layer(shape: Index, ndim: int, mask: NDArray[np.bool_] | None = None) -> Norm:
    return Norm(
        f"layer-{ndim}" if mask is None else f"layer-{ndim}-mask",
        shape,
        lambda x, w, b: reference.layer_norm(x, ndim, w, b, EPS, mask),
        lambda i: i[:-ndim],
        lambda i: i[-ndim:],
        mask=mask,
        mask_lacks=-1,
    )


def rms(shape: Index, ndim: int, mask: NDArray[np.bool_] | None = None) -> Norm:
    return replace(
        layer(shape, ndim, mask),
        name=f"rms-{ndim}" if mask is None else f"rms-{ndim}-mask",
        forward=lambda x, w, b: reference.rms_norm(x, ndim, w, EPS, mask),
        mean=np.zeros(shape[:-ndim]),
        has_bias=False,
    )


def group(shape: Index, groups: int, mask: NDArray[np.bool_] | None = None) -> Norm:
    return Norm(
        f"group-{groups}" if mask is None else f"group-{groups}-mask",
        shape,
        lambda x, w, b: reference.group_norm(x, groups, w, b, EPS, mask),
        lambda i: (i[0], i[1] * groups // shape[1]),
        mask=mask,
    )


def instance(shape: Index, mask: NDArray[np.bool_] | None = None) -> Norm:
    name = "instance" if mask is None else "instance-mask"
    return Norm(
        name, shape, lambda x, w, b: reference.instance_norm(x, w, b, EPS, mask), lambda i: i[:2], mask=mask
    )


def conditional(norm: Norm) -> Norm:
    """With weight and bias per sample."""
    return replace(norm, name=f"conditional-{norm.name}", affine_of=lambda i: i[:2])


def filter_response(shape: Index, mask: NDArray[np.bool_] | None = None) -> Norm:
    def forward(x: Array, weight: Array | None, bias: Array | None) -> tuple[Array, Cache]:
        return reference.filter_response_norm(x, weight, bias, eps=EPS, mask=mask)

    name = "filter-response" if mask is None else "filter-response-mask"
    return Norm(name, shape, forward, lambda i: i[:2], mean=np.zeros(shape[:2]), mask=mask)


MASK_1D = np.array([True, False, True, True, True])
MASK_TOKENS = np.array([True, False, True])
MASK_2D = np.array([[True, True, False], [True, False, False], [True, True, True], [False, False, False]])
NORMS = [
    *(batch(shape) for shape in [(5, 3), (4, 2, 3), (2, 3, 2, 2)]),
    *(batch((5, 3), MASK_1D), batch((4, 2, 3), MASK_2D)),
    *(inference((4, 3)), inference((2, 3, 2, 2)), inference((4, 3, 3), MASK_2D)),
    *(layer((4,), 1), layer((3, 4), 1), layer((2, 3, 2, 2), 2)),
    *(rms((3, 4), 1), rms((2, 3, 2, 2), 3)),
    *(group((2, 4), 2), group((2, 6, 3), 3), group((2, 4, 2, 2), 1)),
    *(instance((3, 2, 4)), instance((2, 2, 2, 3))),
    *(filter_response((3, 2, 4)), filter_response((2, 2, 2, 3)), filter_response((4, 2, 3), MASK_2D)),
    *(layer((3, 4), 1, MASK_TOKENS), layer((4, 3, 4), 1, MASK_2D), layer((4, 3, 4), 2, MASK_2D)),
    *(rms((4, 3, 4), 1, MASK_2D), rms((4, 3, 4), 2, MASK_2D)),
    *(group((4, 4, 3), 2, MASK_2D), instance((4, 2, 3), MASK_2D)),
    *(
        conditional(batch((4, 2, 3), MASK_2D)),
        conditional(instance((3, 2, 4))),
        conditional(group((2, 4), 2)),
    ),
]
every_norm = pytest.mark.parametrize("norm", NORMS, ids=str)


# Forward: a loop over scalars in exact rational arithmetic.


def root(v: Fraction) -> Fraction:
    """√v rounded down to a multiple of 2^-300: exact, beside float64."""
    unit = 2**300
    return Fraction(math.isqrt(v.numerator * unit**2 // v.denominator), unit)


def exact(norm: Norm, x: Array) -> tuple[Array, dict[Index, tuple[Fraction, Fraction, int]]]:
    """x̂, rounded once, and the exact mean, biased variance and count of each set."""
    sets: dict[Index, list[Index]] = defaultdict(list)
    for index in np.ndindex(x.shape):
        if norm.is_valid(index):
            sets[norm.set_of(index)].append(index)
    xhat, statistics = np.zeros(x.shape), {}
    for key, members in sets.items():
        values = [Fraction(float(x[index])) for index in members]
        m = len(values)
        mean = sum(values, Fraction(0)) / m if norm.mean is None else Fraction(float(norm.mean[key]))
        spread = sum(((value - mean) ** 2 for value in values), Fraction(0))
        var = spread / m if norm.var is None else Fraction(float(norm.var[key]))
        statistics[key] = mean, var, m
        for index, value in zip(members, values, strict=True):
            xhat[index] = float((value - mean) / root(var + Fraction(EPS)))
    return xhat, statistics


@st.composite
def inputs(draw: st.DrawFn, shape: Index) -> Array:
    """Values that share a scale and an offset: from 1e-30 to 1e30, and means up to 1e8 deviations."""
    size = math.prod(shape)
    deviations = draw(st.lists(st.floats(-4, 4, width=32), min_size=size, max_size=size))
    scale = 10.0 ** draw(st.integers(-30, 30))
    offset = draw(st.sampled_from([0.0, 1.0, -1e3, 1e6, 1e8]))
    return scale * (offset + np.reshape(deviations, shape))


@every_norm
@settings(max_examples=40)
@given(data=st.data())
def test_statistics_and_xhat_are_exact(norm: Norm, data: st.DataObject) -> None:
    x = data.draw(inputs(norm.shape))
    y, cache = norm.forward(x, None, None)
    xhat, statistics = exact(norm, x)
    # A sum of m terms errs by at most m u times the sum of their magnitudes, and every term of the second
    # sums is at the scale of the deviation. What is left is a handful of roundings.
    most = max(m for _, _, m in statistics.values())
    close(cache.xhat, xhat, atol=(most + 8) * U * np.abs(xhat).max())
    assert_array_equal(y, cache.xhat)
    for key, (mean, var, m) in statistics.items():
        assert cache.count[key] == m
        assert abs(Fraction(float(cache.mean[key])) - mean) <= 4 * U * abs(mean) + m * U * root(var)
        # (x - μ)² below the least float64 may round to 0: hence the floor.
        assert abs(Fraction(float(cache.var[key])) - var) <= (2 * m + 8) * U * var + Fraction(2) ** -1000


def test_many_values_of_a_large_mean_cost_no_digits() -> None:
    m = 10_000
    x = 1e6 + np.random.default_rng(12).standard_normal((m, 2))
    _, cache = reference.batch_norm(x)
    for c in range(2):
        values = [Fraction(float(value)) for value in x[:, c]]
        mean = sum(values, Fraction(0)) / m
        var = sum(((value - mean) ** 2 for value in values), Fraction(0)) / m
        assert abs(Fraction(float(cache.mean[c])) - mean) <= 2 * U * mean  # a sum in order errs by 30 u here
        assert (
            abs(Fraction(float(cache.var[c])) - var) <= math.isqrt(m) * U * var
        )  # roundings add up at random


@every_norm
def test_affine_map_follows_xhat(norm: Norm) -> None:
    rng = np.random.default_rng(0)
    x, (weight, bias) = rng.standard_normal(norm.shape), norm.parameters(rng)
    y, cache = norm.forward(x, weight, bias)
    for index in np.ndindex(norm.shape):
        if not norm.is_valid(index):
            assert y[index] == 0
            continue
        parameter = norm.affine_of(index)
        expected = weight[parameter] * cache.xhat[index]
        assert y[index] == (expected if bias is None else expected + bias[parameter])


# Backward: central differences, and what must hold besides.


def slopes(f: Callable[[Array], float], at: Array) -> Array:
    """∂f/∂a by the five-point central difference, whose error is h⁴ |f⁽⁵⁾| / 30 + O(u |f| / h)."""
    h = 1e-3
    result = np.zeros(at.shape)
    for index in np.ndindex(at.shape):
        step = np.zeros(at.shape)
        step[index] = h
        near, far = f(at + step) - f(at - step), f(at + 2 * step) - f(at - 2 * step)
        result[index] = (8 * near - far) / (12 * h)
    return result


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


def derivative(f: Callable[[Array], float], at: Array | float) -> Array:
    return slopes(f, np.asarray(at, np.float64))


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


# Weights.


@pytest.mark.parametrize(("shape", "dim"), [((3, 4), 0), ((3, 4), 1), ((2, 3, 4), 1), ((5,), 0)])
def test_weight_norm(shape: Index, dim: int) -> None:
    """The lengths are g, the directions those of v; and the gradient is the slope."""
    rng = np.random.default_rng(23)
    v, g, dw = rng.standard_normal(shape), rng.uniform(0.5, 2.0, shape[dim]), rng.standard_normal(shape)
    w, cache = reference.weight_norm(v, g, dim)
    others = tuple(axis for axis in range(len(shape)) if axis != dim)
    close(np.sqrt((w**2).sum(axis=others)), g, atol=8 * U * g.max())
    lengths = np.sqrt((v**2).sum(axis=others, keepdims=True))
    close(w * lengths, v * np.expand_dims(g, others), atol=16 * U * np.abs(v).max() * g.max())
    dv, dgamma, _ = reference.backward(dw, cache)
    assert dgamma is not None
    close(dv, slopes(lambda a: float((dw * reference.weight_norm(a, g, dim)[0]).sum()), v), atol=1e-8)
    root = math.sqrt(v.size // shape[dim])
    close(
        dgamma / root, slopes(lambda a: float((dw * reference.weight_norm(v, a, dim)[0]).sum()), g), atol=1e-8
    )


def test_weight_standardization_is_layer_norm_of_each_filter() -> None:
    weight = np.random.default_rng(24).standard_normal((4, 3, 2))
    atol = 16 * U * 3  # values of up to 3
    close(reference.weight_standardization(weight, EPS)[0], reference.layer_norm(weight, 2, eps=EPS)[0], atol)
    other = reference.weight_standardization(np.moveaxis(weight, 0, 1), EPS, dim=1)[0]
    close(np.moveaxis(other, 1, 0), reference.layer_norm(weight, 2, eps=EPS)[0], atol)


def test_spectral_norm() -> None:
    """The largest singular value is 1; and the gradient is the slope."""
    rng = np.random.default_rng(25)
    w, dy = rng.standard_normal((2, 3, 4))
    y, (u, sigma, v) = reference.spectral_norm(w)
    close(np.linalg.svd(y)[1][:1], [1.0], atol=8 * U)
    close(w @ v, sigma * u, atol=32 * U * sigma)
    expected = slopes(lambda a: float((dy * reference.spectral_norm(a)[0]).sum()), w)
    close(reference.spectral_norm_backward(dy, w), expected, atol=1e-8)  # an SVD errs by a few u more


# Masks.


def test_batch_norm_with_a_mask_is_batch_norm_of_the_valid_values() -> None:
    rng = np.random.default_rng(4)
    x, dy = rng.standard_normal((2, 4, 2, 3))
    weight, bias = rng.standard_normal((2, 2))
    y, cache = reference.batch_norm(x, weight, bias, mask=MASK_2D)
    dx, dweight, dbias = reference.backward(dy, cache)

    def rows(a: Array) -> Array:
        return np.moveaxis(a, 1, -1)[MASK_2D]  # (valid, C)

    y_rows, rows_cache = reference.batch_norm(rows(x), weight, bias)
    dx_rows, dweight_rows, dbias_rows = reference.backward(rows(dy), rows_cache)
    atol = 32 * U * float(np.abs(dy).sum())  # sums in another order, of terms of the size of dy
    close(rows(y), y_rows, atol)
    close(rows(dx), dx_rows, atol)
    close(dweight, dweight_rows, atol)
    close(dbias, dbias_rows, atol)
    padding = np.broadcast_to(~MASK_2D[:, None], x.shape)
    assert_array_equal(y[padding], 0)
    assert_array_equal(dx[padding], 0)


@pytest.mark.parametrize("norm", [norm for norm in NORMS if norm.mask is not None], ids=str)
@pytest.mark.parametrize("padding", [np.nan, np.inf, -1e300])
def test_what_padding_holds_does_not_matter(norm: Norm, padding: float) -> None:
    rng = np.random.default_rng(5)
    x, dy = rng.standard_normal((2, *norm.shape))
    valid = norm.valid()
    weight, bias = norm.parameters(rng)
    results = []
    for fill in (0.0, padding):
        y, cache = norm.forward(np.where(valid, x, fill), weight, bias)
        results.append((y, *reference.backward(np.where(valid, dy, fill), cache)))
    for clean, padded in zip(*results, strict=True):
        assert_array_equal(padded, clean)


@pytest.mark.parametrize("shape", [(0, 3), (0, 3, 2), (2, 3, 0)])
def test_no_values_give_zero_statistics_and_no_warning(shape: Index) -> None:
    y, cache = reference.batch_norm(np.ones(shape), np.ones(3), np.ones(3))
    assert y.shape == shape
    for statistic in (cache.mean, cache.var, cache.count):
        assert_array_equal(statistic, np.zeros(3))
    dx, dweight, dbias = reference.backward(np.ones(shape), cache)
    assert dx.shape == shape
    close(dweight, np.zeros(3), atol=0)
    close(dbias, np.zeros(3), atol=0)


def test_a_batch_that_is_all_padding_is_all_zeros() -> None:
    y, cache = reference.batch_norm(np.ones((2, 3)), np.ones(3), np.ones(3), mask=np.zeros(2, np.bool_))
    assert_array_equal(y, np.zeros((2, 3)))
    assert_array_equal(cache.count, np.zeros(3))


# How the norms are one norm.


def test_the_norms_meet_where_their_axes_do() -> None:
    rng = np.random.default_rng(6)
    x = rng.standard_normal((2, 6, 3, 2))
    weight, bias = rng.standard_normal((2, 6))
    atol = 64 * U  # values of order one, summed in another order
    close(reference.layer_norm(x, 3)[0], reference.group_norm(x, 1)[0], atol)
    close(reference.layer_norm(x, 2)[0], reference.instance_norm(x)[0], atol)
    each_channel, _ = reference.instance_norm(x, weight, bias)
    close(reference.group_norm(x, 6, weight, bias)[0], each_channel, atol)
    for i in range(2):
        close(reference.batch_norm(x[i : i + 1], weight, bias)[0], each_channel[i : i + 1], atol)
    centered = x - x.mean(axis=(2, 3), keepdims=True)
    close(reference.rms_norm(centered, 2, eps=EPS)[0], reference.layer_norm(centered, 2, eps=EPS)[0], atol)


def test_inference_with_the_statistics_of_the_batch_is_training() -> None:
    x = np.random.default_rng(8).standard_normal((4, 3, 5))
    y, cache = reference.batch_norm(x)
    close(reference.batch_norm_inference(x, cache.mean, cache.var)[0], y, atol=8 * U * np.abs(y).max())


# The source articles.


def test_the_worked_example_of_article_004() -> None:
    x = np.array([[0.23, 0.56], [1.26, 0.75], [-2.41, 1.00]]).T  # a batch of two samples of three features
    y, cache = reference.batch_norm(x)
    printed = 5e-3  # the article gives two or three digits
    close(cache.mean, [0.395, 1.005, -0.705], atol=4 * U)
    close(cache.var, [0.027225, 0.065025, 2.907025], atol=16 * U)  # biased: half the difference, squared
    close(cache.unbiased_var, [0.054, 0.130, 5.81], printed)  # what the article gives

    # Two values lie one biased deviation from their mean, 1/√2 of an unbiased one. The norm uses the biased.
    close((x[0] - cache.mean) / np.sqrt(cache.unbiased_var), [-0.71, 0.71, -0.71], printed)
    close(y[0], [-1, 1, -1], printed)
    close(y[0], [-1, 1, -1] / np.sqrt(1 + DEFAULT_EPS / cache.var), atol=16 * U)  # less than 1 by ε alone


@settings(max_examples=50)
@given(x=inputs((4, 3, 2)))
def test_gamma_and_beta_can_restore_the_identity(x: Array) -> None:
    _, cache = reference.batch_norm(x)
    y, _ = reference.batch_norm(x, np.sqrt(cache.var + DEFAULT_EPS), cache.mean)
    close(y, x, atol=16 * U * np.abs(x).max())


def test_batchnorm_forward_and_backward_of_article_000() -> None:
    rng = np.random.default_rng(9)
    x, dout = rng.standard_normal((2, 6, 4))
    gamma, beta = rng.standard_normal((2, 4))
    out, cache = reference.batchnorm_forward(x, gamma, beta)
    dx, dgamma, dbeta = reference.batchnorm_backward(dout, cache)

    # The computational graph, node by node: center, square, average, root, invert, scale.
    centered = x - x.sum(0) / 6
    inverse = 1 / np.sqrt((centered**2).sum(0) / 6 + DEFAULT_EPS)
    dinverse = (dout * gamma * centered).sum(0)
    dcentered = dout * gamma * inverse + 2 * centered * (-0.5 * inverse**3 * dinverse) / 6
    atol = 64 * U * float(np.abs(dout).sum())
    close(out, gamma * centered * inverse + beta, atol)
    close(dx, dcentered - dcentered.sum(0) / 6, atol)
    close(dgamma, (dout * centered * inverse).sum(0), atol)
    close(dbeta, dout.sum(0), atol)

    same, same_cache = reference.batch_norm(x, gamma, beta)
    assert_array_equal(out, same)
    assert_array_equal(dx, reference.backward(dout, same_cache)[0])
    wider = reference.batchnorm_forward(x, gamma, beta, eps=0.5)[0]
    assert_array_equal(wider, reference.batch_norm(x, gamma, beta, eps=0.5)[0])


# Defaults, running statistics and activations, beside torch in float64.


def test_defaults_are_those_of_torch() -> None:
    x = 1e-3 * np.random.default_rng(11).standard_normal((2, 4, 3))  # so small that ε shows
    t, f = torch.from_numpy(x), torch.nn.functional
    for (y, _), expected in [
        (reference.batch_norm(x), f.batch_norm(t, None, None, training=True)),
        (
            reference.batch_norm_inference(x, np.zeros(4), np.full(4, 1e-6)),
            f.batch_norm(t, torch.zeros(4, dtype=torch.float64), torch.full((4,), 1e-6, dtype=torch.float64)),
        ),
        (reference.layer_norm(x, 2), f.layer_norm(t, (4, 3))),
        (reference.rms_norm(1e-5 * x, 1), f.rms_norm(1e-5 * t, (3,))),
        (reference.group_norm(x, 2), f.group_norm(t, 2)),
        (reference.instance_norm(x), f.instance_norm(t)),
    ]:
        close(y, expected.numpy(), atol=64 * U)


def test_running_statistics_are_those_of_torch() -> None:
    rng = np.random.default_rng(10)
    mean, var = np.zeros(3), np.ones(3)
    torch_mean, torch_var = torch.zeros(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64)
    for _ in range(5):
        x = 2 + 3 * rng.standard_normal((4, 3, 2))
        cache = reference.batch_norm(x)[1]
        mean = reference.running_update(mean, cache.mean, momentum=0.3)
        var = reference.running_update(var, cache.unbiased_var, momentum=0.3)
        torch.nn.functional.batch_norm(
            torch.from_numpy(x), torch_mean, torch_var, training=True, momentum=0.3
        )
    close(mean, torch_mean.numpy(), atol=64 * U * 3)  # five rounds of eight-term sums of values about 3
    close(var, torch_var.numpy(), atol=64 * U * 9)


# Misuse.

X = np.zeros((4, 6, 3))
NARROW_MASK = np.ones((4, 1), np.bool_)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: reference.batch_norm(X, weight=np.ones(5)), "weight must have shape (6,), got (5,)"),
        (lambda: reference.layer_norm(X, 2, bias=np.ones(18)), "bias must have shape (6, 3), got (18,)"),
        (
            lambda: reference.batch_norm_inference(X, np.ones(6), np.ones(1)),
            "running_var must have shape (6,)",
        ),
        (lambda: reference.batch_norm(X, mask=NARROW_MASK), "mask must be bool of shape (4, 3), got bool of"),
        (
            lambda: reference.batch_norm(X, mask=np.ones((4, 3))),
            "mask must be bool of shape (4, 3), got float",
        ),
        (lambda: reference.group_norm(X, 4), "divide the channels, got 4 groups and 6 channels"),
        (lambda: reference.rms_norm(X, 4), "normalized_ndim must lie in 1..3, the axes of x, got 4"),
        (
            lambda: reference.backward(X[0], reference.batch_norm(X)[1]),
            "the shape of x, (4, 6, 3), got (6, 3)",
        ),
        (lambda: reference.batchnorm_forward(X, X, X), "x must be N x D, got shape (4, 6, 3)"),
        (lambda: reference.batch_norm(np.ones((1, 2)))[1].unbiased_var, "two or more values, got 1"),
    ],
)
def test_misuse_is_named(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        call()


# Its place in the package.


def imports(source: str) -> Iterator[str]:
    """Every name that a module imports, dotted; a relative import begins with its dots."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            origin = "." * node.level + (node.module or "")
            yield from (f"{origin}.{alias.name}" for alias in node.names)


def test_reference_imports_numpy_alone() -> None:
    roots = {name.split(".")[0] for name in imports((PACKAGE / "reference.py").read_text("utf-8"))}
    assert roots - sys.stdlib_module_names == {"numpy"}


def uses_the_reference(source: str) -> bool:
    return any("reference" in name.split(".") for name in imports(source))


@pytest.mark.parametrize("source", ["import normkit.reference", "from .. import reference as r"])
def test_an_import_of_the_reference_is_seen(source: str) -> None:
    assert uses_the_reference(source)


def test_no_module_of_the_package_imports_the_reference() -> None:
    modules = sorted(PACKAGE.rglob("*.py"))
    assert PACKAGE / "reference.py" in modules
    assert [str(m) for m in modules if uses_the_reference(m.read_text("utf-8"))] == []
