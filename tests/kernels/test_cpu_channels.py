"""The channel family against the oracle: dtypes, layouts, sizes, extremes, masks, residuals, activations."""

from __future__ import annotations

import cpu_oracle as oracle
import numpy as np
import pytest
import torch
from cpu_oracle import exact, worst
from torch import Tensor

from normkit.kernels import composed, cpu

EPS = 1e-5
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
SHAPES = [
    (1, 1, 3), (2, 3), (64, 37), (300, 130), (4, 7, 13, 11), (2, 65, 3, 3), (5, 33, 8, 9), (3, 2, 180, 100),
    (2, 5, 3, 4, 5), (9, 48, 7), (2, 300, 5, 7),
]  # fmt: skip
SPREADS = [(0, 1), (1e3, 1), (1e4, 0.1), (1e6, 1), (0, 1e30), (-3e30, 1e29), (0, 1e-30), (0, 1e-40)]


def laid_out(x: Tensor, channels_last: bool) -> Tensor:
    return x.movedim(1, -1).contiguous().movedim(-1, 1) if channels_last else x.contiguous()


def per_channel(p: Tensor, x: Tensor) -> np.ndarray:
    return exact(p.to(x.dtype)).reshape(1, -1, *[1] * (x.dim() - 2))


def axes(x: Tensor) -> tuple[int, ...]:
    return (0, *range(2, x.dim()))


def check(x: Tensor, channels_last: bool, seed: int = 0) -> None:
    torch.manual_seed(seed)
    C = x.shape[1]
    weight, bias = torch.randn(C).to(x.dtype), torch.randn(C).to(x.dtype)
    x, dy = laid_out(x, channels_last), laid_out(torch.randn(x.shape).to(x.dtype), channels_last)
    want = oracle.normalize(
        exact(x), axes(x), axes(x), per_channel(weight, x), per_channel(bias, x), EPS, x.dtype, exact(dy)
    )
    y, stats, count = cpu.channels_forward(x, weight, bias, EPS)
    dx, dweight, dbias, dresidual = cpu.channels_backward(x, dy, stats, weight, bias, EPS)
    assert count == x.numel() // C
    assert dresidual is None
    assert y.stride() == x.stride() == dx.stride()
    u = oracle.UNIT[x.dtype]
    mean, size = stats[0].numpy().astype(want.mean.dtype) + stats[2].numpy(), abs(want.mean)
    if oracle.ULP[x.dtype]:  # summed in short runs of f32, whose rounding is relative to the deviation too
        size = size + np.sqrt(want.var)
    assert worst(mean, want.mean.reshape(-1), 4 * u * size.reshape(-1) + oracle.TINY[x.dtype]) <= 1
    assert worst(stats[1].numpy(), want.var.reshape(-1), 4 * u * want.var.reshape(-1) + 1e-300) <= 1
    assert worst(y, want.y, want.y_bound) <= 1
    assert worst(dx, want.dx, want.dx_bound) <= 1
    ulp = oracle.ULP[x.dtype]
    assert worst(dweight, want.dweight, want.dweight_bound + ulp * abs(want.dweight)) <= 1
    assert worst(dbias, want.dbias, want.dbias_bound + ulp * abs(want.dbias)) <= 1


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_shapes(shape, dtype, channels_last):
    torch.manual_seed(1)
    check((torch.randn(shape, dtype=torch.float64) * 2 + 3).to(dtype), channels_last)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(
    ("dtype", "mean", "deviation"),
    [(dtype, *spread) for dtype in (torch.float32, torch.float64) for spread in SPREADS]
    # bfloat16 holds no small deviation beside a large mean
    + [(torch.bfloat16, mean, deviation) for mean, deviation in SPREADS if not 1 < mean < 1e29],
)
def test_extremes(dtype, mean, deviation, channels_last):
    torch.manual_seed(2)
    for shape in ((3, 5, 31, 17), (40, 19, 5)):
        check((torch.randn(shape, dtype=torch.float64) * deviation + mean).to(dtype), channels_last)


@pytest.mark.parametrize("channels_last", [False, True])
def test_ten_million_elements_per_channel_far_from_zero(channels_last):
    torch.manual_seed(3)
    check(torch.rand(10, 1, 1000, 1000) + 5, channels_last)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("value", [0.0, 0.1, 1e30, -7e-39, 3.0])
def test_constant_channels_give_exactly_beta(value, channels_last):
    x = laid_out(torch.full((6, 20, 9, 5), value), channels_last)
    weight, bias = torch.randn(20), torch.randn(20)
    y, stats, _ = cpu.channels_forward(x, weight, bias, EPS)
    assert torch.equal(y, bias.view(1, -1, 1, 1).expand_as(y))
    assert torch.equal(
        stats, torch.tensor([torch.tensor(value).double(), 0, 0])[:, None].expand(3, 20).double()
    )


def test_one_outlier_first():
    """The shift of the sums is the first element: the worst it can be."""
    x = torch.randn(10, 2, 100, 100)
    x[0, :, 0, 0] = 1e6
    check(x, False)
    check(x, True)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_misaligned(dtype, channels_last):
    """Tensors that start at any element of their storage."""
    shape = (3, 5, 6, 7)
    for offset in (1, 3, 5):
        storage = torch.randn(1000).to(dtype)
        x = storage[offset : offset + 630].view(3, 6, 7, 5).movedim(-1, 1) if channels_last else None
        x = storage[offset : offset + 630].view(shape) if x is None else x
        assert x.data_ptr() % 64
        y, _, _ = cpu.channels_forward(x, None, None, EPS)
        again, _, _ = cpu.channels_forward(x.clone(), None, None, EPS)
        assert torch.equal(y, again)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(4, 6, 9, 7), (7, 40, 3), (3, 3, 150, 120)])
def test_mask_residual_relu(shape, dtype, channels_last):
    """Padding counts in nothing, is zero in all outputs, and may hold NaN."""
    torch.manual_seed(4)
    keep = torch.rand(shape[0], *shape[2:]) < 0.7
    keep[0] = False  # a sample of padding alone
    x = laid_out(torch.where(keep[:, None], torch.randn(shape) * 2 + 1, torch.nan).to(dtype), channels_last)
    dy = laid_out(torch.where(keep[:, None], torch.randn(shape), torch.nan).to(dtype), channels_last)
    residual = laid_out(torch.where(keep[:, None], torch.randn(shape), torch.nan).to(dtype), channels_last)
    weight, bias = torch.randn(shape[1]), torch.randn(shape[1])
    if dtype == torch.float64:
        weight, bias = weight.double(), bias.double()
    code = cpu.ACTIVATIONS["relu"]
    y, stats, count = cpu.channels_forward(x, weight, bias, EPS, code, residual, keep)
    dx, dweight, dbias, dresidual = cpu.channels_backward(
        x, dy, stats, weight, bias, EPS, code, residual, keep
    )
    assert count == int(keep.sum())

    live = y > 0  # the kink itself is decided by rounding, the same way in both passes
    dz = torch.where(live, dy, 0)
    real = exact(x)
    kept = np.broadcast_to(keep[:, None].numpy(), real.shape)
    gamma, beta = (
        p.double().numpy().astype(real.dtype).reshape(1, -1, *[1] * (x.dim() - 2)) for p in (weight, bias)
    )
    want = oracle.normalize(
        real, axes(x), axes(x), gamma, beta, EPS, dtype, np.where(kept, exact(dz), 0),
        np.where(kept, exact(residual), 0), keep[:, None].numpy(),
    )  # fmt: skip
    assert worst(y, np.maximum(want.y, 0), want.y_bound) <= 1
    assert worst(dx, want.dx, want.dx_bound) <= 1
    assert torch.equal(dresidual, torch.where(keep[:, None], dz, 0))
    assert worst(dweight, want.dweight, want.dweight_bound) <= 1
    assert worst(dbias, want.dbias, want.dbias_bound) <= 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", list(cpu.ACTIVATIONS))
def test_activations(name, dtype):
    """A few units in the last place of the activation on top of the bound for z; slopes are at most 1.13.

    Those of hardswish are at most 1.5.
    """
    torch.manual_seed(5)
    x, dy = (torch.randn(6, 5, 11, 9, dtype=torch.float64).to(dtype) for _ in range(2))
    weight, bias = (
        3 * torch.randn(5, dtype=torch.float64).to(dtype),
        torch.randn(5, dtype=torch.float64).to(dtype),
    )
    code, u = cpu.ACTIVATIONS[name], oracle.UNIT[dtype]
    y, stats, _ = cpu.channels_forward(x, weight, bias, EPS, code)
    dx, dweight, dbias, _ = cpu.channels_backward(x, dy, stats, weight, bias, EPS, code)
    gamma, beta = per_channel(weight, x), per_channel(bias, x)
    z = oracle.normalize(exact(x), axes(x), axes(x), gamma, beta, EPS, dtype)
    value, slope = oracle.activation(name, z.y.astype(np.float64))
    assert worst(y, value, (1.5 if name == "hardswish" else 1.13) * z.y_bound + 8 * u * (1 + abs(value))) <= 1
    dz = exact(dy) * slope
    want = oracle.normalize(exact(x), axes(x), axes(x), gamma, beta, EPS, dtype, dz)
    # dz itself is off by the activation's error and by that of z through its second derivative (at most 1)
    off = (abs(exact(dy)) * (z.y_bound + 8 * u)).max()
    deviation = np.sqrt(want.var + EPS)
    assert worst(dx, want.dx, want.dx_bound + abs(gamma) / deviation * off * (2 + 2 * abs(z.y - beta))) <= 1
    n = x.numel() // 5
    assert worst(dweight, want.dweight, want.dweight_bound + 4 * n * off) <= 1
    assert worst(dbias, want.dbias, want.dbias_bound + n * off) <= 1


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(4, 21, 10, 7), (50, 33), (8, 40, 3, 3)])
def test_stages_compose(shape, dtype, channels_last):
    """moments, normalize, gradient_sums and input_gradient give what the fused passes give, bit for bit up to dx."""
    torch.manual_seed(6)
    x, dy, residual = (laid_out(torch.randn(shape).to(dtype), channels_last) for _ in range(3))
    weight, bias = torch.randn(shape[1]).to(dtype), torch.randn(shape[1]).to(dtype)
    code = cpu.ACTIVATIONS["relu"]
    y, stats, count = cpu.channels_forward(x, weight, bias, EPS, code, residual)
    alone, n = cpu.channels_moments(x)
    assert n == count
    assert torch.equal(alone, stats)
    mean, var, tail = stats
    assert torch.equal(cpu.channels_normalize(x, mean, var, weight, bias, EPS, code, residual, tail=tail), y)
    dx, dweight, dbias, dresidual = cpu.channels_backward(x, dy, stats, weight, bias, EPS, code, residual)
    sums = cpu.channels_gradient_sums(x, dy, mean, var, weight, bias, EPS, code, residual, tail=tail)
    assert torch.equal(sums[0].to(dtype), dbias)
    assert torch.equal(sums[1].to(dtype), dweight)
    slopes = -(weight.double() / (var + EPS).sqrt() / n) * sums.flip(0)
    parts = cpu.channels_input_gradient(
        x, dy, mean, var, slopes, weight, bias, EPS, code, residual, tail=tail
    )
    # The slopes are rounded once more than inside, where float64 has a wider type for 1 / deviation.
    torch.testing.assert_close(parts[0], dx, rtol=torch.finfo(dtype).eps, atol=2 * torch.finfo(dtype).eps)
    assert torch.equal(parts[1], dresidual)
    for module in (cpu, composed):
        gradients = module.statistic_gradients(sums, var, weight, EPS)
        torch.testing.assert_close(module.slopes(gradients, var, EPS, n), slopes, rtol=1e-14, atol=1e-300)


@pytest.mark.parametrize("counts", [[3, 5], [40, 0, 1, 7], [0, 0], [2]])
@pytest.mark.parametrize("mean", [0.0, 1e3, 1e12])
def test_merged_moments(counts, mean):
    """Moments of parts, into those of the whole: in C++, and by the torch operations that other devices take."""
    torch.manual_seed(9)
    parts = [mean + torch.randn(n, 5, dtype=torch.float64) for n in counts]
    rows = torch.zeros(len(counts), 10, dtype=torch.float64)
    for row, part in zip(rows, parts, strict=True):
        if len(part):
            row[:] = torch.cat((part.mean(0), part.var(0, correction=0)))
    message = torch.cat((torch.full((len(counts), 3), torch.nan).double(), rows), 1)
    of_native = cpu.merged_moments(list(map(float, counts)), message[:, 3:])
    of_torch = composed.merged_moments(list(map(float, counts)), rows)
    # What rows say, in numbers of 64 bits: their own rounding is no error of the merge.
    wide, share = exact(rows), np.array(counts, np.longdouble)[:, None] / max(1, sum(counts))
    means, variances = np.split(wide.astype(np.longdouble), 2, axis=1)
    want = (share * means).sum(0)
    variance = (share * (variances + (means - want) ** 2)).sum(0)
    u = 2.0**-53
    for stats in (of_native, of_torch):
        assert worst(stats[0].numpy(), want, 2 * u * abs(want) + 1e-300) <= 1
        assert worst(stats[1].numpy(), variance, 16 * u * (variance + u * want**2) + 1e-300) <= 1
    # hi and lo hold the mean to the digits of the distances, here from the first row's.
    distances = means - means[0]
    both = (stats_of(of_native, 0) - means[0]) + stats_of(of_native, 2)
    assert worst(both, (share * distances).sum(0), 8 * u * abs(distances).max(0) + 1e-300) <= 1


def stats_of(stats: Tensor, row: int) -> np.ndarray:
    return stats[row].numpy().astype(np.longdouble)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_short_rows_beyond_the_cache(dtype):
    """Which are written as runs side by side, and the rows that these leave."""
    torch.manual_seed(10)
    check(torch.randn(90_001, 70).to(dtype), channels_last=False)


@pytest.mark.parametrize(("dtype", "size"), [(torch.float32, 131), (torch.bfloat16, 185)])
def test_planes_of_odd_size_beyond_the_cache(dtype, size):
    """Streaming stores want aligned vectors; planes of odd size begin anywhere in one."""
    torch.manual_seed(11)
    check(torch.randn(2, 64, size, size).to(dtype), channels_last=False)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_evaluation(dtype, channels_last):
    """Running statistics in the parameters' dtype, and a backward in which they are constants."""
    torch.manual_seed(7)
    x, dy = (laid_out(torch.randn(5, 18, 9, 6).to(dtype), channels_last) for _ in range(2))
    mean, var, weight, bias = (torch.rand(18).to(dtype) + 0.5 for _ in range(4))
    y = cpu.channels_normalize(x, mean, var, weight, bias, EPS)
    dx, dweight, dbias, _ = cpu.channels_backward_evaluation(x, dy, mean, var, weight, bias, EPS)
    m, v, g, b = (per_channel(p, x) for p in (mean, var, weight, bias))
    rstd = 1 / np.sqrt(v + v.dtype.type(EPS))
    xhat = (exact(x) - m) * rstd
    u, ulp, tiny = oracle.UNIT[dtype], oracle.ULP[dtype], oracle.TINY[dtype]
    assert worst(y, g * xhat + b, 4 * u * (abs(g * xhat) + abs(b)) + ulp * abs(g * xhat + b) + tiny) <= 1
    assert worst(dx, g * rstd * exact(dy), (4 * u + ulp) * abs(g * rstd * exact(dy)) + tiny) <= 1
    want = (exact(dy) * xhat).sum(axes(x), keepdims=True)
    assert (
        worst(dweight, want, 8 * u * abs(exact(dy) * xhat).sum(axes(x), keepdims=True) + ulp * abs(want)) <= 1
    )
    want = exact(dy).sum(axes(x), keepdims=True)
    assert worst(dbias, want, 8 * u * abs(exact(dy)).sum(axes(x), keepdims=True) + ulp * abs(want)) <= 1


@pytest.mark.parametrize("channels_last", [False, True])
def test_nan_and_infinity_stay_in_their_channel(channels_last):
    x = torch.randn(4, 18, 6, 5)
    x[1, 3, 2, 2], x[0, 7, 0, 0], x[3, 17, 5, 4] = torch.nan, torch.inf, -torch.inf
    x = laid_out(x, channels_last)
    y, _, _ = cpu.channels_forward(x, None, None, EPS, cpu.ACTIVATIONS["relu"])
    bad = y.isnan().any(dim=3).any(dim=2).any(dim=0)
    assert bad.nonzero().flatten().tolist() == [3, 7, 17]


def test_what_is_no_tensor_of_a_known_dtype_is_refused():
    """The extension reads tensors itself: what it does not know must not be taken for memory."""
    x, y, stats = torch.randn(4, 3), torch.empty(4, 3), torch.empty(3, 3, dtype=torch.float64)
    arguments = y, None, None, None, None, None, None, None, stats
    with pytest.raises(TypeError, match="a dtype that the kernels do not know"):
        cpu._native.channels_forward(cpu.SUMS | cpu.OUTPUTS, 0, EPS, False, x.int(), *arguments)
    with pytest.raises(AttributeError, match="shape"):
        cpu._native.channels_forward(cpu.SUMS | cpu.OUTPUTS, 0, EPS, False, "x", *arguments)


@pytest.mark.slow
@pytest.mark.parametrize("channels_last", [False, True])
def test_more_than_two_to_the_31_elements(channels_last):
    C, rest = 3, 2**31 // 3 // 4096 + 1
    shape = (1, rest * 4096, C) if channels_last else (1, C, rest * 4096)
    x = torch.zeros(shape, dtype=torch.bfloat16)
    x = x.movedim(-1, 1) if channels_last else x
    assert x.numel() > 2**31
    x[0, :, -4096:] = torch.tensor([1.0, 2.0, 4.0])[:, None].to(torch.bfloat16)
    y, stats, count = cpu.channels_forward(x, None, None, 0.0)
    share = 4096 / count
    size = torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64)
    torch.testing.assert_close(stats[0], share * size, rtol=1e-12, atol=0)
    torch.testing.assert_close(stats[1], (share - share**2) * size**2, rtol=1e-9, atol=0)
    deviation = (share - share**2) ** 0.5
    assert torch.equal(y[0, :, -1], torch.full((3,), (1 - share) / deviation).to(torch.bfloat16))
    assert torch.equal(y[0, :, 0], torch.full((3,), -share / deviation).to(torch.bfloat16))
