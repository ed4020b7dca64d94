"""The moments of all processes' values together, as a function that autograd knows.

Forward, one all-gather of counts, means and sums of squared distances, merged in the order of ranks in
float64, so that all processes hold the same bits. Backward, one all-reduce of the gradients of mean and
variance, for each process's values enter the outputs of all.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from normkit import kernels
from normkit.processes.line import Call, Layer, Line, Pass


class Share:
    """One process's part in the statistics of one forward pass.

    Attributes:
        stats: mean and biased variance over all processes, in first rows of C; there once they were merged.
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
        call = self._call("forward", len(mean), gradients)
        mean, var, totals = _Merge.apply(mean, var, self._sizes(count), self._line, call)  # pyright: ignore
        self.stats = torch.stack((mean.detach(), var.detach()))
        self._settle(totals)
        return mean, var, self.count

    def moments(self, stats: Tensor, count: int | Tensor, *, gradients: bool) -> Tensor:
        """The same for one who differentiates by himself, with `gradients`, where there are any: rows (3, C)."""
        call = self._call("forward", stats.shape[1], gradients)
        self.stats, totals = _merged(self._line, call, stats[:2], self._sizes(count))
        self._settle(totals)
        return self.stats

    def gradients(self, own: Tensor) -> Tensor:
        """Backward, the gradients of the merged mean and variance (2, C), from what this process's values add."""
        return self._line.sum(self._call("backward", own.shape[1], True), own).view_as(own)

    def _call(self, which: Pass, channels: int, gradients: bool) -> Call:
        return Call(which, self._layer, channels, gradients)

    def _sizes(self, count: int | Tensor) -> tuple[float, float]:
        return float(count), float(self._values)

    def _settle(self, totals: list[float]) -> None:
        self.count, values = map(int, totals)
        if values == 1:
            raise ValueError(
                "Expected more than 1 value per channel when training, got 1 in all processes together: "
                "use a larger batch, or .eval() to normalize by running statistics"
            )


def _merged(line: Line, call: Call, own: Tensor, sizes: tuple[float, float]) -> tuple[Tensor, list[float]]:
    """Mean, biased variance, tail of the mean (3, C) of all values, from own means and variances; sums of sizes."""
    all_sizes, rows = line.gather(call, sizes, own)
    totals = [float(sum(column)) for column in zip(*all_sizes, strict=True)]
    return kernels.merged_moments([count for count, _ in all_sizes], rows), totals


class _Merge(torch.autograd.Function):
    """The moments that `_merged` merges, and gradients through them."""

    @staticmethod
    def forward(
        ctx: Any, own: Tensor, var: Tensor, sizes: tuple[float, float], line: Line, call: Call
    ) -> tuple[Tensor, Tensor, list[float]]:
        stats, totals = _merged(line, call, torch.cat((own, var)), sizes)
        mean, merged, _ = stats
        ctx.save_for_backward(own, mean)
        ctx.share, ctx.line, ctx.call = sizes[0] / max(totals[0], 1), line, call._replace(which="backward")
        return mean, merged, totals

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        own, mean = ctx.saved_tensors
        dmean, dvar = _Sum.apply(*gradients[:2], ctx.line, ctx.call)  # pyright: ignore
        dvar = ctx.share * dvar
        return ctx.share * dmean + 2 * (own - mean) * dvar, dvar, None, None, None


class _Sum(torch.autograd.Function):
    """Sums over all processes, whose gradients are those of every process."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, line: Line, call: Call) -> tuple[Tensor, ...]:
        ctx.line, ctx.call = line, call
        return line.sum(call, torch.cat((a, b))).clone().chunk(2)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return *_Sum.apply(*gradients, ctx.line, ctx.call), None, None  # pyright: ignore
