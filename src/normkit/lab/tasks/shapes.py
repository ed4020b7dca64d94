"""Images of shapes and thin lines, to be labelled pixel by pixel."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

BACKGROUND, SHAPE, LINE = range(3)  # the classes of a pixel
LINES = 3  # in each image
SHAPES = 2

_HALF_WIDTH = 0.6  # pixels; a line is one or two pixels wide
_NOISE = 0.15  # of the contrast 1 between a shape and its background, before the image's own contrast


class Images(NamedTuple):
    """Images `(N, 1, S, S)`, float32, and the class of each of their pixels `(N, S, S)`, int64."""

    x: NDArray[np.float32]
    y: NDArray[np.int64]


def shapes(count: int, seed: int, size: int = 24) -> Images:
    """Draw discs and rectangles, and over them lines about one pixel wide, under noise.

    Shapes and lines are equally bright, so that a pixel does not tell its class: what lies around it does. Images
    differ in brightness and contrast, as photographs do: contrast is 0.5 to 1.5 of the noise's scale, the
    background -1 to 1. Lines are about a tenth of the pixels.

    >>> shapes(2, seed=0).x.shape
    (2, 1, 24, 24)
    """
    if size < 12:
        raise ValueError(f"shapes need 12 pixels or more to a side, got {size}")
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:size, :size].astype(np.float64)
    x, y = np.empty((count, 1, size, size)), np.zeros((count, size, size), np.int64)
    for image, labels in zip(x, y, strict=True):
        for _ in range(SHAPES):
            labels[_solid(rng, rows, columns, size)] = SHAPE
        for _ in range(LINES):
            labels[_line(rng, rows, columns, size)] = LINE
        bright = (labels != BACKGROUND) + _NOISE * rng.standard_normal(labels.shape)
        image[0] = rng.uniform(0.5, 1.5) * bright + rng.uniform(-1, 1)
    return Images(x.astype(np.float32), y)


def _solid(
    rng: np.random.Generator, rows: NDArray[np.float64], columns: NDArray[np.float64], size: int
) -> NDArray[np.bool_]:
    """A disc or a rectangle, an eighth to a quarter of the side from its middle to its edge."""
    row, column = rng.uniform(size / 6, size * 5 / 6, 2)
    height, width = rng.uniform(size / 8, size / 4, 2)
    if rng.random() < 0.5:
        return (rows - row) ** 2 + (columns - column) ** 2 <= height**2
    return (abs(rows - row) <= height) & (abs(columns - column) <= width)


def _line(
    rng: np.random.Generator, rows: NDArray[np.float64], columns: NDArray[np.float64], size: int
) -> NDArray[np.bool_]:
    """The pixels near a segment of half to a whole side's length, through a random point in any direction."""
    middle = rng.uniform(size / 4, size * 3 / 4, 2)
    angle, half = rng.uniform(0, np.pi), rng.uniform(size / 4, size / 2)
    direction = np.array([np.sin(angle), np.cos(angle)])
    down, right = rows - middle[0], columns - middle[1]
    along = np.clip(down * direction[0] + right * direction[1], -half, half)
    away = np.hypot(down - along * direction[0], right - along * direction[1])
    return away <= _HALF_WIDTH
