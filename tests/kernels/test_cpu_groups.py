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
    C = shape[1]
    x = (
        torch.randn(shape, dtype=torch.float64) * deviation
        + min(mean, 1e3 if dtype == torch.float16 else mean)
    ).to(dtype)
    dy, weight, bias = torch.randn(shape).to(dtype), torch.randn(C).to(dtype), torch.randn(C).to(dtype)
    if channels_last:
        x, dy = (t.movedim(1, -1).contiguous().movedim(-1, 1) for t in (x, dy))
    check(x, dy, groups, weight, bias, centred)


def check(x, dy, groups, weight, bias, centred=True):
    """Forward, statistics and gradients, against the oracle."""
    N, dtype = x.shape[0], x.dtype
    ones, zeros = torch.ones(x.shape[1], dtype=dtype), torch.zeros(x.shape[1], dtype=dtype)
    want = reference(
        x, groups, ones if weight is None else weight, zeros if bias is None else bias, dy, centred
    )
    y, stats = cpu.groups_forward(x, groups, weight, bias, EPS, centred=centred)
    dx, dweight, dbias = cpu.groups_backward(x, dy, stats, weight, bias, EPS, centred=centred)
    u, ulp = oracle.UNIT[dtype], oracle.ULP[dtype]
    size = (abs(want.mean) + np.sqrt(want.var) * (ulp > 0)).reshape(N, groups)  # as for channels
    assert worst(stats[0].numpy(), want.mean.reshape(N, groups), 4 * u * size) <= 1
    assert worst(stats[1].numpy(), want.var.reshape(N, groups), 4 * u * want.var.reshape(N, groups)) <= 1
    assert worst(grouped(y, groups), want.y, want.y_bound) <= 1
    assert worst(grouped(dx, groups), want.dx, want.dx_bound) <= 1
    assert (dweight is None) == (weight is None)
    assert (dbias is None) == (bias is None)
    if dweight is not None:
        assert worst(dweight, want.dweight, want.dweight_bound + ulp * abs(want.dweight)) <= 1
    if dbias is not None:
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


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("groups", [1, 3, 6, 12])
def test_planes_of_every_size(dtype, groups):
    """Planes that end anywhere in a vector, with either parameter and without."""
    torch.manual_seed(1)
    for S in [*range(1, 67), 121, 127, 128, 129, 196, 257]:
        x, dy = torch.randn(3, 12, S).to(dtype), torch.randn(3, 12, S).to(dtype)
        weight, bias = (None if S % k == 0 else torch.randn(12).to(dtype) for k in (3, 5))
        check(x + 1, dy, groups, weight, bias)


@pytest.mark.parametrize("channels", [1, 2, 3, 15, 16, 17, 33])
@pytest.mark.parametrize("dtype", DTYPES)
def test_groups_of_every_size(dtype, channels):
    """Channels of a group that end anywhere in a vector of channels; parameters in f32, as under autocast."""
    torch.manual_seed(2)
    x, dy = torch.randn(2, 5 * channels, 7, 7).to(dtype), torch.randn(2, 5 * channels, 7, 7).to(dtype)
    check(x, dy, 5, torch.randn(5 * channels).to(dtype), torch.randn(5 * channels).to(dtype))
    own = torch.float64 if dtype == torch.float64 else torch.float32
    weight, bias = (torch.randn(5 * channels).to(dtype).to(own) for _ in range(2))
    check(x, dy, 5, weight, bias)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(
    ("mean", "deviation", "size"), [(1e6, 1, 1), (0, 1e30, 1), (0, 1e-40, 1), (0, 1, 1e-38), (0, 1, 1e36)]
)
def test_groups_at_the_ends_of_the_range(mean, deviation, size, dtype):
    """One group of four; of another only one channel's weight."""
    torch.manual_seed(3)
    x, dy = torch.randn(2, 20, 7, 7, dtype=torch.float64), torch.randn(2, 20, 7, 7).to(dtype)
    x[:, 5:10] = x[:, 5:10] * deviation + mean
    weight, bias = torch.randn(20, dtype=torch.float64), torch.randn(20).to(dtype)
    weight[12] *= size
    check(x.to(dtype), dy, 4, weight.to(dtype), bias)


@pytest.mark.parametrize("name", ["relu", "silu", "hardswish"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_activation_of_groups(name, dtype):
    """Those of instance norm with the statistics of the groups, which has them from its own way through memory."""
    torch.manual_seed(4)
    x, dy = torch.randn(3, 12, 7, 7).to(dtype), torch.randn(3, 12, 7, 7).to(dtype)
    weight, bias = torch.randn(12).to(dtype), torch.randn(12).to(dtype)
    code, u = cpu.ACTIVATIONS[name], oracle.UNIT[dtype]
    y, stats = cpu.groups_forward(x, 4, weight, bias, EPS, code)
    z = reference(x, 4, weight, bias, dy, True)
    value, slope = oracle.activation(name, z.y.astype(np.float64))
    ulp = oracle.ULP[dtype]
    assert worst(grouped(y, 4), value, 1.5 * z.y_bound + 8 * u * (1 + abs(value)) + ulp * abs(value)) <= 1
    dx, dweight, dbias = cpu.groups_backward(x, dy, stats, weight, bias, EPS, code)
    exact_z = z.y_bound.astype(np.float64) - ulp * abs(z.y) + 8 * u  # inside, z is not rounded to a half type
    gamma, beta = (exact(p).reshape(1, 4, 3, 1) for p in (weight, bias))
    dz = grouped(dy, 4) * slope
    want = oracle.normalize(grouped(x, 4), (2, 3), (0, 3), gamma, beta, EPS, dtype, dz)
    off = (abs(grouped(dy, 4)) * exact_z).max()
    deviation = np.sqrt(want.var + EPS)
    share = abs(gamma).max() / deviation * off
    assert worst(grouped(dx, 4), want.dx, want.dx_bound + share * (2 + 2 * abs(z.y - beta))) <= 1
    n = 3 * 49
    assert worst(dweight, want.dweight, want.dweight_bound + 4 * n * off + ulp * abs(want.dweight)) <= 1
    assert worst(dbias, want.dbias, want.dbias_bound + n * off + ulp * abs(want.dbias)) <= 1


@pytest.mark.parametrize("dtype", DTYPES)
def test_bits_of_a_group_are_its_own(dtype):
    """Wherever x lies, whatever is beside it: other samples, what is not finite in another group, or its weight."""
    torch.manual_seed(5)
    x, dy = torch.randn(9, 60, 7, 7).to(dtype), torch.randn(9, 60, 7, 7).to(dtype)
    weight, bias = torch.randn(60).to(dtype), torch.randn(60).to(dtype)
    y, stats = cpu.groups_forward(x, 4, weight, bias, EPS)
    dx = cpu.groups_backward(x, dy, stats, weight, bias, EPS)[0]
    for n in range(9):
        memory = torch.empty(x[0].numel() + n, dtype=dtype)
        moved = memory[n:].view(1, 60, 7, 7).copy_(x[n])
        alone, of_it = cpu.groups_forward(moved, 4, weight, bias, EPS)
        assert torch.equal(alone[0], y[n])
        assert torch.equal(of_it[:, 0], stats[:, n])
        assert torch.equal(cpu.groups_backward(moved, dy[n : n + 1], of_it, weight, bias, EPS)[0][0], dx[n])
    x[:, 20, 3, 3], weight[25] = float("nan"), float("inf")
    mixed, mixed_stats = cpu.groups_forward(x, 4, weight, bias, EPS)
    mixed_dx = cpu.groups_backward(x, dy, mixed_stats, weight, bias, EPS)[0]
    for got, wanted in ((mixed, y), (mixed_dx, dx)):
        assert torch.equal(got[:, :15], wanted[:, :15])
        assert torch.equal(got[:, 30:], wanted[:, 30:])
        assert got[:, 15:30].isnan().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_groups_beyond_the_cache(dtype):
    """Outputs that are streamed past it are those of each sample, which are not."""
    torch.manual_seed(6)
    shape = (32 if dtype == torch.float32 else 64, 1024, 9, 9)
    x, dy = torch.randn(shape).to(dtype), torch.randn(shape).to(dtype)
    weight, bias = torch.randn(1024).to(dtype), torch.randn(1024).to(dtype)
    y, stats = cpu.groups_forward(x, 32, weight, bias, EPS)
    dx = cpu.groups_backward(x, dy, stats, weight, bias, EPS)[0]
    for n in range(0, shape[0], 8):
        alone, of_it = cpu.groups_forward(x[n : n + 1], 32, weight, bias, EPS)
        assert torch.equal(alone[0], y[n])
        assert torch.equal(
            cpu.groups_backward(x[n : n + 1], dy[n : n + 1], of_it, weight, bias, EPS)[0][0], dx[n]
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
