"""The specification of norms that mix statistics: finite differences, loops over scalars, degenerate cases."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from normkit import reference
from normkit.reference import Array

U = 2.0**-53
EPS = 1e-3
SHAPE = (3, 4, 2, 3)
RNG = np.random.default_rng(0)
WEIGHT, BIAS, RHO = RNG.uniform(0.5, 2, 4), RNG.standard_normal(4), RNG.uniform(0.1, 0.9, 4)
MEAN, VAR = RNG.standard_normal(4), RNG.uniform(0.5, 2, 4)
LOGITS = RNG.standard_normal((2, 3))
MASK = np.array([[[1, 1, 0], [1, 0, 1]], [[1, 1, 1], [1, 1, 1]], [[0, 0, 1], [0, 0, 0]]], np.bool_)

# name: (function of x and the learned arrays, the learned arrays in the order of the gradients)
Norm = tuple[Callable[..., tuple[Array, object]], list[Array]]
AFFINE, SWITCH, GATE = [WEIGHT, BIAS], [WEIGHT, BIAS, *LOGITS], [WEIGHT, BIAS, RHO]
LABELS, CLASSES = np.array([2, 0, 2]), [RNG.uniform(0.5, 2, (3, 4)), RNG.standard_normal((3, 4))]


def norms(mask: np.ndarray | None) -> dict[str, Norm]:
    kwargs = {"eps": EPS, "mask": mask}
    given = {**kwargs, "running": (MEAN, VAR)}
    return {
        "switch": (lambda *a: reference.switch_norm(*a, **kwargs), SWITCH),
        "switch-inference": (lambda *a: reference.switch_norm(*a, **given), SWITCH),
        "batch-instance": (lambda *a: reference.batch_instance_norm(*a, **kwargs), GATE),
        "batch-instance-inference": (lambda *a: reference.batch_instance_norm(*a, **given), GATE),
        "virtual": (lambda x, *a: reference.virtual_batch_norm(x, MEAN, VAR, 5, *a, **kwargs), AFFINE),
        "adaptive": (lambda x, *a: reference.adaptive_batch_norm(x, MEAN, VAR, 4.0, *a, **kwargs), AFFINE),
        "adaptive-sample": (
            lambda x, *a: reference.adaptive_batch_norm(x, MEAN, VAR, 4.0, *a, **kwargs, per_sample=True),
            AFFINE,
        ),
        "conditional": (
            lambda x, *a: reference.conditional_norm(reference.batch_norm, x, LABELS, *a, **kwargs),
            CLASSES,
        ),
    }


every_norm = pytest.mark.parametrize("name", list(norms(None)))
every_mask = pytest.mark.parametrize("mask", [None, MASK], ids=["whole", "masked"])


def close(actual: Array | None, expected: Array, atol: float) -> None:
    assert actual is not None
    assert_allclose(actual, expected, rtol=0, atol=atol)


def slopes(f: Callable[[Array], float], at: Array) -> Array:
    """∂f/∂a by the five-point central difference, whose error is h⁴ |f⁽⁵⁾| / 30 + O(u |f| / h)."""
    h, result = 1e-3, np.zeros(at.shape)
    for index in np.ndindex(at.shape):
        step = np.zeros(at.shape)
        step[index] = h
        near, far = f(at + step) - f(at - step), f(at + 2 * step) - f(at - 2 * step)
        result[index] = (8 * near - far) / (12 * h)
    return result


@every_norm
@every_mask
def test_backward_is_the_slope_of_forward(name: str, mask: np.ndarray | None) -> None:
    forward, learned = norms(mask)[name]
    rng = np.random.default_rng(1)
    # Distinct multiples of 1/4 keep every deviation, and so the higher derivatives, of order one.
    x, dy = rng.permutation(np.prod(SHAPE)).reshape(SHAPE) / 4, rng.standard_normal(SHAPE)
    arrays = [x, *learned]
    gradients = reference.backward(dy, forward(*arrays)[1])
    assert len(gradients) == len(arrays)
    for i, gradient in enumerate(gradients):

        def loss(a: Array, i: int = i) -> float:
            return float((dy * forward(*arrays[:i], a, *arrays[i + 1 :])[0]).sum())

        # h⁴ = 1e-12 and u / h = 1e-13, times derivatives and a loss that stay below 1e4: one valid value in a
        # sample has no deviation, so that √ε divides.
        close(gradient, slopes(loss, arrays[i]), atol=1e-8)


@every_norm
@pytest.mark.parametrize("padding", [np.nan, np.inf, -1e300])
def test_what_padding_holds_does_not_matter(name: str, padding: float) -> None:
    forward, learned = norms(MASK)[name]
    x, dy = np.random.default_rng(2).standard_normal((2, *SHAPE))
    valid = np.broadcast_to(MASK[:, None], SHAPE)
    results = []
    for fill in (0.0, padding):
        y, cache = forward(np.where(valid, x, fill), *learned)
        results.append((y, *reference.backward(np.where(valid, dy, fill), cache)))
    for clean, padded in zip(*results, strict=True):
        assert_array_equal(padded, clean)
    assert_array_equal(results[0][0][~valid], 0)
    assert_array_equal(results[0][1][~valid], 0)


def moments(values: Sequence[float]) -> tuple[float, float]:
    mean = sum(values) / len(values)
    return mean, sum((v - mean) ** 2 for v in values) / len(values)


def test_switch_norm_is_its_equation() -> None:
    """Element by element, each statistic from a list of the values that share it."""
    x = np.random.default_rng(3).standard_normal(SHAPE)
    a, b = (np.exp(w) / np.exp(w).sum() for w in LOGITS)
    y, _ = reference.switch_norm(x, WEIGHT, BIAS, *LOGITS, eps=EPS)
    for n, c, i, j in np.ndindex(SHAPE):
        parts = [moments(list(s.ravel())) for s in (x[n, c], x[n], x[:, c])]
        mean = sum(share * part[0] for share, part in zip(a, parts, strict=True))
        var = sum(share * part[1] for share, part in zip(b, parts, strict=True))
        expected = WEIGHT[c] * (x[n, c, i, j] - mean) / np.sqrt(var + EPS) + BIAS[c]
        assert abs(y[n, c, i, j] - expected) <= 64 * U * 10


@pytest.mark.parametrize("k", range(3))
def test_switch_norm_with_one_hot_weights_is_that_norm(k: int) -> None:
    x = np.random.default_rng(4).standard_normal(SHAPE)
    logits = np.where(np.arange(3) == k, 0.0, -np.inf)
    y, _ = reference.switch_norm(x, WEIGHT, BIAS, logits, logits, eps=EPS)
    expected = (
        reference.instance_norm(x, WEIGHT, BIAS, EPS),
        reference.group_norm(x, 1, WEIGHT, BIAS, EPS),
        reference.batch_norm(x, WEIGHT, BIAS, EPS),
    )[k][0]
    close(y, expected, atol=64 * U)


def test_switch_norm_of_vectors_has_no_instance_part() -> None:
    x = np.random.default_rng(5).standard_normal((5, 4))
    y, _ = reference.switch_norm(x, None, None, [9.0, 0.0, 0.0], [9.0, -np.inf, 0.0], eps=EPS)
    mean = (x.mean(1, keepdims=True) + x.mean(0)) / 2
    close(y, (x - mean) / np.sqrt(x.var(0) + EPS), atol=64 * U)


@pytest.mark.parametrize("rho", [0.0, 1.0])
def test_batch_instance_norm_at_its_ends(rho: float) -> None:
    x = np.random.default_rng(6).standard_normal(SHAPE)
    y, _ = reference.batch_instance_norm(x, WEIGHT, BIAS, np.full(4, rho), EPS)
    norm = reference.batch_norm if rho else reference.instance_norm
    close(y, norm(x, WEIGHT, BIAS, EPS)[0], atol=8 * U)


def test_virtual_batch_norm_is_batch_norm_of_the_reference_and_the_sample() -> None:
    """Not of moments but of the values themselves: each sample appended to the reference batch."""
    rng = np.random.default_rng(7)
    batch, x = rng.standard_normal((5, *SHAPE[1:])), rng.standard_normal(SHAPE)
    mean, var = batch.mean((0, 2, 3)), batch.var((0, 2, 3))
    y, _ = reference.virtual_batch_norm(x, mean, var, 5, WEIGHT, BIAS, EPS)
    for n in range(len(x)):
        together, _ = reference.batch_norm(np.concatenate([batch, x[n : n + 1]]), WEIGHT, BIAS, EPS)
        close(y[n], together[-1], atol=64 * U)


def test_adaptive_batch_norm_between_its_ends() -> None:
    x = np.random.default_rng(8).standard_normal(SHAPE)
    args = (x, MEAN, VAR)
    close(reference.adaptive_batch_norm(*args, 0.0)[0], reference.batch_norm(x)[0], atol=8 * U)
    inference = reference.batch_norm_inference(*args)[0]
    close(reference.adaptive_batch_norm(*args, np.inf)[0], inference, atol=8 * U)
    # N = n = 3: halfway.
    mean, var = (MEAN + x.mean((0, 2, 3))) / 2, (VAR + x.var((0, 2, 3))) / 2
    halfway = reference.batch_norm_inference(x, mean, var)[0]
    close(reference.adaptive_batch_norm(*args, 3.0)[0], halfway, atol=32 * U)
    alone = reference.adaptive_batch_norm(x[:1], MEAN, VAR, 3.0)[0]
    close(reference.adaptive_batch_norm(*args, 3.0, per_sample=True)[0][:1], alone, atol=32 * U)
