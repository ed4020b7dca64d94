"""The norms under test, what a scalar oracle needs to know of them, and what tests of several files ask."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from numpy.typing import NDArray

from normkit import reference
from normkit.reference import Array, Cache

U = 2.0**-53  # unit roundoff of float64
EPS = 1e-3  # not the default, which the tests of the articles and of torch use
DEFAULT_EPS = 1e-5
Index = tuple[int, ...]


def close(actual: Array | None, expected: Array | list[float] | None, atol: float) -> None:
    assert actual is not None
    assert expected is not None
    assert_allclose(actual, expected, rtol=0, atol=atol)


# The norms under test, each beside what the scalar oracle needs to know: which elements share a statistic
# (an equal `set_of(index)`), and which entry of weight and bias an element meets (`affine_of(index)`).


@dataclass(frozen=True)
class Norm:
    name: str
    shape: Index
    forward: Callable[[Array, Array | None, Array | None], tuple[Array, Cache]]  # (x, weight, bias)
    set_of: Callable[[Index], Index]
    affine_of: Callable[[Index], Index] = lambda index: index[1:2]  # its channel
    mean: Array | None = None  # where the statistic is a constant
    var: Array | None = None
    mask: NDArray[np.bool_] | None = None
    mask_lacks: int = 1  # the axis of x that the mask has not
    has_bias: bool = True

    def __str__(self) -> str:
        return f"{self.name}-{'x'.join(map(str, self.shape))}"

    def is_valid(self, index: Index) -> bool:
        """Whether the element is no padding."""
        lacks = self.mask_lacks % len(self.shape)
        return self.mask is None or bool(self.mask[index[:lacks] + index[lacks + 1 :]])

    def valid(self) -> NDArray[np.bool_]:
        assert self.mask is not None
        return np.broadcast_to(np.expand_dims(self.mask, self.mask_lacks), self.shape)

    def parameters(self, rng: np.random.Generator) -> tuple[Array, Array | None]:
        shape = self.affine_of(self.shape)
        return rng.uniform(0.5, 2.0, shape), rng.standard_normal(shape) if self.has_bias else None


def batch(shape: Index, mask: NDArray[np.bool_] | None = None) -> Norm:
    name = "batch" if mask is None else "batch-mask"
    return Norm(
        name, shape, lambda x, w, b: reference.batch_norm(x, w, b, EPS, mask), lambda i: i[1:2], mask=mask
    )


def inference(shape: Index, mask: NDArray[np.bool_] | None = None) -> Norm:
    name = "inference" if mask is None else "inference-mask"
    mean, var = np.array([0.5, -1.0, 2.0]), np.array([0.25, 4.0, 1.5])

    def forward(x: Array, weight: Array | None, bias: Array | None) -> tuple[Array, Cache]:
        return reference.batch_norm_inference(x, mean, var, weight, bias, EPS, mask)

    return Norm(name, shape, forward, lambda i: i[1:2], mean=mean, var=var, mask=mask)


def layer(shape: Index, ndim: int, mask: NDArray[np.bool_] | None = None) -> Norm:
    return Norm(
        f"layer-{ndim}" if mask is None else f"layer-{ndim}-mask",
        shape,
        lambda x, w, b: reference.layer_norm(x, ndim, w, b, EPS, mask),
        lambda i: i[:-ndim],
        lambda i: i[-ndim:],
        mask=mask,
        mask_lacks=-1,
    )


def rms(shape: Index, ndim: int, mask: NDArray[np.bool_] | None = None) -> Norm:
    return replace(
        layer(shape, ndim, mask),
        name=f"rms-{ndim}" if mask is None else f"rms-{ndim}-mask",
        forward=lambda x, w, b: reference.rms_norm(x, ndim, w, EPS, mask),
        mean=np.zeros(shape[:-ndim]),
        has_bias=False,
    )


def group(shape: Index, groups: int, mask: NDArray[np.bool_] | None = None) -> Norm:
    return Norm(
        f"group-{groups}" if mask is None else f"group-{groups}-mask",
        shape,
        lambda x, w, b: reference.group_norm(x, groups, w, b, EPS, mask),
        lambda i: (i[0], i[1] * groups // shape[1]),
        mask=mask,
    )


def instance(shape: Index, mask: NDArray[np.bool_] | None = None) -> Norm:
    name = "instance" if mask is None else "instance-mask"
    return Norm(
        name, shape, lambda x, w, b: reference.instance_norm(x, w, b, EPS, mask), lambda i: i[:2], mask=mask
    )


def conditional(norm: Norm) -> Norm:
    """With weight and bias per sample."""
    return replace(norm, name=f"conditional-{norm.name}", affine_of=lambda i: i[:2])


def filter_response(shape: Index, mask: NDArray[np.bool_] | None = None) -> Norm:
    def forward(x: Array, weight: Array | None, bias: Array | None) -> tuple[Array, Cache]:
        return reference.filter_response_norm(x, weight, bias, eps=EPS, mask=mask)

    name = "filter-response" if mask is None else "filter-response-mask"
    return Norm(name, shape, forward, lambda i: i[:2], mean=np.zeros(shape[:2]), mask=mask)


MASK_1D = np.array([True, False, True, True, True])
MASK_TOKENS = np.array([True, False, True])
MASK_2D = np.array([[True, True, False], [True, False, False], [True, True, True], [False, False, False]])
NORMS = [
    *(batch(shape) for shape in [(5, 3), (4, 2, 3), (2, 3, 2, 2)]),
    *(batch((5, 3), MASK_1D), batch((4, 2, 3), MASK_2D)),
    *(inference((4, 3)), inference((2, 3, 2, 2)), inference((4, 3, 3), MASK_2D)),
    *(layer((4,), 1), layer((3, 4), 1), layer((2, 3, 2, 2), 2)),
    *(rms((3, 4), 1), rms((2, 3, 2, 2), 3)),
    *(group((2, 4), 2), group((2, 6, 3), 3), group((2, 4, 2, 2), 1)),
    *(instance((3, 2, 4)), instance((2, 2, 2, 3))),
    *(filter_response((3, 2, 4)), filter_response((2, 2, 2, 3)), filter_response((4, 2, 3), MASK_2D)),
    *(layer((3, 4), 1, MASK_TOKENS), layer((4, 3, 4), 1, MASK_2D), layer((4, 3, 4), 2, MASK_2D)),
    *(rms((4, 3, 4), 1, MASK_2D), rms((4, 3, 4), 2, MASK_2D)),
    *(group((4, 4, 3), 2, MASK_2D), instance((4, 2, 3), MASK_2D)),
    *(
        conditional(batch((4, 2, 3), MASK_2D)),
        conditional(instance((3, 2, 4))),
        conditional(group((2, 4), 2)),
    ),
]
every_norm = pytest.mark.parametrize("norm", NORMS, ids=str)


@st.composite
def inputs(draw: st.DrawFn, shape: Index) -> Array:
    """Values that share a scale and an offset: from 1e-30 to 1e30, and means up to 1e8 deviations."""
    size = math.prod(shape)
    deviations = draw(st.lists(st.floats(-4, 4, width=32), min_size=size, max_size=size))
    scale = 10.0 ** draw(st.integers(-30, 30))
    offset = draw(st.sampled_from([0.0, 1.0, -1e3, 1e6, 1e8]))
    return scale * (offset + np.reshape(deviations, shape))


def slopes(f: Callable[[Array], float], at: Array) -> Array:
    """∂f/∂a by the five-point central difference, whose error is h⁴ |f⁽⁵⁾| / 30 + O(u |f| / h)."""
    h = 1e-3
    result = np.zeros(at.shape)
    for index in np.ndindex(at.shape):
        step = np.zeros(at.shape)
        step[index] = h
        near, far = f(at + step) - f(at - step), f(at + 2 * step) - f(at - 2 * step)
        result[index] = (8 * near - far) / (12 * h)
    return result


def derivative(f: Callable[[Array], float], at: Array | float) -> Array:
    return slopes(f, np.asarray(at, np.float64))
