"""The same bits on 1, 2 and 4 threads and in every run; torch's OpenMP runtime is the kernels' as well."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from normkit.kernels import cpu
from normkit.kernels.cpu import _native, mixtures

EPS = 1e-5


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="the list of loaded libraries is Linux's")
def test_one_openmp_runtime_is_loaded():
    """torch's own, in a process that holds nothing else: scikit-learn, for one, brings another."""
    code = "import normkit; print(open('/proc/self/maps').read())"
    maps = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    (library,) = {line.split()[-1] for line in maps.splitlines() if "libgomp" in line}
    assert "torch" in Path(library).parts


def test_threads_of_torch_are_seen(threads):
    for n in (1, 3, 2):
        threads(n)
        assert _native.threads() == n


def everything(shape, dtype, channels_last):
    """Every output of every family for one input; one channel is beyond f32's range."""
    torch.manual_seed(0)
    C = shape[1]
    x, dy, residual = (torch.randn(shape).to(dtype) for _ in range(3))
    if dtype == torch.float32:
        x[:, C // 2] *= 1e35
    if channels_last:
        x, dy, residual = (t.movedim(1, -1).contiguous().movedim(-1, 1) for t in (x, dy, residual))
    weight, bias = torch.randn(C).to(dtype), torch.randn(C).to(dtype)
    keep = torch.rand(shape[0], *shape[2:]) < 0.8
    for mask in (None, keep):
        y, stats, _ = cpu.channels_forward(x, weight, bias, EPS, 1, residual, mask)
        yield from (y, stats, *cpu.channels_backward(x, dy, stats, weight, bias, EPS, 1, residual, mask))
    for groups in (1, next(n for n in range(2, C + 1) if C % n == 0), C):
        y, stats = cpu.groups_forward(x, groups, weight, bias, EPS)
        yield from (y, stats, *cpu.groups_backward(x, dy, stats, weight, bias, EPS))
    for kind, shares in enumerate(([torch.randn(3), torch.randn(3)], [torch.rand(C)])):
        y, statistics, batch, _ = mixtures.mixture_forward(
            kind, x, (None, None), shares, weight, bias, EPS, 1, residual, keep
        )
        yield from (y, statistics, batch)
        *gradients, dshares, dweight, dbias = mixtures.mixture_backward(
            kind, x, dy, statistics, batch, False, shares, weight, bias, EPS, 1, residual, keep
        )
        yield from (*gradients, *dshares, dweight, dbias)
    if not channels_last:
        M = x[0].numel()
        weight, bias = torch.randn(M).to(dtype), torch.randn(M).to(dtype)
        y, stats = cpu.rows_forward(x, M, weight, bias, EPS)
        yield from (y, stats, *cpu.rows_backward(x, dy, stats, weight, bias, EPS))


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize(
    "shape", [(8, 40, 21, 19), (2, 3, 170, 160), (64, 300, 3, 3), (3000, 33), (16, 2100), (1, 5, 40000)]
)
def test_bits_do_not_depend_on_the_threads(shape, dtype, channels_last, threads):
    threads(1)
    alone = list(everything(shape, dtype, channels_last))
    for n in (2, 4, 4):
        threads(n)
        for got, want in zip(everything(shape, dtype, channels_last), alone, strict=True):
            assert torch.equal(got, want)
