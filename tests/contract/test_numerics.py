"""Forward and backward against the float64 specification, for every dtype and memory layout.

Tolerances, u being the unit roundoff of the arithmetic (float32's under half types):
  output       4 u (|γ x̂| + |β|), the bound of the exactness rule; 2 u more where an activation follows.
  gradient     8 u γ/σ (|dy| + mean|dy| + |x̂| mean|dy x̂|), and as much again through an activation, whose
               slope is taken of a rounded value.
  parameters   8 u Σ|dy x̂|: a sum of n terms in blocks, whose error grows far slower than n.
Half types add the one rounding of the result to storage. The oracle of float64 is float64 itself, as far from
the truth as we are, which doubles each bound; and its mean cannot be kept in anything wider, so that the
error of an output near zero is of the size of γ u, not of γ u |x̂|; where means are mixed, the result is one
float64 number, whose rounding, u |μ|, shows in everything that x̂ is part of. Magnitudes named "far" stand for both.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from case import DTYPES, UNIT, Case
from cases import CASES, every_case
from torch import Tensor


def run(case: Case, x: Tensor, dtype: torch.dtype) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Our output and gradients beside what the specification says of the same numbers."""
    layer = case.make(dtype=dtype).train()
    x = x.detach().requires_grad_()
    y = layer(x)
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64).to(dtype)
    y.backward(dy)
    assert y.dtype == dtype
    assert x.grad is not None
    got = {"y": y, "dx": x.grad}
    got |= {f"d{name}": p.grad for name, p in layer.named_parameters() if p.grad is not None}
    return {k: v.detach().double().numpy() for k, v in got.items()}, case.expected(layer, x, dy)


def compare(case: Case, x: Tensor, dtype: torch.dtype) -> None:
    got, expected = run(case, x, dtype)
    if dtype == torch.float64:
        u = 2 * UNIT[dtype]
        for name in got:
            expected[f"|{name}|"] = expected[f"|{name}|"] + expected.get(f"|far {name}|", 0)
    else:
        u = UNIT[torch.float32]
    half = dtype.itemsize == 2
    storage, smallest = (UNIT[dtype], torch.finfo(dtype).smallest_normal * UNIT[dtype]) if half else (0, 0)
    factors = {"y": 6, "dx": 16, "dweight": 16, "dbias": 16} if case.activation else {"y": 4}
    for name, value in got.items():
        bound = factors.get(name, 8) * u * expected[f"|{name}|"] + storage * np.abs(expected[name]) + smallest
        error = np.abs(value - expected[name])
        assert (error <= bound).all(), f"{name}: {(error / (bound + 1e-300)).max():.2f} times the bound"


@every_case
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("offset", [0.0, 1e3])
def test_matches_the_specification(case: Case, dtype: torch.dtype, offset: float) -> None:
    compare(case, case.input(dtype, offset=offset), dtype)


def _strided(x: Tensor) -> Tensor:
    wide = torch.stack([x, torch.full_like(x, float("nan"))], dim=-1)
    return wide[..., 0]  # every second element; a kernel that reads the others shows it


def _transposed(x: Tensor) -> Tensor:
    return x.transpose(0, -1).contiguous().transpose(0, -1)


def _expanded(x: Tensor) -> Tensor:
    return x[:1].expand(x.shape) if x.dim() == 2 else x[..., :1].expand(x.shape)


def _channels_last(x: Tensor) -> Tensor:
    return x.movedim(1, -1).contiguous().movedim(-1, 1)


@every_case
@pytest.mark.parametrize("layout", [_channels_last, _strided, _transposed], ids=lambda f: f.__name__[1:])
def test_any_layout(case: Case, layout: object) -> None:
    compare(case, layout(case.input()), torch.float32)


@every_case
def test_expanded_input(case: Case) -> None:
    """As its copy: two runs within 4u each, at outputs of up to 5."""
    x = _expanded(case.input())
    got = case.make()(x)
    torch.testing.assert_close(got, case.make()(x.contiguous()), rtol=0, atol=8 * UNIT[torch.float32] * 5)


@pytest.mark.parametrize("case", [c for c in CASES if len(c.shape) in (4, 5)], ids=lambda c: c.name)
def test_memory_format_is_kept(case: Case) -> None:
    memory_format = torch.channels_last if len(case.shape) == 4 else torch.channels_last_3d
    x = case.input().contiguous(memory_format=memory_format).requires_grad_()
    y = case.make()(x)
    # Some of torch's layers lose it; where torch has none, ours keeps it.
    if case.twin is None or case.make_twin()(x).is_contiguous(memory_format=memory_format):
        assert y.is_contiguous(memory_format=memory_format)
    y.square().sum().backward()
    assert x.grad is not None
    assert x.grad.shape == x.shape


@every_case
@pytest.mark.parametrize("magnitude", [1e30, 1e-30], ids=str)
def test_extreme_magnitudes(case: Case, magnitude: float) -> None:
    """Squares of 1e30 leave float32, squares of 1e-30 vanish in it: the result must not show it."""
    layer = case.make()
    x = case.input(torch.float32) * magnitude
    got = layer(x).detach().double().numpy()
    expected = case.expected(layer, x, torch.zeros_like(x))
    bound = 6 * UNIT[torch.float32] * expected["|y|"]
    assert (np.abs(got - expected["y"]) <= bound).all()


@pytest.mark.parametrize("case", [c for c in CASES if c.centered], ids=lambda c: c.name)
def test_constant_input_gives_the_bias_alone(case: Case) -> None:
    """Exactly: it is what zeros give. Norms that do not subtract the mean of their input are left out."""
    constant, zeros = case.make()(torch.full(case.shape, 0.1)), case.make()(torch.zeros(case.shape))
    assert torch.equal(constant, zeros)


@every_case
def test_repeats_are_bitwise_equal(case: Case) -> None:
    x = case.input()
    first, second = case.make()(x), case.make()(x)
    assert torch.equal(first, second)
