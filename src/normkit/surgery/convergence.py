"""How well batches determine running statistics, and how far other statistics are from them: arithmetic alone."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from normkit.norms.tracking import Running
from normkit.statistics import Moments


class Evidence:
    r"""What the batches of one layer say together: their moments, merged, and how these vary between batches.

    The mean over K batches is off by about :math:`s_m / \sqrt{K}`, :math:`s_m` being the deviation between the means
    of batches, and the variance within batches likewise, by :math:`s_v`; the variance between them is off by
    :math:`\sqrt{2 / K} s_m^2`, as that of normal values. In a value that is normalized, this makes

    .. math:: e = \sqrt{\frac{1}{K} \left(\frac{s_m^2}{\sigma^2} + \frac{s_v^2 + 2 s_m^4}{4 \sigma^4}\right)}

    standard deviations, as the root mean square over channels. Where batches resemble one another, as in shuffled
    data, few suffice; where each holds one class, it takes many, and this says so.
    """

    def __init__(self, eps: float) -> None:
        self._eps = eps
        self._parts: tuple[Moments, ...] | None = None

    def update(self, batch: Moments) -> None:
        """Take in a batch of two values per channel or more; fewer have no variance."""
        if not bool((batch.count > 1).all()):
            return
        one = torch.ones_like(batch.mean)
        spread = (
            Moments(one, value, torch.zeros_like(value)) for value in (batch.mean, batch.var(unbiased=True))
        )
        self._take((batch, *spread))

    def pack(self) -> Tensor:
        """What was seen as rows of one tensor (3, 3, C), on the CPU, for another process to merge."""
        parts = self._parts or ()
        rows = [torch.stack([part.count.expand_as(part.mean), part.mean, part.m2]) for part in parts]
        return torch.stack(rows).cpu() if rows else torch.empty(0, 3, 0, dtype=torch.float64)

    def merge(self, packed: Tensor) -> None:
        """Take in what another process has packed."""
        if len(packed):
            self._take(tuple(Moments(*rows) for rows in packed))

    def _take(self, parts: tuple[Moments, ...]) -> None:
        known = self._parts
        self._parts = parts if known is None else tuple(a.merge(b) for a, b in zip(known, parts, strict=True))

    @property
    def moments(self) -> Moments | None:
        """Of all values; None before the first batch."""
        return None if self._parts is None else self._parts[0]

    @property
    def averages(self) -> tuple[Tensor, Tensor]:
        """Of the batches' means and unbiased variances, each batch counting as much as any other."""
        assert self._parts is not None
        return self._parts[1].mean, self._parts[2].mean

    def error(self) -> Tensor:
        """The expected error e, from two batches on; infinite before."""
        if self._parts is None:
            return torch.tensor(math.inf, dtype=torch.float64)
        moments, means, variances = self._parts
        var = moments.var(unbiased=False) + self._eps
        between, within = means.var(unbiased=True), variances.var(unbiased=True)
        squares = between / var + (within + 2 * between.square()) / (4 * var.square())
        return (squares / means.count).mean().sqrt().nan_to_num(nan=math.inf)


def batches_needed(batches: int, error: float, tolerance: float) -> int:
    """How many batches bring the error down to a tolerance: it falls with the root of their number.

    >>> batches_needed(10, 0.04, 0.02)
    40
    """
    return math.ceil(batches * (error / tolerance) ** 2)


def gap(mean: Tensor, var: Tensor, true_mean: Tensor, true_var: Tensor, eps: float) -> float:
    r"""How far values normalized by some statistics are from those normalized by the true ones.

    .. math::
        g = \sqrt{\left(\frac{\mu - \hat\mu}{\hat\sigma}\right)^2 + \left(\frac{\sigma}{\hat\sigma} - 1\right)^2}

    In standard deviations, as the root mean square over channels and values: 0 where they are the same, infinite
    where the statistics are not finite or the variance is negative.

    >>> one = torch.ones(1)
    >>> gap(one * 0.5, one, one * 0.0, one, 0.0)
    0.5
    """
    mean, var, true_mean, true_var = (t.double() for t in (mean, var, true_mean, true_var))
    deviation = (var + eps).sqrt()
    shift, stretch = (true_mean - mean) / deviation, ((true_var + eps).sqrt() / deviation) - 1
    return (shift.square() + stretch.square()).mean().sqrt().nan_to_num(nan=math.inf, posinf=math.inf).item()


def movement(old: Running, mean: Tensor, var: Tensor, eps: float) -> tuple[float, float]:
    """How statistics moved: the mean, in new deviations, as the root mean square over channels; and the deviation, new
    over old, as the geometric mean.
    """
    mean, var = mean.double(), var.double() + eps
    shift = ((mean - old.mean) / var.sqrt()).square().mean().sqrt()
    ratio = (var / (old.var.double() + eps)).log().mean().div(2).exp()
    return shift.item(), ratio.item()
