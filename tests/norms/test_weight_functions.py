"""Norms of weights as functions, against the specification."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.autograd import gradcheck, gradgradcheck
from weighted import U32, UNIT

import normkit as nk
from normkit import reference


def bound(u: float, size: np.ndarray | float, dtype: torch.dtype, value: np.ndarray) -> np.ndarray:
    """So many roundings of the arithmetic, and for half types the one to storage."""
    smallest = torch.finfo(dtype).smallest_normal * UNIT[dtype]
    return u * size + (dtype.itemsize == 2) * (UNIT[dtype] * np.abs(value) + smallest)


class TestFunctions:
    """Against the specification: 8 u of the terms forward, 16 u of them backward, as for the norms of rows."""

    @pytest.mark.parametrize("dtype", list(UNIT), ids=str)
    @pytest.mark.parametrize(
        ("shape", "dim"), [((5, 7), 0), ((5, 7), 1), ((6, 4, 3, 3), 0), ((6, 4, 3, 3), 1), ((9,), 0)]
    )
    @pytest.mark.parametrize("magnitude", [1.0, 1e-3])
    def test_weight_norm(
        self, dtype: torch.dtype, shape: tuple[int, ...], dim: int, magnitude: float
    ) -> None:
        generator = torch.Generator().manual_seed(1)
        v = (torch.randn(shape, generator=generator) * magnitude).to(dtype).requires_grad_()
        sizes = [n if d == dim else 1 for d, n in enumerate(shape)]
        g = (torch.rand(sizes, generator=generator) + 0.5).to(dtype).requires_grad_()
        dw = torch.randn(shape, generator=generator).to(dtype)
        w = nk.functional.weight_norm(v, g, dim)
        w.backward(dw)
        assert w.dtype == dtype
        exact = [t.detach().double().numpy() for t in (v, g, dw)]
        expected, cache = reference.weight_norm(exact[0], exact[1].ravel(), dim)
        dv, dgamma, _ = reference.backward(exact[2], cache)
        filter_size = v.numel() // shape[dim]
        dg = dgamma.reshape(sizes) / np.sqrt(filter_size)
        # g is divided by a root first, in its own dtype: one rounding more.
        u = max(UNIT[dtype], 0 if dtype == torch.float64 else U32)
        scale = np.abs(cache.weight).reshape(sizes) / np.sqrt(cache.var).reshape(sizes)
        terms = scale * (np.abs(exact[2]) + np.abs(cache.xhat) * np.abs(exact[2] * cache.xhat).mean())
        for name, got, wanted, size in (
            ("w", w, expected, 8 * np.abs(expected)),
            ("dv", v.grad, dv, 16 * terms * filter_size),
            ("dg", g.grad, dg, 16 * np.abs(exact[2] * cache.xhat).sum() / np.sqrt(filter_size)),
        ):
            error = np.abs(got.detach().double().numpy() - wanted)
            assert (error <= bound(u, size, dtype, wanted)).all(), name

    def test_weight_norm_keeps_its_digits_where_squares_leave_float32(self) -> None:
        v = torch.randn(4, 50, generator=torch.Generator().manual_seed(2))
        g = torch.ones(4, 1)
        expected = reference.weight_norm(v.double().numpy(), np.ones(4))[0]
        for magnitude in (2.0**100, 2.0**-100):
            w = nk.functional.weight_norm(v * magnitude, g)
            np.testing.assert_allclose(w, expected, rtol=8 * U32)

    @pytest.mark.parametrize("dtype", list(UNIT), ids=str)
    @pytest.mark.parametrize(("shape", "dim"), [((5, 7), 0), ((6, 4, 3, 3), 0), ((6, 4, 3, 3), 1)])
    @pytest.mark.parametrize("offset", [0.0, 1e3])
    def test_weight_standardization(
        self, dtype: torch.dtype, shape: tuple[int, ...], dim: int, offset: float
    ) -> None:
        generator = torch.Generator().manual_seed(3)
        offset = min(offset, 10.0) if dtype.itemsize == 2 else offset  # bfloat16 counts in fours at 1e3
        weight = (torch.randn(shape, generator=generator) + offset).to(dtype).requires_grad_()
        dw = torch.randn(shape, generator=generator).to(dtype)
        standardized = nk.functional.weight_standardization(weight, dim=dim)
        standardized.backward(dw)
        expected, cache = reference.weight_standardization(weight.detach().double().numpy(), 1e-10, dim)
        dweight = reference.backward(dw.double().numpy(), cache)[0]
        u = UNIT[dtype] if dtype == torch.float64 else U32
        # In float64 the mean cannot be kept in anything wider: the specification has the same error.
        size = np.abs(expected) + (dtype == torch.float64)
        error = np.abs(standardized.detach().double().numpy() - expected)
        assert (error <= bound(8 * u, size, dtype, expected)).all()
        terms = (1 + np.abs(expected)) * np.abs(dw.double().numpy()).max() / np.sqrt(cache.var.min())
        error = np.abs(weight.grad.double().numpy() - dweight)
        assert (error <= bound(16 * u, terms, dtype, dweight)).all()

    def test_spectral_norm_at_the_singular_vectors(self) -> None:
        w = torch.randn(5, 3, 2, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
        dw = torch.randn(w.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
        expected, (u, _, v) = reference.spectral_norm(w.flatten(1).numpy())
        w.requires_grad_()
        got = nk.functional.spectral_norm(w, torch.tensor(u), torch.tensor(v))
        got.backward(dw)
        np.testing.assert_allclose(got.detach().flatten(1), expected, rtol=1e-14)
        gradient = reference.spectral_norm_backward(dw.flatten(1).numpy(), w.detach().flatten(1).numpy())
        np.testing.assert_allclose(
            w.grad.flatten(1), gradient, rtol=0, atol=1e-14 * np.abs(gradient).max() * 10
        )

    def test_spectral_norm_iterates_towards_the_singular_vectors(self) -> None:
        w = torch.randn(6, 4, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
        u, v = (nn.functional.normalize(torch.ones(n, dtype=torch.float64), dim=0) for n in (6, 4))
        got = nk.functional.spectral_norm(w, u, v, n_power_iterations=500)
        np.testing.assert_allclose(got, reference.spectral_norm(w.numpy())[0], rtol=1e-10)
        np.testing.assert_allclose(w @ v, torch.linalg.matrix_norm(w, 2) * u, rtol=1e-8)

    @pytest.mark.parametrize("dim", [0, 1])
    def test_derivatives(self, dim: int) -> None:
        generator = torch.Generator().manual_seed(8)
        w = torch.randn(3, 4, 2, generator=generator, dtype=torch.float64).requires_grad_()
        sizes = [n if d == dim else 1 for d, n in enumerate(w.shape)]
        g = (torch.rand(sizes, generator=generator, dtype=torch.float64) + 0.5).requires_grad_()
        u, v = (torch.randn(n, dtype=torch.float64) for n in (w.shape[dim], w.numel() // w.shape[dim]))
        for function, inputs in (
            (lambda w, g: nk.functional.weight_norm(w, g, dim), (w, g)),
            (lambda w: nk.functional.weight_standardization(w, dim=dim), (w,)),
            (lambda w: nk.functional.spectral_norm(w, u, v, dim=dim), (w,)),
        ):
            assert gradcheck(function, inputs, check_forward_ad=True, check_batched_grad=True)
            assert gradgradcheck(function, inputs)

    def test_wrong_arguments(self) -> None:
        w = torch.randn(3, 4)
        for dim in (2, -3):
            for call in (
                lambda d: nk.functional.weight_norm(w, torch.ones(3, 1), d),
                lambda d: nk.functional.weight_standardization(w, dim=d),
                lambda d: nk.functional.spectral_norm(w, torch.ones(3), torch.ones(4), dim=d),
            ):
                with pytest.raises(IndexError, match=r"range of \[-2, 1\], but got"):
                    call(dim)
        with pytest.raises(RuntimeError, match=r"g must have the shape \[3, 1\].* got \[3\]"):
            nk.functional.weight_norm(w, torch.ones(3))
        with pytest.raises(RuntimeError, match=r"one number, got shape \[3, 1\]"):
            nk.functional.weight_norm(w, torch.ones(3, 1), None)
        with pytest.raises(ValueError, match=r"more than one value .* shape \[3, 1\]"):
            nk.functional.weight_standardization(torch.ones(3, 1))
        with pytest.raises(ValueError, match="eps must not be negative, got -1"):
            nk.functional.weight_standardization(w, -1)
        with pytest.raises(RuntimeError, match=r"got \[4\] and \[3\]"):
            nk.functional.spectral_norm(w, torch.ones(4), torch.ones(3))
