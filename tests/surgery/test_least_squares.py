"""Lines fitted in one pass are those of NumPy's solver on all data."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from normkit.surgery.least_squares import Comoments


def data(offset: float = 0.0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x, noise = torch.randn(2, 50, 3, 4, generator=generator, dtype=torch.float64)
    return x + offset, 2 * x + 0.3 * noise - 1 + offset


def chunked(x: torch.Tensor, y: torch.Tensor) -> Comoments:
    parts = [
        Comoments.of(a, b, [0, 2]) for a, b in zip(x.split([1, 30, 19]), y.split([1, 30, 19]), strict=True)
    ]
    return parts[0].merge(parts[1]).merge(parts[2])


@pytest.mark.parametrize("offset", [0.0, 1e6])
@pytest.mark.parametrize("intercept", [True, False])
def test_numpy_finds_the_same(offset: float, intercept: bool) -> None:
    x, y = data(offset)
    fit = chunked(x, y).line() if intercept else chunked(x, y).line_through_zero()
    residue = 0.0
    for c in range(3):
        columns = [x[:, c].flatten().numpy(), np.ones(200)][: 1 + intercept]
        (slope, *rest), squares, *_ = np.linalg.lstsq(np.stack(columns, 1), y[:, c].flatten().numpy())
        # NumPy solves with means in: of the 16 digits, those of the offset are lost.
        assert abs(fit.slope[c].item() - slope) <= 1e-14 + 1e-15 * offset
        assert not rest or abs(fit.intercept[c].item() - rest[0]) <= 1e-14 + 1e-15 * offset * offset
        residue += float(squares[0])
    expected = np.sqrt(residue / y.square().sum().item())
    assert abs(fit.error - expected) <= 1e-6 * expected + 1e-15 * offset


def test_chunks_do_not_matter() -> None:
    x, y = data()
    whole = Comoments.of(x, y, [0, 2])
    for a, b in zip(vars(chunked(x, y)).values(), vars(whole).values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-14, atol=1e-14)  # a hundred units of sums of 200 terms


def test_a_perfect_fit_and_a_constant() -> None:
    x, _ = data()
    line = Comoments.of(x, 3 * x + 1, [0, 2]).line()
    assert line.error <= 1e-7  # the root of a few units
    constant = Comoments.of(torch.ones(4, 3), torch.full((4, 3), 5.0), [0])
    assert constant.line().slope.tolist() == [0, 0, 0]
    assert constant.line().intercept.tolist() == [5, 5, 5]
    assert constant.line_through_zero().slope.tolist() == [5, 5, 5]
    assert constant.line().error == 0
