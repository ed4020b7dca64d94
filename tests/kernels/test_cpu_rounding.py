"""Rounding to the half types: every number that they have, times what makes ties, subnormal numbers and infinities."""

from __future__ import annotations

import pytest
import torch

from normkit.kernels import cpu

EVERY = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
# Products with these are ties or lie just beside them; are subnormal, where some processors' own instruction gives
# zero; overflow.
FACTORS = [1.0, 1.00390625, 1.01171875, 1.0000001, 1.5, -3.25, 1e-3, 2.0**-20, 0.7e-38, 3e38, 70000.0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("factor", FACTORS)
@pytest.mark.parametrize("spread", [1, 977], ids=["neighbours", "all magnitudes in a vector"])
@pytest.mark.parametrize("size", [(1, 1, -1), (-1, 64)], ids=["plane", "table"])
def test_outputs_are_rounded_to_nearest_even(
    dtype: torch.dtype, factor: float, spread: int, size: tuple[int, ...]
) -> None:
    order = torch.arange(EVERY.numel()) * spread % EVERY.numel()
    x = EVERY[order].view(dtype).view(size)
    one, factors = torch.ones(x.shape[1], dtype=torch.float64), torch.full((x.shape[1],), factor)
    y = cpu.channels_normalize(x, one * 0, one, factors, None, eps=0.0)
    expected = (
        (x.double() * factors + 0.0).float().to(dtype)
    )  # an fma with a bias of 0, which makes -0 into 0
    same = (y.view(torch.int16) == expected.view(torch.int16)) | (y.isnan() & expected.isnan())
    assert same.all(), f"{x[~same][:3]} times {factor} gave {y[~same][:3]}, not {expected[~same][:3]}"
