"""The moments of all processes' values together, as a function that autograd knows.

Forward, one all-gather of counts, means and sums of squared distances, merged in the order of ranks in
float64, so that all processes hold the same bits. Backward, one all-reduce of the gradients of mean and
variance, for each process's values enter the outputs of all.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from normkit.processes.line import Call, Layer, Line


class Share:
    """One process's part in the statistics of one forward pass.

    Attributes:
        stats: mean and biased variance over all processes, in rows (2, C); there once they were merged.
        count: how many values per channel these were taken of.
    """

    def __init__(self, line: Line, layer: Layer, values: int) -> None:
        self._line, self._layer, self._values = line, layer, values
        self.stats: Tensor | None = None
        self.count = 0

    def merge(self, mean: Tensor, var: Tensor, count: int | Tensor) -> tuple[Tensor, Tensor, int]:
        """From the moments (C) of this process's values, biased, to those of all, and their count.

        Raises:
            ValueError: all processes together have one value per channel.
            ProcessError: another process does something else, or does not come.
        """
        gradients = torch.is_grad_enabled() and (mean.requires_grad or var.requires_grad)
        call = Call("forward", self._layer, len(mean), gradients)
        sizes = (float(count), float(self._values))
        totals: list[float] = []
        mean, var = _Merge.apply(mean, var, sizes, totals, self._line, call)  # pyright: ignore
        self.count, values = map(int, totals)
        if values == 1:
            raise ValueError(
                "Expected more than 1 value per channel when training, got 1 in all processes together: "
                "use a larger batch, or .eval() to normalize by running statistics"
            )
        self.stats = torch.stack((mean.detach(), var.detach()))
        return mean, var, self.count


class _Merge(torch.autograd.Function):
    r"""Chan, Golub and LeVeque 1983, over all processes at once; `totals` becomes the sums of their sizes.

    .. math::
        \mu = \sum \frac{n_j}{n} \mu_j, \quad \sigma^2 = \sum \frac{n_j}{n} (\sigma_j^2 + (\mu_j - \mu)^2)
    """

    @staticmethod
    def forward(
        ctx: Any,
        own: Tensor,
        var: Tensor,
        sizes: tuple[float, float],
        totals: list[float],
        line: Line,
        call: Call,
    ) -> tuple[Tensor, Tensor]:
        all_sizes, moments = line.gather(call, sizes, [own, var])
        totals += [sum(column) for column in zip(*all_sizes, strict=True)]
        counts, total = [count for count, _ in all_sizes], max(totals[0], 1)
        shares = own.new_tensor([[count / total] for count in counts])
        means, variances = moments.chunk(2, dim=1)
        # About the mean of one process, so that a large mean costs no digits.
        first = means[counts.index(max(counts))]
        mean = first + _ordered_sum(shares * (means - first))
        var = _ordered_sum(shares * (variances + (means - mean).square()))
        ctx.save_for_backward(own, mean)
        ctx.share, ctx.line, ctx.call = sizes[0] / total, line, call._replace(which="backward")
        return mean, var

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        own, mean = ctx.saved_tensors
        dmean, dvar = _Sum.apply(*gradients, ctx.line, ctx.call)  # pyright: ignore
        dvar = ctx.share * dvar
        return ctx.share * dmean + 2 * (own - mean) * dvar, dvar, *(None,) * 4


class _Sum(torch.autograd.Function):
    """Sums over all processes, whose gradients are those of every process."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, line: Line, call: Call) -> tuple[Tensor, ...]:
        ctx.line, ctx.call = line, call
        return line.sum(call, [a, b]).chunk(2)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return *_Sum.apply(*gradients, ctx.line, ctx.call), None, None  # pyright: ignore


def _ordered_sum(x: Tensor) -> Tensor:
    """Over the first axis, row by row: what the sum does is not left to the machine it runs on."""
    return x.cumsum(0)[-1]
