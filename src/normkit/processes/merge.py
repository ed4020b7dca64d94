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
        sizes = mean.new_tensor([int(count), self._values])
        gradients = torch.is_grad_enabled() and (mean.requires_grad or var.requires_grad)
        call = Call("forward", self._layer, len(mean), gradients)
        mean, var, sizes = _Merge.apply(mean, var, sizes, self._line, call)  # pyright: ignore
        self.count, values = (int(size) for size in sizes.tolist())
        if values == 1:
            raise ValueError(
                "Expected more than 1 value per channel when training, got 1 in all processes together: "
                "use a larger batch, or .eval() to normalize by running statistics"
            )
        self.stats = torch.stack((mean.detach(), var.detach()))
        return mean, var, self.count


class _Merge(torch.autograd.Function):
    r"""Chan, Golub and LeVeque 1983, over all processes at once.

    .. math::
        \mu = \sum \frac{n_j}{n} \mu_j, \quad \sigma^2 = \sum \frac{n_j}{n} (\sigma_j^2 + (\mu_j - \mu)^2)
    """

    @staticmethod
    def forward(
        mean: Tensor, var: Tensor, sizes: Tensor, line: Line, call: Call
    ) -> tuple[Tensor, Tensor, Tensor]:
        rows = line.gather(call, torch.cat((sizes, mean, var * sizes[0])))
        counts, _, means, m2 = rows.split((1, 1, len(mean), len(mean)), dim=1)
        sizes = _ordered_sum(rows[:, :2])
        total = sizes[0].clamp(min=1)
        # About the mean of one process, so that a large mean costs no digits.
        first = means[int(counts.argmax())]
        mean = first + _ordered_sum(counts * (means - first)) / total
        var = _ordered_sum(m2 + counts * (means - mean).square()) / total
        return mean, var, sizes

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        own, _, sizes, ctx.line, call = inputs
        ctx.call = call._replace(which="backward")
        mean, _, totals = output
        ctx.mark_non_differentiable(totals)
        ctx.save_for_backward(own, mean)
        ctx.share = sizes[0] / totals[0].clamp(min=1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        dmean, dvar, _ = gradients
        own, mean = ctx.saved_tensors
        dmean, dvar = _Sum.apply(torch.cat((dmean, dvar)), ctx.line, ctx.call).chunk(2)  # pyright: ignore
        return ctx.share * (dmean + 2 * (own - mean) * dvar), ctx.share * dvar, None, None, None


class _Sum(torch.autograd.Function):
    """The sum over all processes, whose gradient is that of every process."""

    @staticmethod
    def forward(x: Tensor, line: Line, call: Call) -> Tensor:
        return line.sum(call, x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, ctx.line, ctx.call = inputs

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return _Sum.apply(gradients[0], ctx.line, ctx.call), None, None  # pyright: ignore


def _ordered_sum(x: Tensor) -> Tensor:
    """Over the first axis, row by row: what the sum does is not left to the machine it runs on."""
    return x.cumsum(0)[-1]
