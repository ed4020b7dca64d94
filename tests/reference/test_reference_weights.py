"""The specification of norms of weights."""

from __future__ import annotations

import math

import numpy as np
import pytest
from known_norms import EPS, Index, U, close, slopes

from normkit import reference


@pytest.mark.parametrize(("shape", "dim"), [((3, 4), 0), ((3, 4), 1), ((2, 3, 4), 1), ((5,), 0)])
def test_weight_norm(shape: Index, dim: int) -> None:
    """The lengths are g, the directions those of v; and the gradient is the slope."""
    rng = np.random.default_rng(23)
    v, g, dw = rng.standard_normal(shape), rng.uniform(0.5, 2.0, shape[dim]), rng.standard_normal(shape)
    w, cache = reference.weight_norm(v, g, dim)
    others = tuple(axis for axis in range(len(shape)) if axis != dim)
    close(np.sqrt((w**2).sum(axis=others)), g, atol=8 * U * g.max())
    lengths = np.sqrt((v**2).sum(axis=others, keepdims=True))
    close(w * lengths, v * np.expand_dims(g, others), atol=16 * U * np.abs(v).max() * g.max())
    dv, dgamma, _ = reference.backward(dw, cache)
    assert dgamma is not None
    close(dv, slopes(lambda a: float((dw * reference.weight_norm(a, g, dim)[0]).sum()), v), atol=1e-8)
    root = math.sqrt(v.size // shape[dim])
    close(
        dgamma / root, slopes(lambda a: float((dw * reference.weight_norm(v, a, dim)[0]).sum()), g), atol=1e-8
    )


def test_weight_standardization_is_layer_norm_of_each_filter() -> None:
    weight = np.random.default_rng(24).standard_normal((4, 3, 2))
    atol = 16 * U * 3  # values of up to 3
    close(reference.weight_standardization(weight, EPS)[0], reference.layer_norm(weight, 2, eps=EPS)[0], atol)
    other = reference.weight_standardization(np.moveaxis(weight, 0, 1), EPS, dim=1)[0]
    close(np.moveaxis(other, 1, 0), reference.layer_norm(weight, 2, eps=EPS)[0], atol)


def test_spectral_norm() -> None:
    """The largest singular value is 1; and the gradient is the slope."""
    rng = np.random.default_rng(25)
    w, dy = rng.standard_normal((2, 3, 4))
    y, (u, sigma, v) = reference.spectral_norm(w)
    close(np.linalg.svd(y)[1][:1], [1.0], atol=8 * U)
    close(w @ v, sigma * u, atol=32 * U * sigma)
    expected = slopes(lambda a: float((dy * reference.spectral_norm(a)[0]).sum()), w)
    close(reference.spectral_norm_backward(dy, w), expected, atol=1e-8)  # an SVD errs by a few u more
