"""Quantiles of a stream in constant memory."""

from __future__ import annotations

import math

import torch
from torch import Tensor

_ACCURACY = 0.02
_GAMMA = (1 + _ACCURACY) / (1 - _ACCURACY)
_LEAST, _MOST = 1e-6, 1e6
_SIDE = math.ceil(math.log(_MOST / _LEAST) / math.log(_GAMMA))


class Sketch:
    r"""Counts of values in bins whose bounds grow as :math:`\gamma^i`, on both sides of zero.

    A quantile between 1e-6 and 1e6 in size comes out within 2% of itself; what is smaller counts as zero, what is
    larger as 1e6, and what is not finite does not count. Two sketches merge by adding their counts.

    Masson, Rim and Lee, "DDSketch: A fast and fully-mergeable quantile sketch with relative-error guarantees", 2019.

    >>> sketch = Sketch()
    >>> sketch.add(torch.arange(1.0, 101.0))
    >>> abs(sketch.quantile(0.5) - 50) <= 0.02 * 50
    True
    >>> round(sketch.share_above(90.0), 2)
    0.1
    """

    def __init__(self) -> None:
        self.counts = torch.zeros(2 * _SIDE + 1, dtype=torch.int64)

    def add(self, values: Tensor) -> None:
        """Count values of any shape."""
        values = values.detach().flatten().float()
        values = values[values.isfinite()]
        size = values.abs().clamp(max=_MOST)
        step = (size.clamp(min=_LEAST) / _LEAST).log().div(math.log(_GAMMA)).ceil().clamp(max=_SIDE)
        bins = (step * values.sign()).long() + _SIDE
        self.counts += torch.bincount(bins, minlength=2 * _SIDE + 1).to(self.counts.device)

    @property
    def total(self) -> int:
        """How many values were counted."""
        return int(self.counts.sum())

    def quantile(self, q: float) -> float:
        """The value below which a share q of them lies; NaN of none."""
        if not self.total:
            return math.nan
        below = self.counts.cumsum(0)
        return float(_centres()[int(torch.searchsorted(below, max(1, math.ceil(q * self.total))))])

    def share_above(self, value: float) -> float:
        """The share of values above a value; NaN of none."""
        return float(self.counts[_centres() > value].sum()) / self.total if self.total else math.nan


def _centres() -> Tensor:
    """The value that stands for each bin."""
    steps = torch.arange(1, _SIDE + 1, dtype=torch.float64)
    sizes = _LEAST * _GAMMA**steps * 2 / (1 + _GAMMA)
    return torch.cat((-sizes.flip(0), torch.zeros(1, dtype=torch.float64), sizes))
