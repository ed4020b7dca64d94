"""The row family (layer norm, RMS norm) against the oracle: dtypes, short and long rows, extremes."""

from __future__ import annotations

import cpu_oracle as oracle
import numpy as np
import pytest
import torch
from cpu_oracle import exact, worst
from torch import Tensor

from normkit.kernels import cpu

EPS = 1e-5
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
SIZES = [(1, 1), (3, 7), (70, 16), (33, 65), (301, 1000), (2, 50003), (1, 100000), (9, 4097)]
SPREADS = [(0, 1), (1e3, 1), (1e4, 0.1), (1e6, 1), (0, 1e30), (-3e30, 1e29), (0, 1e-30), (0, 1e-40)]


def check(x: Tensor, centred: bool, parameter_dtype: torch.dtype) -> None:
    _, M = x.shape
    weight, bias = torch.randn(M).to(parameter_dtype), torch.randn(M).to(parameter_dtype)
    bias = bias if centred else None
    dy = torch.randn(x.shape).to(x.dtype)
    real = exact(x)
    gamma = exact(weight).astype(real.dtype)
    beta = exact(bias).astype(real.dtype) if centred else 0 * gamma
    want = oracle.normalize(real, (1,), (0,), gamma, beta, EPS, x.dtype, exact(dy), centred=centred)
    y, stats = cpu.rows_forward(x, M, weight, bias, EPS, centred)
    dx, dweight, dbias = cpu.rows_backward(x, dy, stats, weight, bias, EPS, centred)
    u, half = oracle.UNIT[x.dtype], x.dtype.itemsize == 2
    mean, var = stats[0].numpy().astype(real.dtype) + stats[2].numpy(), stats[1].numpy()
    size = abs(want.mean) + half * np.sqrt(want.var)  # half types are summed in float32, about a shift
    assert worst(mean, want.mean[:, 0], (4 * u * size + oracle.TINY[x.dtype])[:, 0]) <= 1
    assert worst(var, want.var[:, 0], (4 * u * want.var + 1e-300)[:, 0]) <= 1
    assert worst(y, want.y, want.y_bound) <= 1
    assert worst(dx, want.dx, want.dx_bound) <= 1
    ulp = oracle.ULP[parameter_dtype]
    assert worst(dweight, want.dweight, want.dweight_bound + ulp * abs(want.dweight)) <= 1
    if centred:
        assert worst(dbias, want.dbias, want.dbias_bound + ulp * abs(want.dbias)) <= 1


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES)
def test_sizes(size, dtype, centred):
    torch.manual_seed(0)
    x = (torch.randn(size, dtype=torch.float64) * 2 + 3).to(dtype)
    check(x, centred, dtype)
    if dtype not in (torch.float32, torch.float64):
        check(x, centred, torch.float32)


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize(("mean", "deviation"), SPREADS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_extremes(dtype, mean, deviation, centred):
    torch.manual_seed(1)
    check((torch.randn(37, 517, dtype=torch.float64) * deviation + mean).to(dtype), centred, dtype)


@pytest.mark.parametrize("size", [(2201, 1003), (2100, 1024)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_outputs_beyond_the_cache(size, dtype):
    """Streaming stores want aligned vectors; rows of odd length start anywhere."""
    torch.manual_seed(2)
    times = 4 // dtype.itemsize
    check((torch.randn(times * size[0], size[1]) + 1).to(dtype), True, torch.float32)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("start", [1e4, -3.0])
def test_half_rows_that_start_far_from_their_mean(dtype, start):
    """The shift is taken from the first elements: where that was a bad choice, the row is summed again in float64."""
    torch.manual_seed(3)
    x = torch.randn(9, 2000)
    x[1::2, :16] = start
    check(x.to(dtype), True, torch.float32)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_outputs_are_rounded_to_nearest_even(dtype):
    """A constant row gives its float32 bias: every upper half, with lower halves about each tie."""
    upper = torch.arange(1 << 16, dtype=torch.int64) << 16
    lower = torch.tensor([0, 1, 0x0FFF, 0x1000, 0x1001, 0x7FFF, 0x8000, 0x8001, 0xFFFF])
    patterns = (upper[:, None] | lower).flatten()
    bias = torch.where(patterns >= 1 << 31, patterns - (1 << 32), patterns).int().view(torch.float32)
    y, _ = cpu.rows_forward(
        torch.zeros(1, len(bias), dtype=dtype), len(bias), torch.ones_like(bias), bias, EPS
    )
    want = bias.to(dtype)
    assert torch.equal(y[0].isnan(), bias.isnan())
    assert torch.equal(y[0][~bias.isnan()], want[~bias.isnan()])


def test_one_wide_row_among_others():
    """A row that f32 arithmetic cannot hold changes nothing for its neighbours."""
    x = torch.randn(16, 100)
    x[5] *= 1e34
    weight, bias = torch.randn(100), torch.randn(100)
    y, stats = cpu.rows_forward(x, 100, weight, bias, EPS)
    want = oracle.normalize(exact(x), (1,), (0,), exact(weight), exact(bias), EPS, x.dtype)
    assert worst(y, want.y, want.y_bound) <= 1
    others = [r for r in range(16) if r != 5]
    alone, _ = cpu.rows_forward(x[others].contiguous(), 100, weight, bias, EPS)
    assert torch.equal(y[others], alone)
    assert stats.shape == (3, 16)


@pytest.mark.parametrize("value", [0.0, 0.1, 1e30, -7e-39])
def test_constant_rows_give_exactly_beta(value):
    bias = torch.randn(70)
    y, _ = cpu.rows_forward(torch.full((5, 70), value), 70, torch.randn(70), bias, EPS)
    assert torch.equal(y, bias.expand(5, 70))


def test_without_parameters():
    x = torch.randn(6, 33)
    y, stats = cpu.rows_forward(x, 33, None, None, EPS)
    dx, dweight, dbias = cpu.rows_backward(x, x, stats, None, None, EPS)
    one, zero = torch.ones(33), torch.zeros(33)
    assert torch.equal(y, cpu.rows_forward(x, 33, one, zero, EPS)[0])
    assert torch.equal(dx, cpu.rows_backward(x, x, stats, one, zero, EPS)[0])
    assert dweight is None
    assert dbias is None
