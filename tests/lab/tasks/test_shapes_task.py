"""Images of shapes and lines: what they hold, and that a network can label them but a threshold cannot."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from normkit.lab.tasks.shapes import BACKGROUND, LINE, SHAPE, shapes


def test_equal_seeds_give_equal_arrays_and_others_do_not() -> None:
    a, b, other = shapes(8, seed=3), shapes(8, seed=3), shapes(8, seed=4)
    assert a.x.dtype == np.float32
    assert a.y.dtype == np.int64
    assert a.x.shape == (8, 1, 24, 24)
    assert a.y.shape == (8, 24, 24)
    assert np.array_equal(a.x, b.x)
    assert np.array_equal(a.y, b.y)
    assert not np.array_equal(a.x, other.x)


def test_more_images_begin_with_the_same_ones() -> None:
    assert np.array_equal(shapes(3, seed=0).x, shapes(9, seed=0).x[:3])


def test_lines_are_thin_and_shapes_are_not() -> None:
    """A 3x3 neighbourhood within the class fits into shapes often, into lines hardly ever: where two meet."""
    y = torch.from_numpy(shapes(200, seed=0).y)

    def solid(kind: int) -> float:
        inside = F.avg_pool2d((y == kind).float()[:, None], 3, stride=1) == 1
        return float(inside.float().mean() / (y == kind).float().mean())

    assert solid(LINE) < 0.01
    assert solid(SHAPE) > 0.25
    shares = torch.bincount(y.flatten(), minlength=3) / y.numel()
    assert 0.06 < shares[LINE] < 0.2
    assert 0.06 < shares[SHAPE] < 0.3
    assert shares[BACKGROUND] > 0.5


def test_a_pixel_alone_does_not_tell_a_line_from_a_shape() -> None:
    """Within an image both have the mean of the image's bright pixels, up to noise of the mean."""
    x, y = shapes(100, seed=1)
    gaps = [
        image[0][labels == LINE].mean() - image[0][labels == SHAPE].mean()
        for image, labels in zip(x, y, strict=True)
        if (labels == SHAPE).any()
    ]
    # Each gap is of two means of 20 pixels or more with noise of 0.15 · 1.5 at most.
    assert abs(np.mean(gaps)) < 4 * 0.15 * 1.5 * np.sqrt(2 / 20) / np.sqrt(len(gaps))


def test_a_small_network_learns_lines() -> None:
    x, y = map(torch.from_numpy, shapes(64, seed=0))
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 16, 5, padding=2), nn.ReLU(), nn.Conv2d(16, 3, 5, padding=2))
    optimizer = torch.optim.Adam(net.parameters(), 0.01)
    for _ in range(150):
        optimizer.zero_grad()
        F.cross_entropy(net(x), y).backward()
        optimizer.step()
    told = net(x).argmax(1)
    both = ((told == LINE) & (y == LINE)).sum() / ((told == LINE) | (y == LINE)).sum()
    assert both > 0.4  # chance, every pixel called a line, is the lines' share: 0.1


def test_small_images_are_refused() -> None:
    with pytest.raises(ValueError, match="12 pixels or more"):
        shapes(1, seed=0, size=8)
