"""Sequences of different lengths, of which a few steps matter: the adding problem."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

VARIANCE = 1 / 6  # of the target: the squared error of the best constant answer


class Sequences(NamedTuple):
    """Steps `(N, T, 2)`, float32: a value and a mark; lengths `(N)`, int64; targets `(N)`, float32.

    Beyond a sequence's length its steps are padding, all zeros.
    """

    x: NDArray[np.float32]
    lengths: NDArray[np.int64]
    y: NDArray[np.float32]


def adding(count: int, seed: int, longest: int = 16) -> Sequences:
    """Make sequences of values from [0, 1), two of them marked by a 1; the target is the sum of these two.

    Lengths are half of `longest`, three quarters or all of it, each as likely: a batch has several of each, so that
    norms with statistics over a batch have some at every step. The marks are at any two different steps.

    Hochreiter and Schmidhuber, "Long short-term memory", 1997, section 5.4, whose marks and lengths differ.

    >>> made = adding(3, seed=0)
    >>> bool(((made.x[..., 0] * made.x[..., 1]).sum(1) == made.y).all())
    True
    """
    if longest < 4 or longest % 4:
        raise ValueError(
            f"lengths of quarters with two marked steps in two need a multiple of 4, got {longest}"
        )
    rng = np.random.default_rng(seed)
    lengths = rng.integers(2, 5, count) * (longest // 4)
    steps = np.arange(longest)
    real = steps < lengths[:, None]
    values = np.where(real, rng.random((count, longest)), 0).astype(np.float32)
    order = np.where(real, rng.random((count, longest)), 2).argsort(1)  # a random order of the real steps
    marks = np.zeros((count, longest), np.float32)
    np.put_along_axis(marks, order[:, :2], 1, 1)
    y = (values * marks).sum(1, dtype=np.float32)
    return Sequences(np.stack([values, marks], 2), lengths, y)
