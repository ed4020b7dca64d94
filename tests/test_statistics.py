"""Moments merge into what one pass gives, whatever the cut; the four estimators against their definitions."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from normkit import BatchNorm1d, Moments
from normkit.statistics import (
    CumulativeAverage,
    Exact,
    ExponentialAverage,
    RandomBatch,
    pooled,
    update_running_,
)

U = 2.0**-53


def exact_moments(values: list[float]) -> tuple[Fraction, Fraction]:
    """Mean and m2 in rational arithmetic: no rounding at all."""
    numbers = [Fraction(v) for v in values]
    mean = sum(numbers) / len(numbers)
    return mean, sum((v - mean) ** 2 for v in numbers)


def assert_right(moments: Moments, values: list[float]) -> None:
    mean, m2 = exact_moments(values)
    largest = max(abs(v) for v in values)
    n = len(values)
    assert moments.count == n
    assert abs(moments.mean.item() - mean) <= 4 * U * largest
    # Distances from the mean are rounded at the magnitude of the values, then squared.
    spread = float(m2) ** 0.5
    assert abs(moments.m2.item() - m2) <= 16 * U * float(m2) + 16 * U * largest * spread * n**0.5 + (
        64 * n * (U * largest) ** 2
    )


floats = st.floats(-1e6, 1e6, width=32)


@given(st.lists(floats, min_size=1, max_size=40))
def test_of_is_right(values: list[float]) -> None:
    assert_right(Moments.of(torch.tensor(values, dtype=torch.float64)), values)


@given(st.lists(st.lists(floats, max_size=12), min_size=1, max_size=6).filter(lambda c: any(c)))
def test_merge_is_right_whatever_the_chunks(chunks: list[list[float]]) -> None:
    """Empty chunks merge as nothing."""
    first, *others = (Moments.of(torch.tensor(c, dtype=torch.float64)) for c in chunks)
    assert_right(first.merge(*others), [v for c in chunks for v in c])


@given(st.integers(0, 2**32 - 1))
def test_mask_leaves_the_valid_values(seed: int) -> None:
    rng = np.random.default_rng(seed)
    x, mask = rng.normal(3, 2, (6, 4)), rng.random((6, 4)) < 0.5
    moments = Moments.of(torch.from_numpy(np.where(mask, x, np.nan)), dim=0, mask=torch.from_numpy(mask))
    for column in range(4):
        values = x[mask[:, column], column]
        assert moments.count[column] == len(values)
        assert moments.mean[column].item() == pytest.approx(values.mean() if len(values) else 0, rel=1e-14)


def test_axes_and_dtype() -> None:
    x = torch.randn(4, 3, 5, 6, dtype=torch.bfloat16)
    moments = Moments.of(x, dim=(0, 2, 3))
    assert moments.mean.dtype == moments.m2.dtype == moments.count.dtype == torch.float64
    wide = x.double()
    torch.testing.assert_close(moments.mean, wide.mean((0, 2, 3)), rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(moments.var(unbiased=True), wide.var((0, 2, 3)), rtol=1e-13, atol=0)
    torch.testing.assert_close(
        moments.var(unbiased=False), wide.var((0, 2, 3), correction=0), rtol=1e-13, atol=0
    )


def test_large_mean_keeps_the_variance() -> None:
    """E[x²] - E[x]² would keep no digit of it."""
    x = torch.randn(10_000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    near, far = Moments.of(x), Moments.of(x + 2.0**40)
    # x + 2^40 rounds x at 2^-12; that error, averaged over the sample, is what may differ.
    assert far.var(unbiased=True).item() == pytest.approx(near.var(unbiased=True).item(), rel=1e-4)


BATCHES = [torch.randn(n, 3, generator=torch.Generator().manual_seed(n)) * n + n for n in (4, 8, 2, 6)]


def fed(estimator: object) -> tuple[torch.Tensor, torch.Tensor]:
    for batch in BATCHES:
        estimator.update(Moments.of(batch, dim=0))
    return estimator.estimate()


def test_exponential_average_is_momentum() -> None:
    layer = torch.nn.BatchNorm1d(3, momentum=0.3, dtype=torch.float64)
    for batch in BATCHES:
        layer(batch.double())
    mean, var = fed(ExponentialAverage(momentum=0.3))
    torch.testing.assert_close(mean, layer.running_mean)
    torch.testing.assert_close(var, layer.running_var)


def test_cumulative_average_is_the_plain_average_of_batches() -> None:
    mean, var = fed(CumulativeAverage())
    torch.testing.assert_close(mean, torch.stack([b.double().mean(0) for b in BATCHES]).mean(0))
    torch.testing.assert_close(var, torch.stack([b.double().var(0) for b in BATCHES]).mean(0))


def test_exact_is_the_whole_data_set() -> None:
    """The variance between batches counts, which both averages leave out."""
    whole = torch.cat(BATCHES).double()
    mean, var = fed(Exact())
    torch.testing.assert_close(mean, whole.mean(0))
    torch.testing.assert_close(var, whole.var(0))
    assert (var > fed(CumulativeAverage())[1]).all()


def test_random_batch_takes_each_with_the_same_chance() -> None:
    generator = torch.Generator().manual_seed(0)
    means = [b.double().mean(0) for b in BATCHES]
    draws = 2000
    counts = [0] * len(BATCHES)
    for _ in range(draws):
        mean, var = fed(RandomBatch(generator))
        (index,) = [i for i, m in enumerate(means) if torch.allclose(m, mean)]
        torch.testing.assert_close(var, BATCHES[index].double().var(0))
        counts[index] += 1
    # Four standard deviations of a binomial count around a quarter of the draws.
    assert all(abs(c - draws / 4) < 4 * (draws * 3 / 16) ** 0.5 for c in counts)


@pytest.mark.parametrize("estimator", [ExponentialAverage(), CumulativeAverage(), Exact(), RandomBatch()])
def test_no_batch_gives_no_estimate(estimator: object) -> None:
    with pytest.raises(RuntimeError, match="at least one batch, got none"):
        estimator.estimate()


def test_update_running_refuses_before_it_changes() -> None:
    mean, var = torch.zeros(2), torch.ones(2)
    with pytest.raises(ValueError, match="needs num_batches_tracked"):
        update_running_(mean, var, torch.ones(2, 2).double(), 8, None)
    assert torch.equal(mean, torch.zeros(2))
    assert torch.equal(var, torch.ones(2))


def test_low_precision_buffers_round_once() -> None:
    """bfloat16 buffers are moved in float64 and rounded at the end."""
    mean = torch.full((1,), 100.0, dtype=torch.bfloat16)
    update_running_(mean, mean.clone(), torch.tensor([[101.0], [1.0]]).double(), 8, 0.5)
    assert mean.item() == torch.tensor(100.5).bfloat16().item()


def test_autograd_sees_that_buffers_were_moved() -> None:
    """A graph that kept running statistics must not use them after they have moved, whichever kernel moved them."""
    layer = BatchNorm1d(3).eval()
    y = layer(torch.randn(8, 3, requires_grad=True))
    layer.train()(torch.randn(8, 3))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@pytest.mark.parametrize("dim", [0, 1])
@pytest.mark.parametrize("uneven", [False, True])
def test_pooled_is_the_moments_of_all_values(dim: int, uneven: bool) -> None:
    """As `Moments.of` of the values themselves, and as differentiable as a formula is."""
    x = torch.randn(3, 4, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 100
    size = torch.tensor([10, 0, 3]) if uneven else torch.tensor([10, 10, 10])
    valid = (torch.arange(10) < size[:, None])[:, None].expand(x.shape)
    sets, together = Moments.of(x, 2, mask=valid), Moments.of(x, (dim, 2), mask=valid)
    count = sets.count[:, :1] if uneven else 10
    mean, var = pooled(sets.mean, sets.m2 / sets.count.clamp(min=1), count, dim)
    filled = together.count > 0
    for got, expected in ((mean, together.mean), (var, together.var(unbiased=False))):
        torch.testing.assert_close(got.squeeze(dim)[filled], expected[filled], rtol=1e-13, atol=1e-13)
    leaves = [t.clone().requires_grad_() for t in (sets.mean, sets.m2)]
    assert torch.autograd.gradcheck(lambda m, v: pooled(m, v, count, dim), leaves)


def test_pooled_of_no_sets_is_zero() -> None:
    mean, var = pooled(torch.zeros(0, 4), torch.zeros(0, 4), 5, 0)
    assert torch.equal(torch.cat((mean, var)), torch.zeros(2, 4))
