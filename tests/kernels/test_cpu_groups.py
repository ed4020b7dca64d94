"""Group norm and instance norm against the oracle, contiguous and channels last."""

from __future__ import annotations

import cpu_oracle as oracle
import numpy as np
import pytest
import torch
from cpu_oracle import exact, worst

from normkit.kernels import cpu

EPS = 1e-5
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
CASES = [((3, 8, 5, 7), 2), ((2, 48, 20, 20), 8), ((7, 6, 9), 6), ((1, 64, 30, 30), 1), ((5, 12), 3),
         ((2, 80, 8, 8), 2), ((1, 4, 150, 130), 2), ((2, 17, 3, 4, 5), 17)]  # fmt: skip


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "groups"), CASES)
@pytest.mark.parametrize(("mean", "deviation"), [(2, 3), (1e5, 1)])
@pytest.mark.parametrize("centred", [True, False])
def test_group_norm(shape, groups, dtype, channels_last, mean, deviation, centred):
    torch.manual_seed(0)
    N, C = shape[:2]
    x = (
        torch.randn(shape, dtype=torch.float64) * deviation
        + min(mean, 1e3 if dtype == torch.float16 else mean)
    ).to(dtype)
    dy, weight, bias = torch.randn(shape).to(dtype), torch.randn(C).to(dtype), torch.randn(C).to(dtype)
    want = reference(x, groups, weight, bias, dy, centred)
    if channels_last:
        x, dy = (t.movedim(1, -1).contiguous().movedim(-1, 1) for t in (x, dy))
    y, stats = cpu.groups_forward(x, groups, weight, bias, EPS, centred=centred)
    dx, dweight, dbias = cpu.groups_backward(x, dy, stats, weight, bias, EPS, centred=centred)
    u, ulp = oracle.UNIT[dtype], oracle.ULP[dtype]
    size = (abs(want.mean) + np.sqrt(want.var) * (ulp > 0)).reshape(N, groups)  # as for channels
    assert worst(stats[0].numpy(), want.mean.reshape(N, groups), 4 * u * size) <= 1
    assert worst(stats[1].numpy(), want.var.reshape(N, groups), 4 * u * want.var.reshape(N, groups)) <= 1
    assert worst(grouped(y, groups), want.y, want.y_bound) <= 1
    assert worst(grouped(dx, groups), want.dx, want.dx_bound) <= 1
    assert worst(dweight, want.dweight, want.dweight_bound + ulp * abs(want.dweight)) <= 1
    assert worst(dbias, want.dbias, want.dbias_bound + ulp * abs(want.dbias)) <= 1


def grouped(x, groups):
    """(N, G, C / G, S) in the type of the oracle."""
    return exact(x).reshape(x.shape[0], groups, x.shape[1] // groups, -1)


def reference(x, groups, weight, bias, dy, centred):
    C = x.shape[1]
    gamma, beta = (exact(p).reshape(1, groups, C // groups, 1) for p in (weight, bias))
    return oracle.normalize(
        grouped(x, groups), (2, 3), (0, 3), gamma, beta, EPS, x.dtype, grouped(dy, groups), centred=centred
    )


@pytest.mark.parametrize("channels_last", [False, True])
def test_instance_norm_is_batch_norm_of_each_sample(channels_last):
    x, weight, bias = torch.randn(3, 20, 9, 9), torch.randn(20), torch.randn(20)
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    relu = cpu.ACTIVATIONS["relu"]
    y, stats = cpu.groups_forward(x, 20, weight, bias, EPS, relu)
    for n in range(3):
        alone, of_sample, _ = cpu.channels_forward(x[n : n + 1], weight, bias, EPS, relu)
        np.testing.assert_allclose(y[n], alone[0], rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(stats[:2, n], of_sample[:2], rtol=1e-12, atol=1e-12)
