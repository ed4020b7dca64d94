"""Group norm and instance norm on Triton against the oracle, contiguous and channels last."""

from __future__ import annotations

import cpu_oracle as oracle
import numpy as np
import pytest
import torch
from cpu_oracle import exact, worst
from triton_device import DEVICE, laid_out

from normkit.kernels import triton as gpu
from normkit.kernels.codes import ACTIVATIONS

EPS = 1e-5
CASES = [((3, 8, 5, 7), 2), ((2, 6, 9), 6), ((1, 4, 30, 30), 1), ((5, 12), 3), ((2, 4, 3, 4, 5), 4)]


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("shape", "groups"), CASES)
@pytest.mark.parametrize("centred", [True, False])
def test_group_norm(shape, groups, dtype, channels_last, centred):
    torch.manual_seed(0)
    N, C = shape[:2]
    x = (torch.randn(shape, dtype=torch.float64) * 3 + 2).to(dtype)
    dy, weight, bias = torch.randn(shape).to(dtype), torch.randn(C).to(dtype), torch.randn(C).to(dtype)
    gamma, beta = (exact(p).reshape(1, groups, C // groups, 1) for p in (weight, bias))
    want = oracle.normalize(
        grouped(x, groups), (2, 3), (0, 3), gamma, beta, EPS, dtype, grouped(dy, groups), centred=centred
    )
    x, dy, weight, bias = (
        laid_out(x, channels_last),
        laid_out(dy, channels_last),
        weight.to(DEVICE),
        bias.to(DEVICE),
    )
    y, stats = gpu.groups_forward(x, groups, weight, bias, EPS, centred=centred)
    dx, dweight, dbias = gpu.groups_backward(x, dy, stats, weight, bias, EPS, centred=centred)
    u, ulp = oracle.UNIT[dtype], oracle.ULP[dtype]
    size = (abs(want.mean) + np.sqrt(want.var) * (ulp > 0)).reshape(N, groups)  # as for channels
    assert worst(stats[0].cpu().numpy(), want.mean.reshape(N, groups), 4 * u * size) <= 1
    assert (
        worst(stats[1].cpu().numpy(), want.var.reshape(N, groups), 4 * u * want.var.reshape(N, groups)) <= 1
    )
    assert worst(grouped(y.cpu(), groups), want.y, want.y_bound) <= 1
    assert worst(grouped(dx.cpu(), groups), want.dx, want.dx_bound) <= 1
    assert worst(dweight.cpu(), want.dweight, want.dweight_bound + ulp * abs(want.dweight)) <= 1
    assert worst(dbias.cpu(), want.dbias, want.dbias_bound + ulp * abs(want.dbias)) <= 1


def grouped(x, groups):
    """(N, G, C / G, S) in the type of the oracle."""
    return exact(x).reshape(x.shape[0], groups, x.shape[1] // groups, -1)


def test_instance_norm_is_batch_norm_of_each_sample():
    x, weight, bias = (torch.randn(s, device=DEVICE) for s in ((3, 4, 9, 9), 4, 4))
    y, stats = gpu.groups_forward(x, 4, weight, bias, EPS, ACTIVATIONS["relu"])
    for n in range(3):
        alone, of_sample, _ = gpu.channels_forward(x[n : n + 1], weight, bias, EPS, ACTIVATIONS["relu"])
        assert torch.equal(y[n : n + 1], alone)
        assert torch.equal(stats[:, n], of_sample)
