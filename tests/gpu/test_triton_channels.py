"""The channel family on Triton against the oracle: every way to cut a call, dtypes, layouts, extremes, masks."""

from __future__ import annotations

import cpu_oracle as oracle
import numpy as np
import pytest
import torch
from cpu_oracle import exact, worst
from torch import Tensor
from triton_device import DEVICE, DTYPES, laid_out

from normkit.kernels import triton as gpu
from normkit.kernels.codes import ACTIVATIONS
from normkit.kernels.triton.plan import Plan, plan, plan_of_stage

EPS = 1e-5
# Tables, one value in a spatial axis, odd sizes, three spatial axes, sets of one tile of each size.
SHAPES = [(1, 1, 3), (2, 3), (64, 37), (4, 3, 13, 11), (2, 3, 3, 3), (2, 2, 3, 4, 5), (9, 1, 1100)]
SPREADS = [(0, 1), (1e3, 1), (1e4, 0.1), (1e6, 1), (0, 1e30), (-3e30, 1e29), (0, 1e-30), (0, 1e-40)]


def per_channel(p: Tensor, x: Tensor) -> np.ndarray:
    return exact(p.to(x.dtype).cpu()).reshape(1, -1, *[1] * (x.dim() - 2))


def axes(x: Tensor) -> tuple[int, ...]:
    return (0, *range(2, x.dim()))


def check(x: Tensor, channels_last: bool) -> None:
    """Forward and backward within the bounds of `cpu_oracle`, which are those of the CPU's kernels."""
    C = x.shape[1]
    weight, bias, dy = (torch.randn(s).to(x.dtype) for s in (C, C, x.shape))
    want = oracle.normalize(
        exact(x), axes(x), axes(x), per_channel(weight, x), per_channel(bias, x), EPS, x.dtype, exact(dy)
    )
    x, dy, weight, bias = (
        laid_out(x, channels_last),
        laid_out(dy, channels_last),
        weight.to(DEVICE),
        bias.to(DEVICE),
    )
    y, stats, count = gpu.channels_forward(x, weight, bias, EPS)
    dx, dweight, dbias, dresidual = gpu.channels_backward(x, dy, stats, weight, bias, EPS)
    assert count == x.numel() // C
    assert dresidual is None
    assert y.stride() == x.stride() == dx.stride()
    u, ulp = oracle.UNIT[x.dtype], oracle.ULP[x.dtype]
    size = abs(want.mean)
    if ulp:  # half types are summed in short runs of float32, whose rounding is relative to the deviation too
        size = size + np.sqrt(want.var)
    assert (
        worst(stats[0].cpu().numpy(), want.mean.reshape(-1), 4 * u * size.reshape(-1) + oracle.TINY[x.dtype])
        <= 1
    )
    assert worst(stats[1].cpu().numpy(), want.var.reshape(-1), 4 * u * want.var.reshape(-1) + 1e-300) <= 1
    assert worst(y.cpu(), want.y, want.y_bound) <= 1
    assert worst(dx.cpu(), want.dx, want.dx_bound) <= 1
    assert worst(dweight.cpu(), want.dweight, want.dweight_bound + ulp * abs(want.dweight)) <= 1
    assert worst(dbias.cpu(), want.dbias, want.dbias_bound + ulp * abs(want.dbias)) <= 1


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_shapes(shape, dtype, channels_last):
    torch.manual_seed(1)
    check((torch.randn(shape, dtype=torch.float64) * 2 + 3).to(dtype), channels_last)


# Splits of a set, what a program holds of it, and what brings splits together, on a device of 16 processors: forward
# and backward.
THROUGH, BARRIER, SWEEPS = "passed through", ", a barrier", ", two sweeps"
WAYS = [
    ((3, 2, 11000), True, torch.float32, f"16 {THROUGH}{BARRIER}", f"16 {THROUGH}{BARRIER}"),
    ((1, 3, 60000), False, torch.float32, f"5 of 2 tiles{BARRIER}", f"5 of 4 tiles{BARRIER}"),
    ((1, 3, 60000), False, torch.bfloat16, f"5 of 2 tiles{BARRIER}", f"5 of 4 tiles{BARRIER}"),
    ((2, 20, 9000), True, torch.bfloat16, f"16 of 6 tiles{BARRIER}", f"16 {THROUGH}{BARRIER}"),
    ((2, 9, 12000), False, torch.float32, "1 of 4 tiles", f"3 {THROUGH}{SWEEPS}"),
    ((2, 9, 12000), False, torch.bfloat16, "1 of 4 tiles", "1 of 6 tiles"),
    ((2, 9, 17000), False, torch.float32, f"3 {THROUGH}{SWEEPS}", f"3 {THROUGH}{SWEEPS}"),
    ((1, 1100, 600), True, torch.bfloat16, "1 of 6 tiles", f"5 {THROUGH}{SWEEPS}"),
]


def way(cut: Plan) -> str:
    parts = f"{cut.splits} of {cut.held} tiles" if cut.held else f"{cut.splits} {THROUGH}"
    return parts + (BARRIER if cut.barrier else "" if cut.together else SWEEPS)


@pytest.mark.parametrize(("shape", "channels_last", "dtype", "forward", "backward"), WAYS)
def test_sets_of_more_than_a_tile(shape, channels_last, dtype, forward, backward):
    torch.manual_seed(2)
    x = (torch.randn(shape, dtype=torch.float64) * 2 + 3).to(dtype)
    on_device = laid_out(x, channels_last)
    ways = way(plan(on_device, shape[0])), way(plan(on_device, shape[0], backward=True))
    assert DEVICE != "cpu" or ways == (forward, backward)
    check(x, channels_last)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(("mean", "deviation"), SPREADS)
def test_extremes(mean, deviation, channels_last):
    torch.manual_seed(3)
    check((torch.randn((40, 3, 5), dtype=torch.float64) * deviation + mean).float(), channels_last)


@pytest.mark.parametrize(("shape", "channels_last"), [((2, 2, 11008), False), ((1, 2, 5003), True)])
@pytest.mark.parametrize(("mean", "deviation"), SPREADS)
def test_extremes_of_a_set_that_passes_through(mean, deviation, shape, channels_last):
    """Whole tiles are summed without the others, and again where squares leave the range of float32."""
    torch.manual_seed(3)
    x = (torch.randn(shape, dtype=torch.float64) * deviation + mean).float()
    assert plan_of_stage(laid_out(x, channels_last), shape[0]).held == 0
    stats, _ = gpu.channels_moments(laid_out(x, channels_last))
    u, values = oracle.UNIT[x.dtype], exact(x)
    want_mean, want_var = values.mean(axes(x)), values.var(axes(x))
    assert worst(stats[0].cpu().numpy(), want_mean, 4 * u * abs(want_mean) + oracle.TINY[x.dtype]) <= 1
    assert worst(stats[1].cpu().numpy(), want_var, 4 * u * want_var + 1e-300) <= 1


@pytest.mark.parametrize("channels_last", [False, True])
def test_one_outlier_first(channels_last):
    x = torch.randn(6, 1, 50, 100)
    x[0, :, 0, 0] = 1e6
    check(x, channels_last)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("value", [0.0, 0.1, 1e30, -7e-39])
def test_constant_channels_give_exactly_beta(value, channels_last):
    x = laid_out(torch.full((6, 3, 9, 5), value), channels_last)
    weight, bias = torch.randn(3, device=DEVICE), torch.randn(3, device=DEVICE)
    y, stats, _ = gpu.channels_forward(x, weight, bias, EPS)
    assert torch.equal(y, bias.view(1, -1, 1, 1).expand_as(y))
    assert torch.equal(stats[0].cpu(), torch.tensor(value).double().expand(3))
    assert torch.equal(stats[1].cpu(), torch.zeros(3).double())


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(4, 3, 9, 7), (3, 1, 25000)])
def test_mask_residual_relu(shape, dtype, channels_last):
    """Padding counts in nothing, is zero in all outputs, and may hold NaN."""
    torch.manual_seed(4)
    keep = torch.rand(shape[0], *shape[2:]) < 0.7
    keep[0] = False  # a sample of padding alone
    x, dy, residual = (
        torch.where(keep[:, None], torch.randn(shape) * 2 + 1, torch.nan).to(dtype) for _ in range(3)
    )
    weight, bias = torch.randn(shape[1]), torch.randn(shape[1])
    on_device = [laid_out(t, channels_last) for t in (x, dy, residual)]
    operands = weight.to(DEVICE), bias.to(DEVICE), EPS, ACTIVATIONS["relu"], on_device[2], keep.to(DEVICE)
    y, stats, count = gpu.channels_forward(on_device[0], *operands)
    dx, dweight, dbias, dresidual = (t.cpu() for t in gpu.channels_backward(*on_device[:2], stats, *operands))
    y = y.cpu()
    assert count == int(keep.sum())

    live = y > 0  # the kink itself is decided by rounding, the same way in both passes
    dz = torch.where(live, dy, 0)
    kept = np.broadcast_to(keep[:, None].numpy(), x.shape)
    gamma, beta = (p.double().numpy().reshape(1, -1, *[1] * (x.dim() - 2)) for p in (weight, bias))
    want = oracle.normalize(
        exact(x), axes(x), axes(x), gamma, beta, EPS, dtype, np.where(kept, exact(dz), 0),
        np.where(kept, exact(residual), 0), keep[:, None].numpy(),
    )  # fmt: skip
    assert worst(y, np.maximum(want.y, 0), want.y_bound) <= 1
    assert worst(dx, want.dx, want.dx_bound) <= 1
    assert torch.equal(dresidual, torch.where(keep[:, None], dz, 0))
    assert worst(dweight, want.dweight, want.dweight_bound) <= 1
    assert worst(dbias, want.dbias, want.dbias_bound) <= 1


@pytest.mark.parametrize("name", list(ACTIVATIONS))
def test_activations(name):
    """A few units in the last place of the activation on top of the bound for z, as for the CPU's kernels."""
    torch.manual_seed(5)
    x, dy = torch.randn(6, 2, 11, 9), torch.randn(6, 2, 11, 9)
    weight, bias = 3 * torch.randn(2), torch.randn(2)
    code, u = ACTIVATIONS[name], oracle.UNIT[torch.float32]
    operands = weight.to(DEVICE), bias.to(DEVICE), EPS, code
    y, stats, _ = gpu.channels_forward(x.to(DEVICE), *operands)
    dx, dweight, dbias, _ = gpu.channels_backward(x.to(DEVICE), dy.to(DEVICE), stats, *operands)
    gamma, beta = per_channel(weight, x), per_channel(bias, x)
    z = oracle.normalize(exact(x), axes(x), axes(x), gamma, beta, EPS, x.dtype)
    value, slope = oracle.activation(name, z.y)
    # Slopes are at most 1.5, hardswish's.
    assert worst(y.cpu(), value, 1.5 * z.y_bound + 8 * u * (1 + abs(value))) <= 1
    dz = exact(dy) * slope
    want = oracle.normalize(exact(x), axes(x), axes(x), gamma, beta, EPS, x.dtype, dz)
    # dz itself is off by the activation's error and by that of z through its second derivative (at most 1)
    off = (abs(exact(dy)) * (z.y_bound + 8 * u)).max()
    deviation = np.sqrt(want.var + EPS)
    allowed = want.dx_bound + abs(gamma) / deviation * off * (2 + 2 * abs(z.y - beta))
    assert worst(dx.cpu(), want.dx, allowed) <= 1
    n = x.numel() // 2
    assert worst(dweight.cpu(), want.dweight, want.dweight_bound + 4 * n * off) <= 1
    assert worst(dbias.cpu(), want.dbias, want.dbias_bound + n * off) <= 1


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_stages_compose(dtype, channels_last):
    """moments, normalize, gradient_sums and input_gradient give what the fused passes give."""
    torch.manual_seed(6)
    x, dy, residual = (laid_out(torch.randn(4, 3, 10, 7).to(dtype), channels_last) for _ in range(3))
    weight, bias = torch.randn(3).to(DEVICE), torch.randn(3).to(DEVICE)
    code = ACTIVATIONS["relu"]
    y, stats, _ = gpu.channels_forward(x, weight, bias, EPS, code, residual)
    alone, n = gpu.channels_moments(x)
    assert n == x.numel() // 3
    assert torch.equal(alone, stats)
    mean, var, tail = stats
    assert torch.equal(gpu.channels_normalize(x, mean, var, weight, bias, EPS, code, residual, tail=tail), y)
    dx, dweight, dbias, dresidual = gpu.channels_backward(x, dy, stats, weight, bias, EPS, code, residual)
    sums = gpu.channels_gradient_sums(x, dy, mean, var, weight, bias, EPS, code, residual, tail=tail)
    assert torch.equal(sums[1].float(), dweight)
    assert torch.equal(sums[0].float(), dbias)
    slopes = -weight.double() / (var + EPS).sqrt() * sums.flip(0) / n
    again, d_again = gpu.channels_input_gradient(x, dy, mean, var, slopes, weight, bias, EPS, code, residual)
    # torch's operations round the slopes differently in float64, by what float32 may show in its last place.
    torch.testing.assert_close(again, dx, rtol=4 * 2.0**-24 if dtype == torch.float32 else 2.0**-8, atol=1e-7)
    assert torch.equal(d_again, dresidual)
    gradients = gpu.statistic_gradients(sums, var, weight, EPS)
    torch.testing.assert_close(gpu.slopes(gradients, var, EPS, n), slopes, rtol=1e-14, atol=1e-300)


@pytest.mark.parametrize("channels_last", [False, True])
def test_per_sample_statistics_and_parameters(channels_last):
    """Statistics, weight and bias of each sample, as blends of norms have them."""
    torch.manual_seed(7)
    x, dy = (laid_out(torch.randn(3, 4, 6, 5), channels_last) for _ in range(2))
    weight, bias = (torch.randn(3, 4, dtype=torch.float64).to(DEVICE) for _ in range(2))
    stats, count = gpu.channels_moments(x, per_sample=True)
    assert count == 30
    y = gpu.channels_normalize(x, stats[0], stats[1], weight, bias, EPS)
    sums = gpu.channels_gradient_sums(x, dy, stats[0], stats[1], weight, bias, EPS)
    dx, _ = gpu.channels_input_gradient(x, dy, stats[0], stats[1], None, weight, bias, EPS)
    for n in range(3):
        one = exact(x[n : n + 1].cpu())
        gamma, beta = (p[n].cpu().numpy().reshape(1, -1, 1, 1) for p in (weight, bias))
        want = oracle.normalize(
            one, (0, 2, 3), (0, 2, 3), gamma, beta, EPS, x.dtype, exact(dy[n : n + 1].cpu())
        )
        assert worst(y[n : n + 1].cpu(), want.y, want.y_bound) <= 1
        assert worst(sums[1, n].cpu().numpy(), want.dweight.reshape(-1), want.dweight_bound.reshape(-1)) <= 1
        given = gamma / np.sqrt(want.var + EPS) * exact(dy[n : n + 1].cpu())
        assert worst(dx[n : n + 1].cpu(), given, 4 * oracle.UNIT[x.dtype] * abs(given)) <= 1


@pytest.mark.parametrize("channels_last", [False, True])
def test_nan_and_infinity_stay_in_their_channel(channels_last):
    x = torch.randn(4, 18, 3)
    x[1, 3, 2], x[0, 7, 0], x[3, 17, 1] = torch.nan, torch.inf, -torch.inf
    y, _, _ = gpu.channels_forward(laid_out(x, channels_last), None, None, EPS, ACTIVATIONS["relu"])
    assert y.isnan().any(dim=2).any(dim=0).nonzero().flatten().tolist() == [3, 7, 17]


@pytest.mark.parametrize("name", list(ACTIVATIONS))
def test_nan_stays_nan_in_every_activation(name):
    x = torch.randn(4, 2, 3, device=DEVICE)
    x[1, 1, 2] = torch.nan
    y, stats, _ = gpu.channels_forward(x, None, None, EPS, ACTIVATIONS[name])
    assert y.isnan().all(dim=2).all(dim=0).tolist() == [False, True]
    dx, _, _, _ = gpu.channels_backward(x, torch.ones_like(x), stats, None, None, EPS, ACTIVATIONS[name])
    assert dx[:, 0].isfinite().all()
    assert dx[:, 1].isnan().any()


@pytest.mark.parametrize("channels_last", [False, True])
def test_runs_of_samples(channels_last):
    """Ghost batch norm is batch norm of each run, of which the last is smaller."""
    torch.manual_seed(8)
    x, dy = (laid_out(torch.randn(5, 2, 6), channels_last) for _ in range(2))
    weight, bias = torch.randn(2).to(DEVICE), torch.randn(2).to(DEVICE)
    y, stats = gpu.ghosts_forward(x, 2, weight, bias, EPS)
    dx, dweight, _, _ = gpu.ghosts_backward(x, dy, stats, 2, weight, bias, EPS)
    parts = []
    for run, part in enumerate((slice(0, 2), slice(2, 4), slice(4, 5))):
        alone, of_part, _ = gpu.channels_forward(x[part], weight, bias, EPS)
        gradients = gpu.channels_backward(x[part], dy[part], of_part, weight, bias, EPS)
        assert torch.equal(y[part], alone)
        assert torch.equal(stats[:, run], of_part)
        assert torch.equal(dx[part], gradients[0])
        parts.append(gradients[1])
    # Three numbers added in float32 instead of float64.
    torch.testing.assert_close(dweight, sum(parts), rtol=1e-6, atol=1e-6)
