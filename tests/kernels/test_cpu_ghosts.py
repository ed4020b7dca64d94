"""Kernels that take other ways to a batch norm's statistics: runs of samples, batch renorm, running ones."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from cpu_oracle import UNIT

from normkit import reference
from normkit.kernels import composed, cpu

EPS = 1e-5
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
SHAPES = [(10, 6), (7, 48, 20, 20), (9, 5, 3, 3), (64, 3, 2), (4, 2, 150, 130)]


def tensors(shape: tuple[int, ...], dtype: torch.dtype, channels_last: bool) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x, dy, residual = (torch.randn(shape, generator=generator).to(dtype) for _ in range(3))
    x = x * 2 + 5
    if channels_last:
        x, dy, residual = (t.movedim(1, -1).contiguous().movedim(-1, 1) for t in (x, dy, residual))
    mask = torch.rand((shape[0], *shape[2:]), generator=generator) > 0.3
    weight, bias = (torch.randn(shape[1], generator=generator).to(dtype) for _ in range(2))
    return [x, dy, residual, mask, weight, bias]


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("together", [2, 3, 100])
@pytest.mark.parametrize("whole", [False, True])
def test_ghosts_are_calls_of_their_own(shape, together, dtype, channels_last, whole):
    """Each run of samples comes out to the bit as a call on it alone; parameters' gradients are summed in float64."""
    x, dy, residual, mask, weight, bias = tensors(shape, dtype, channels_last)
    if whole:
        residual = mask = None
    silu = cpu.ACTIVATIONS["silu"]
    y, stats = cpu.ghosts_forward(x, together, weight, bias, EPS, silu, residual, mask)
    dx, dweight, dbias, dresidual = cpu.ghosts_backward(
        x, dy, stats, together, weight, bias, EPS, silu, residual, mask
    )
    sums = torch.zeros(2, shape[1], dtype=torch.float64)
    for run, first in enumerate(range(0, shape[0], together)):
        part = slice(first, first + together)
        others = [None if t is None else t[part] for t in (residual, mask)]
        alone, of_run, _ = cpu.channels_forward(x[part], weight, bias, EPS, silu, *others)
        assert torch.equal(y[part], alone)
        assert torch.equal(stats[:, run], of_run)
        arguments = (weight, bias, EPS, silu, *others)
        dx_alone, _, _, dresidual_alone = cpu.channels_backward(x[part], dy[part], of_run, *arguments)
        assert torch.equal(dx[part], dx_alone)
        assert dresidual is None or torch.equal(dresidual[part], dresidual_alone)
        sums += cpu.channels_gradient_sums(x[part], dy[part], *of_run[:2], *arguments, of_run[2])
    assert torch.equal(dbias, sums[0].to(dtype))
    assert torch.equal(dweight, sums[1].to(dtype))


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("masked", [False, True])
def test_renorm_is_batch_norm_by_what_it_led_to(shape, dtype, channels_last, masked):
    x, dy, residual, mask, weight, bias = tensors(shape, dtype, channels_last)
    mask = mask if masked else None
    known = torch.full((shape[1],), 4.0), torch.linspace(0.5, 20, shape[1])
    y, made = cpu.renorm_forward(x, *known, 1.5, 0.4, weight, bias, EPS, 0, residual, mask)
    stats, corrected = made[:3], made[3:]
    _, of_batch, _ = cpu.channels_forward(x, None, None, EPS, 0, None, mask)
    assert torch.equal(stats, of_batch)
    _, cache = reference.batch_renorm(
        x.double().numpy(),
        *(t.double().numpy() for t in known),
        1.5,
        0.4,
        eps=EPS,
        mask=None if mask is None else mask.numpy(),
    )
    # The moments are within 4 u of the mean and of the variance, and so is the oracle of float64 itself.
    np.testing.assert_allclose(corrected[0], cache.r, rtol=16 * UNIT[dtype])
    np.testing.assert_allclose(corrected[1], cache.d, rtol=16 * UNIT[dtype], atol=80 * UNIT[dtype])
    assert torch.equal(corrected[2], weight.double() * corrected[0])
    assert torch.equal(corrected[3], bias.double() + weight.double() * corrected[1])
    again, _, _ = cpu.channels_forward(x, corrected[2], corrected[3], EPS, 0, residual, mask)
    assert torch.equal(y, again)
    as_corrected = cpu.channels_backward(x, dy, stats, corrected[2], corrected[3], EPS, 0, residual, mask)
    dx, dweight, dbias, dresidual = cpu.renorm_backward(x, dy, made, weight, bias, EPS, 0, residual, mask)
    assert torch.equal(dx, as_corrected[0])
    assert torch.equal(dresidual, as_corrected[3])
    r, d, dgamma, dbeta = corrected[0], corrected[1], as_corrected[1], as_corrected[2]
    assert torch.equal(dweight, (r * dgamma + d * dbeta).to(dtype))
    assert torch.equal(dbias, dbeta.to(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("momentum", [0.1, 1.0, None])
@pytest.mark.parametrize("guarded", [False, True])
def test_running_statistics_move_as_by_torch_operations(dtype, momentum, guarded):
    """Batches that follow one another; one of a single value, one that is not finite, one too large for the buffers."""
    generator = torch.Generator().manual_seed(0)
    stats = torch.rand((3, 5, 4), dtype=torch.float64, generator=generator) + 0.5
    counts = torch.tensor([8, 1, 8, 8, 2])
    if guarded:
        stats[0, 2, 1], stats[1, 3, 0] = float("nan"), float("inf") if dtype == torch.float64 else 1e60
    results = []
    for update in (cpu.update_running, composed.update_running):
        buffers = torch.zeros(4, dtype=dtype), torch.ones(4, dtype=dtype), torch.tensor(3), torch.tensor(0)
        mean, var, batches, skipped = buffers
        update(mean, var, stats, counts, momentum, batches, skipped if guarded else None)
        results.append(buffers)
    for native, by_torch in zip(*results, strict=True):
        torch.testing.assert_close(native, by_torch, rtol=2 * torch.finfo(dtype).eps, atol=0)
    assert results[0][2] == (5 if guarded else 7)
    assert results[0][3] == (2 if guarded else 0)
