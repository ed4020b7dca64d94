"""The row family on Triton against the oracle: short, whole and long rows, extremes."""

from __future__ import annotations

import cpu_oracle as oracle
import numpy as np
import pytest
import torch
from cpu_oracle import exact, worst
from torch import Tensor
from triton_device import DEVICE, DTYPES

from normkit.kernels import triton as gpu

EPS = 1e-5
# Several rows to a tile, one, the last whole one backward, one that is whole forward alone, a long one.
SIZES = [(1, 1), (3, 7), (70, 16), (33, 65), (19, 1000), (2, 8192), (3, 12000), (2, 20003)]
SPREADS = [(0, 1), (1e3, 1), (1e4, 0.1), (1e6, 1), (0, 1e30), (-3e30, 1e29), (0, 1e-30), (0, 1e-40)]


def check(x: Tensor, centred: bool, parameter_dtype: torch.dtype) -> None:
    _, M = x.shape
    weight, bias = torch.randn(M).to(parameter_dtype), torch.randn(M).to(parameter_dtype)
    bias = bias if centred else None
    dy = torch.randn(x.shape).to(x.dtype)
    beta = exact(bias) if bias is not None else np.zeros(M)
    want = oracle.normalize(
        exact(x), (1,), (0,), exact(weight), beta, EPS, x.dtype, exact(dy), centred=centred
    )
    x, dy, weight = x.to(DEVICE), dy.to(DEVICE), weight.to(DEVICE)
    bias = None if bias is None else bias.to(DEVICE)
    y, stats = gpu.rows_forward(x, M, weight, bias, EPS, centred)
    dx, dweight, dbias = gpu.rows_backward(x, dy, stats, weight, bias, EPS, centred)
    u, half = oracle.UNIT[x.dtype], x.dtype.itemsize == 2
    mean, var = stats[0].cpu().numpy(), stats[1].cpu().numpy()
    size = abs(want.mean) + half * np.sqrt(want.var)  # half types are summed in short runs of float32
    assert worst(mean, want.mean[:, 0], (4 * u * size + oracle.TINY[x.dtype])[:, 0]) <= 1
    assert worst(var, want.var[:, 0], (4 * u * want.var + 1e-300)[:, 0]) <= 1
    assert worst(y.cpu(), want.y, want.y_bound) <= 1
    assert worst(dx.cpu(), want.dx, want.dx_bound) <= 1
    ulp = oracle.ULP[parameter_dtype]
    assert worst(dweight.cpu(), want.dweight, want.dweight_bound + ulp * abs(want.dweight)) <= 1
    if centred:
        assert worst(dbias.cpu(), want.dbias, want.dbias_bound + ulp * abs(want.dbias)) <= 1


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES)
def test_sizes(size, dtype, centred):
    torch.manual_seed(0)
    check((torch.randn(size, dtype=torch.float64) * 2 + 3).to(dtype), centred, dtype)


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize(("mean", "deviation"), SPREADS)
def test_extremes(mean, deviation, centred):
    torch.manual_seed(1)
    check((torch.randn(7, 517, dtype=torch.float64) * deviation + mean).float(), centred, torch.float32)


@pytest.mark.parametrize("value", [0.0, 0.1, 1e30, -7e-39])
def test_constant_rows_give_exactly_beta(value):
    weight, bias = torch.randn(70, device=DEVICE), torch.randn(70, device=DEVICE)
    y, _ = gpu.rows_forward(torch.full((5, 70), value, device=DEVICE), 70, weight, bias, EPS)
    assert torch.equal(y, bias.expand(5, 70))


def test_one_wide_row_among_others():
    """A row that float32 arithmetic cannot hold changes nothing for its neighbours."""
    x = torch.randn(16, 100)
    x[5] *= 1e34
    weight, bias = torch.randn(100), torch.randn(100)
    y, _ = gpu.rows_forward(x.to(DEVICE), 100, weight.to(DEVICE), bias.to(DEVICE), EPS)
    want = oracle.normalize(exact(x), (1,), (0,), exact(weight), exact(bias), EPS, x.dtype)
    assert worst(y.cpu(), want.y, want.y_bound) <= 1
    others = [r for r in range(16) if r != 5]
    alone, _ = gpu.rows_forward(
        x[others].contiguous().to(DEVICE), 100, weight.to(DEVICE), bias.to(DEVICE), EPS
    )
    assert torch.equal(y[others], alone)


def test_without_parameters():
    x = torch.randn(6, 33, device=DEVICE)
    y, stats = gpu.rows_forward(x, 33, None, None, EPS)
    dx, dweight, dbias = gpu.rows_backward(x, x, stats, None, None, EPS)
    one, zero = torch.ones(33, device=DEVICE), torch.zeros(33, device=DEVICE)
    assert torch.equal(y, gpu.rows_forward(x, 33, one, zero, EPS)[0])
    assert torch.equal(dx, gpu.rows_backward(x, x, stats, one, zero, EPS)[0])
    assert dweight is None
    assert dbias is None
