"""What looks like padding is counted place by place, and what merely is constant somewhere is not."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import normkit as nk
from normkit.doctor.padding import padding

LENGTHS = [5, 9, 12, 7, 12, 3]  # of 12
EXPECTED = sum(
    12 - length - 1 for length in LENGTHS if length < 12
)  # each run, but for the value that it repeats


def sequences(channels: int = 4, left: bool = False, value: float = 0.0) -> Tensor:
    """(N, C, L), padded by a constant."""
    x = torch.randn(len(LENGTHS), channels, 12, generator=torch.Generator().manual_seed(0))
    for sequence, length in zip(x, LENGTHS, strict=True):
        sequence[:, length:] = value
    return x.flip(2) if left else x


def images(sizes: list[tuple[int, int]], boxed: bool = False) -> tuple[Tensor, int]:
    """(N, 3, 16, 16), the pictures at the near sides or in the middle; and how many places are beside them."""
    x = torch.zeros(len(sizes), 3, 16, 16)
    generator = torch.Generator().manual_seed(1)
    for image, (height, width) in zip(x, sizes, strict=True):
        top, left = ((16 - height) // 2, (16 - width) // 2) if boxed else (0, 0)
        image[:, top : top + height, left : left + width] = torch.randn(3, height, width, generator=generator)
    return x, sum(256 - height * width for height, width in sizes)


@pytest.mark.parametrize("kind", ["batch", "mixed", "instance", "group"])
@pytest.mark.parametrize("left", [False, True])
def test_sequences_by_channels(kind: str, left: bool) -> None:
    assert padding(sequences(left=left, value=0.5), kind, 0) == (EXPECTED, 72)


@pytest.mark.parametrize(
    ("kind", "axes", "found"), [("layer", 2, EXPECTED), ("rms", 2, EXPECTED), ("layer", 1, 0)]
)
def test_sequences_by_features(kind: str, axes: int, found: int) -> None:
    """A norm over the features of one position alone has no padding in it."""
    assert padding(sequences().transpose(1, 2), kind, axes) == (found, 72 if axes > 1 else 0)


def test_positions_that_are_taken_for_channels() -> None:
    assert padding(sequences().transpose(1, 2), "batch", 0) == (EXPECTED, 72)
    assert (
        padding(sequences().transpose(1, 2).relu(), "batch", 0)[0] == 0
    )  # units that are off, for all one knows


def test_sequences_that_were_flattened() -> None:
    rows = sequences().transpose(1, 2).reshape(-1, 4)
    padded = sum(12 - length for length in LENGTHS if 12 - length >= 3)
    assert padding(rows, "batch", 0) == (padded, 72)


@pytest.mark.parametrize("count", [2, 3])
def test_images_padded_to_the_largest(count: int) -> None:
    x, beside = images([(16, 16), (16, 10), (12, 16), (9, 9)][: count + 1])
    assert padding(x, "batch", 0) == (beside, 256 * (count + 1))
    assert (
        padding(F.conv2d(x, torch.randn(5, 3, 1, 1), torch.randn(5)), "batch", 0)[0] == beside
    )  # by any constant


def test_letterboxed_images() -> None:
    x, beside = images([(16, 10), (12, 16), (9, 16)], boxed=True)
    assert padding(x, "group", 0) == (beside, 256 * 3)


def test_volumes_padded_to_the_largest() -> None:
    x = torch.randn(2, 3, 6, 7, 8, generator=torch.Generator().manual_seed(2))
    x[0, :, 4:], x[0, ..., 5:] = 0, 0
    assert padding(x, "batch", 0) == (6 * 7 * 8 - 4 * 7 * 5, 2 * 6 * 7 * 8)


def digits(n: int) -> Tensor:
    """Objects on a plain ground, of any size at any place that leaves a margin."""
    generator = torch.Generator().manual_seed(3)
    x = torch.zeros(n, 1, 28, 28)
    for image in x:
        height, width = torch.randint(6, 20, (2,), generator=generator).tolist()
        top, left = (int(torch.randint(2, 27 - size, (1,), generator=generator)) for size in (height, width))
        image[:, top : top + height, left : left + width] = torch.rand(height, width, generator=generator)
    return x


def clothes(n: int) -> Tensor:
    """As tall as the picture and in its middle, or as wide and somewhere."""
    generator = torch.Generator().manual_seed(4)
    x = torch.zeros(n, 1, 28, 28)
    for i, image in enumerate(x):
        size = int(torch.randint(8, 20, (1,), generator=generator))
        start = (28 - size) // 2 if i % 2 else int(torch.randint(28 - size, (1,), generator=generator))
        part = torch.rand(28, size, generator=generator)
        image[:, :, start : start + size] = part if i % 2 else 0
        image[:, start : start + size] = image[:, start : start + size] if i % 2 else part.T
    return x


DRAW = torch.Generator().manual_seed(5)


@pytest.mark.parametrize(
    "x",
    [
        digits(64),
        clothes(64),
        torch.zeros(4, 3, 8, 8),
        torch.randn(6, 4, 12, generator=DRAW),
        torch.randn(6, 4, 12, generator=DRAW).relu(),
        torch.randn(6, 4, 1, generator=DRAW),
        torch.randn(16, 5, generator=DRAW),
        torch.ones(6, 4, 12),
        torch.ones(16, 5),
        torch.randint(2, (64, 1), generator=DRAW).float(),
        torch.tensor([[0.0, 1.0]] * 4 + [[1.0, 0.0]] * 4 + [[1.0, 2.0]]),  # sorted by what it says
        torch.randn(4, 3, 8, 1, generator=DRAW).expand(4, 3, 8, 8),
    ],
    ids=lambda x: "x".join(map(str, x.shape)),
)
@pytest.mark.parametrize("kind", ["batch", "group"])
def test_what_is_no_padding(x: Tensor, kind: str) -> None:
    assert padding(x, kind, 0)[0] == 0


def test_of_all_batches_the_share() -> None:
    x = sequences(value=2.0)
    norm = nn.Sequential(nn.BatchNorm1d(4))
    traffic = nk.diagnose(norm, [x, torch.randn(6, 4, 12)]).readings.norms[0].traffic
    assert traffic is not None
    assert math.isclose(traffic.padded, EXPECTED / 144)
