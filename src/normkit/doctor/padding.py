"""What looks like padding in the input of a norm: places that are constant, in some samples more than in others.

Only where places share a statistic: sequences (N, C, L) and images (N, C, H, W) in norms of channels, rows (N L, C) of
sequences that were flattened, (N, L, C) in batch norms of L and in layer norms over several axes.
"""

from __future__ import annotations

import torch
from torch import Tensor

_CHANNELS = ("batch", "mixed", "instance", "group")
_FEATURES = ("layer", "rms")
_BY_BATCH = ("batch", "mixed")


def padding(x: Tensor, kind: str | None, axes: int) -> tuple[int, int]:
    """How many places of an input look like padding, and how many it has.

    Args:
        x: what comes in.
        kind: of the norm, as `kinds.norm_kind` says.
        axes: of a layer or RMS norm: over how many of the last axes it works.

    >>> x = torch.arange(1.0, 13.0).reshape(2, 1, 6)
    >>> x[0, :, 2:] = 0.0
    >>> padding(x, "batch", 0)
    (3, 12)
    """
    if kind in _FEATURES:
        return (_at_ends(x), x.shape[0] * x.shape[1]) if axes > 1 and x.dim() == 3 else (0, 0)
    if kind not in _CHANNELS:
        return 0, 0
    if x.dim() > 3:
        return _borders(x), x[:, 0].numel()
    if x.dim() == 3:
        found, places = _at_ends(x.transpose(1, 2)), x.shape[0] * x.shape[2]
        if (
            not found
            and kind in _BY_BATCH
            and x.shape[2] > 1
            and (across := _at_ends(x))
            and bool((x < 0).any())
        ):
            return across, x.shape[0] * x.shape[1]  # without negative values, these are units behind a ReLU
        return found, places
    return (_alike(x), x.shape[0]) if kind in _BY_BATCH else (0, 0)


def _at_ends(x: Tensor) -> int:
    """Of (N, L, C): positions at one end of their sequence that repeat those further in."""
    ends = (x[:, -1] == x[:, -2]).all(1) | (x[:, 0] == x[:, 1]).all(1) if x.shape[1] > 1 else None
    if ends is None or not bool(ends.any()):  # nearly always, and at a small part of the cost
        return 0
    same = (x[:, 1:] == x[:, :-1]).all(2)
    lengths = torch.maximum(_run(same.flip(1)), _run(same))
    return int(lengths.sum()) if int(lengths.max()) > 1 and int(lengths.min()) < int(lengths.max()) else 0


def _run(flags: Tensor) -> Tensor:
    """How many of (N, L) are true from the start on."""
    return flags.long().cumprod(1).sum(1)


def _alike(x: Tensor) -> int:
    """Of (N, C): rows in runs of three and more that are all one and the same row."""
    same = (x[1:] == x[:-1]).all(1)
    inner = torch.zeros(len(x), dtype=torch.bool, device=x.device)
    if len(same) > 1:
        inner[1:-1] = same[1:] & same[:-1]  # the row before and the row behind are the same
    if not bool(inner.any()):
        return 0
    in_runs = inner.clone()
    in_runs[:-1] |= inner[1:]
    in_runs[1:] |= inner[:-1]
    rows = x[in_runs]
    return len(rows) if len(rows) < len(x) and bool((rows == rows[:1]).all()) else 0


def _borders(x: Tensor) -> int:
    """Of (N, C, *space): places in constant borders, as padding to one size or letterboxing leaves them.

    Objects on a plain ground have borders too, at all sides and of any width. Padding to the size of the largest lies
    at the far sides alone and misses a sample at each of them; letterboxing has the same width at opposite sides, and
    leaves another axis of the sample without.
    """
    space = range(2, x.dim())
    if min(x.shape[2:]) < 3:
        return 0
    corner = (-1,) * len(space)
    beside = [(*corner[:i], -2, *corner[i + 1 :]) for i in range(len(space))]
    # Of either kind, the far corner is like its neighbour; nearly always it is not, and that costs next to nothing.
    if not any(bool((x[(..., *corner)] == x[(..., *place)]).all(1).any()) for place in beside):
        return 0
    near = torch.stack([_margin(x, axis) for axis in space], 1)
    far = torch.stack([_margin(x.flip(axis), axis) for axis in space], 1)
    both = near + far
    if not bool(both.amin(0).lt(both.amax(0)).any()):
        return 0
    padded = bool((near == 0).all()) and bool((far.amin(0) == 0).all())
    boxed = bool(((near - far).abs() <= 1).all()) and bool((both == 0).any(1).all())
    if not padded and not boxed:
        return 0
    sizes = torch.tensor(x.shape[2:], device=x.device)
    return round(float(((1 - (1 - both / sizes).prod(1)) * sizes.prod()).sum()))


def _margin(x: Tensor, axis: int) -> Tensor:
    """How many lines across an axis are as constant as the first one, from the start on; 0 in what is all constant."""
    lines = x.movedim(axis, 2).flatten(3)
    blank = (lines == lines[:, :, :1, :1]).all(3).all(1)
    margin = _run(blank)
    return margin * (margin < blank.shape[1])
