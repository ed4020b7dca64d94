"""Fitting a line for each channel, in one pass over chunks of data: the arithmetic of `convert`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Comoments:
    r"""Count, means, and sums of products of the distances from the means, of pairs (x, y), in float64.

    Attributes:
        count: how many pairs each channel has.
        x: the mean of x, of the channels' shape, as are the following.
        y: the mean of y.
        xx: :math:`\sum (x - \bar x)^2`. Products are never summed about zero.
        xy: :math:`\sum (x - \bar x)(y - \bar y)`.
        yy: :math:`\sum (y - \bar y)^2`.
    """

    count: int
    x: Tensor
    y: Tensor
    xx: Tensor
    xy: Tensor
    yy: Tensor

    @staticmethod
    def of(x: Tensor, y: Tensor, dim: Sequence[int]) -> Comoments:
        """Over the axes dim, of one chunk; two passes over it, so that large means cost no digits."""
        x, y = x.detach().double(), y.detach().double()
        dims = list(dim)
        x_mean, y_mean = x.mean(dims, keepdim=True), y.mean(dims, keepdim=True)
        x, y = x - x_mean, y - y_mean
        count = x.numel() // max(x_mean.numel(), 1)
        sums = ((a * b).sum(dims) for a, b in ((x, x), (x, y), (y, y)))
        return Comoments(count, x_mean.squeeze(dims), y_mean.squeeze(dims), *sums)

    def merge(self, other: Comoments) -> Comoments:
        """Those of all pairs together (Chan, Golub and LeVeque 1983)."""
        count = self.count + other.count
        share = other.count / max(count, 1)
        dx, dy = other.x - self.x, other.y - self.y
        weight = self.count * share
        return Comoments(
            count,
            self.x + dx * share,
            self.y + dy * share,
            self.xx + other.xx + dx * dx * weight,
            self.xy + other.xy + dx * dy * weight,
            self.yy + other.yy + dy * dy * weight,
        )

    def line(self) -> Line:
        r"""The least squares :math:`y \approx a x + b` for each channel; a = 0 where x is constant."""
        slope = torch.where(self.xx > 0, self.xy / self.xx, 0)
        return Line(slope, self.y - slope * self.x, _relative(self.yy - slope * self.xy, self))

    def line_through_zero(self) -> Line:
        r"""The least squares :math:`y \approx a x`."""
        xx = self.xx + self.count * self.x.square()
        xy = self.xy + self.count * self.x * self.y
        slope = torch.where(xx > 0, xy / xx, 0)
        residue = self.yy + self.count * self.y.square() - slope * xy
        return Line(slope, torch.zeros_like(slope), _relative(residue, self))


@dataclass(frozen=True)
class Line:
    """A line for each channel.

    Attributes:
        slope: a.
        intercept: b.
        error: the root of all squared residues together, relative to that of y.
    """

    slope: Tensor
    intercept: Tensor
    error: float


def _relative(residue: Tensor, of: Comoments) -> float:
    total = (of.yy + of.count * of.y.square()).sum()
    return float((residue.clamp(min=0).sum() / total).sqrt()) if total > 0 else 0.0
