"""Statistics that merge exactly, and the four estimators of what inference should use.

`Moments` are the truth about a set of values: count, mean, and m2, the sum of squared distances from the
mean. Two of them merge into what one pass over both sets would have given, whichever chunks, masks,
processes or accumulation steps they came from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from normkit import kernels


@dataclass(frozen=True)
class Moments:
    r"""Count, mean and sum of squared distances from the mean, in float64.

    Attributes:
        count: how many values each statistic was taken of; float64, of the shape of mean or broadcastable.
        mean: :math:`\mu = \frac{1}{n} \sum x`, float64.
        m2: :math:`\sum (x - \mu)^2`, float64. Squares are never summed about zero.
    """

    count: Tensor
    mean: Tensor
    m2: Tensor

    @staticmethod
    def of(x: Tensor, dim: int | Sequence[int] | None = None, *, mask: Tensor | None = None) -> Moments:
        """The moments of x over the axes dim (all of them by default), two passes in float64.

        Args:
            x: any floating dtype, any shape.
            dim: the axes that share a statistic; the result has the remaining ones.
            mask: bool, broadcastable to x; only values where it is true count. No values give count 0,
                mean 0 and m2 0, which merge as nothing.

        >>> m = Moments.of(torch.tensor([1.0, 2.0, 6.0]))
        >>> m.count.item(), m.mean.item(), m.m2.item()
        (3.0, 3.0, 14.0)
        """
        dims = list(range(x.dim())) if dim is None else [dim] if isinstance(dim, int) else list(dim)
        x = x.detach().double()
        valid = torch.ones((), dtype=torch.bool, device=x.device) if mask is None else mask
        valid = valid.expand(x.shape)
        x = x.where(valid, 0)
        count = valid.sum(dims, keepdim=True).double()
        mean = x.sum(dims, keepdim=True) / count.clamp(min=1)
        # The first mean of large values is a little off; the mean of what remains is the correction.
        mean = mean + (x - mean).where(valid, 0).sum(dims, keepdim=True) / count.clamp(min=1)
        m2 = (x - mean).where(valid, 0).square().sum(dims, keepdim=True)
        return Moments(count.squeeze(dims), mean.squeeze(dims), m2.squeeze(dims))

    def merge(self, *others: Moments) -> Moments:
        r"""The moments of all the values together (Chan, Golub and LeVeque 1983).

        .. math::
            n = n_a + n_b,\quad \delta = \mu_b - \mu_a,\quad \mu = \mu_a + \delta \frac{n_b}{n},\quad
            M_2 = M_{2,a} + M_{2,b} + \delta^2 \frac{n_a n_b}{n}

        >>> a, b = Moments.of(torch.tensor([1.0, 2.0])), Moments.of(torch.tensor([6.0]))
        >>> a.merge(b).mean.item()
        3.0
        """
        merged = self
        for other in others:
            count = merged.count + other.count
            share = other.count / count.clamp(min=1)
            delta = other.mean - merged.mean
            mean = merged.mean + delta * share
            m2 = merged.m2 + other.m2 + delta.square() * merged.count * share
            merged = Moments(count, mean, m2)
        return merged

    def var(self, *, unbiased: bool) -> Tensor:
        """m2 / count, or m2 / (count - 1) where it is unbiased; NaN where there are too few values."""
        return self.m2 / (self.count - 1 if unbiased else self.count)


class Estimator(Protocol):
    """Where inference statistics come from: fed with the moments of each training batch, asked at the end."""

    def update(self, batch: Moments) -> None:
        """Take in the moments of one batch."""
        ...

    def estimate(self) -> tuple[Tensor, Tensor]:
        """Mean and variance for inference, float64.

        Raises:
            RuntimeError: if no batch was seen.
        """
        ...


class ExponentialAverage:
    r"""Moving average over batches, what `momentum=0.1` means: :math:`r \leftarrow (1 - m) r + m b`.

    It starts, as running statistics do, from mean 0 and variance 1, and stores the unbiased variance.
    """

    def __init__(self, momentum: float = 0.1) -> None:
        self.momentum = momentum
        self._running: tuple[Tensor, Tensor] | None = None

    def update(self, batch: Moments) -> None:
        """Take in the moments of one batch."""
        if self._running is None:
            self._running = torch.zeros_like(batch.mean), torch.ones_like(batch.m2)
        update_running_(*self._running, _rows(batch), batch.count, self.momentum)

    def estimate(self) -> tuple[Tensor, Tensor]:
        """Mean and variance for inference."""
        return _seen(self._running)


class CumulativeAverage:
    """Plain average of the batches' means and unbiased variances, what `momentum=None` means."""

    def __init__(self) -> None:
        self._running: tuple[Tensor, Tensor] | None = None
        self._batches: Tensor | None = None

    def update(self, batch: Moments) -> None:
        """Take in the moments of one batch."""
        if self._running is None:
            self._running = torch.zeros_like(batch.mean), torch.ones_like(batch.m2)
            self._batches = torch.zeros_like(batch.count, dtype=torch.long)
        update_running_(*self._running, _rows(batch), batch.count, None, self._batches)

    def estimate(self) -> tuple[Tensor, Tensor]:
        """Mean and variance for inference."""
        return _seen(self._running)


class Exact:
    """The moments of the whole data set, merged: the variance between batches is part of it."""

    def __init__(self) -> None:
        self._moments: Moments | None = None

    def update(self, batch: Moments) -> None:
        """Take in the moments of one batch."""
        self._moments = batch if self._moments is None else self._moments.merge(batch)

    def estimate(self) -> tuple[Tensor, Tensor]:
        """Mean and unbiased variance of all values seen."""
        moments = _seen(self._moments)
        return moments.mean, moments.var(unbiased=True)


class RandomBatch:
    """One of the batches, each with the same chance (reservoir sampling of one); its unbiased variance."""

    def __init__(self, generator: torch.Generator | None = None) -> None:
        self.generator = generator
        self._batches = 0
        self._kept: Moments | None = None

    def update(self, batch: Moments) -> None:
        """Take in the moments of one batch: the k-th replaces the kept one with probability 1/k."""
        self._batches += 1
        if int(torch.randint(self._batches, (), generator=self.generator)) == 0:
            self._kept = batch

    def estimate(self) -> tuple[Tensor, Tensor]:
        """Mean and unbiased variance of the kept batch."""
        moments = _seen(self._kept)
        return moments.mean, moments.var(unbiased=True)


def update_running_(
    running_mean: Tensor,
    running_var: Tensor,
    stats: Tensor,
    count: int | Tensor,
    momentum: float | None,
    num_batches_tracked: Tensor | None = None,
    num_batches_skipped: Tensor | None = None,
) -> None:
    r"""Move running statistics towards those of a batch, in place: the only way to do it.

    .. math:: r \leftarrow r + m (b - r), \quad b = \mu, \; \sigma^2 \frac{n}{n - 1}

    with the factor :math:`m` = momentum, or the reciprocal of the number of batches where that is None.
    A batch of fewer than two values has no variance: it changes nothing and is not counted.

    Args:
        running_mean: (C), any floating dtype; changed in place, as are the next and the last two.
        running_var: (C), holds the unbiased variance.
        stats: of the batch, its first rows mean and biased variance (C), in float64 where there is float64; or
            of K batches that follow one another, (K, C).
        count: values per channel; a tensor where a mask decided it; int64 (K) for K batches.
        momentum: weight of the batch, None for the cumulative average.
        num_batches_tracked: () int64, needed where momentum is None.
        num_batches_skipped: () int64. Where it is there, a batch whose mean or variance is not finite in the
            buffers' dtype changes nothing else and is counted here.
    """
    if not isinstance(count, Tensor) and count < 2:
        return
    if momentum is None and num_batches_tracked is None:
        raise ValueError("momentum=None averages over all batches: it needs num_batches_tracked")
    kernels.update_running(
        running_mean, running_var, stats, count, momentum, num_batches_tracked, num_batches_skipped
    )


def _rows(batch: Moments) -> Tensor:
    return torch.stack((batch.mean, batch.var(unbiased=False)))


_T = TypeVar("_T")


def _seen(state: _T | None) -> _T:
    if state is None:
        raise RuntimeError("an estimate needs at least one batch, got none: call update() first")
    return state


def pooled(mean: Tensor, var: Tensor, count: int | Tensor, dim: int) -> tuple[Tensor, Tensor]:
    r"""Mean and biased variance of the sets along an axis, taken together; the axis stays with length 1.

    .. math:: \mu = \sum_k \frac{n_k}{n} \mu_k,\quad \sigma^2 = \sum_k \frac{n_k}{n} (\sigma_k^2 + (\mu_k - \mu)^2)

    Differentiable, unlike `Moments.merge`. An int as the count means that all sets are of the same size.

    >>> mean, var = pooled(torch.tensor([1.0, 3.0]), torch.tensor([0.0, 0.0]), 5, 0)
    >>> mean.item(), var.item()
    (2.0, 1.0)
    """
    if isinstance(count, Tensor):
        share = count / count.expand_as(mean).sum(dim, keepdim=True).clamp(min=1)
        together = (share * mean).sum(dim, keepdim=True)
        return together, (share * (var + (mean - together).square())).sum(dim, keepdim=True)
    size: Any = mean.shape[dim]  # torch.jit traces sizes as tensors
    sets = (
        size.clamp(min=1) if isinstance(size, Tensor) else torch.sym_max(size, 1)
    )  # no set at all gives zeros
    together = mean.sum(dim, keepdim=True) / sets
    return together, (var + (mean - together).square()).sum(dim, keepdim=True) / sets
