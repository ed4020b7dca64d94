"""What hooks on a norm gather, in memory that does not grow with the number of batches."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from normkit.doctor.kinds import norm_kind
from normkit.doctor.padding import padding
from normkit.doctor.readings import Traffic
from normkit.doctor.sketch import Sketch
from normkit.statistics import Moments

_QUANTILES = 2**12  # values per batch that quantiles are taken of
_MOMENTS = 2**16  # and moments, but for those of the input in training mode: they are of all values
_LEAST_BATCHES = 4  # below, the scatter of their means says nothing


class Tap:
    """Hooks on one norm."""

    def __init__(self, layer: nn.Module) -> None:
        self.layer: Any = layer
        self.kind = norm_kind(layer)
        self.samples = self.values = 2**62
        self.masked = False
        self.dtype = torch.float32
        self.moments: dict[str, Moments] = {}
        self.batch_means: Moments | None = None
        self.last_mean: Tensor | None = None
        self.steps = torch.zeros(())  # squares of the differences of successive batches' means, summed
        self.spread = self.expected = torch.zeros(())  # of values, and of batch means drawn alike
        self.batches = 0
        self.sampled = 0
        self.low = self.high = torch.zeros(())
        self.places = self.padded = 0
        self.gradients = self.calls = 0.0
        self.predicted, self.outputs = Sketch(), Sketch()
        self.evaluates = False  # which pass is under way
        self.lonely = False  # whether batch statistics would be of one value
        self.handles = [
            layer.register_forward_pre_hook(self._before, with_kwargs=True),
            layer.register_forward_hook(self._after, with_kwargs=True, always_call=True),
        ]

    def remove(self) -> None:
        """Take the hooks off."""
        for handle in self.handles:
            handle.remove()

    def _before(self, layer: nn.Module, args: Any, kwargs: Any) -> None:
        x = _input(args, kwargs)
        if x is None or x.dim() < 2 or not x.numel():
            return
        self.masked |= kwargs.get("mask") is not None
        self.dtype = x.dtype
        if not self.evaluates:
            self.samples = min(self.samples, x.shape[0])
            self.values = min(self.values, self._values(x))
            # torch refuses statistics of one value; this batch goes by running ones, and is reported.
            self.lonely = self.kind in ("batch", "mixed") and layer.training and x.numel() == x.shape[1]
            if self.lonely:
                layer.training = False
        if self.evaluates:
            self._merge("input_evaluated", _roughly(self._by_channel(x)))
        else:
            self._take(self._by_channel(x), x)

    def _after(self, layer: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        if self.lonely:
            layer.training, self.lonely = True, False
        if not isinstance(output, Tensor) or output.dim() < 2 or not output.numel():
            return
        y = self._by_channel(output.detach())
        if self.evaluates:
            self._merge("output_evaluated", _roughly(y))
            return
        self._merge("output", _roughly(y))
        low, high = (bound.double().cpu() for bound in (y.amin((0, 2)), y.amax((0, 2))))
        first = not self.low.dim()
        self.low = low if first else torch.minimum(self.low, low)
        self.high = high if first else torch.maximum(self.high, high)
        self.outputs.add(_sampled(y, _QUANTILES))
        if output.requires_grad:
            output.register_hook(self._take_gradient)

    def _take_gradient(self, gradient: Tensor) -> None:
        self.gradients += length(gradient)
        self.calls += 1

    def _take(self, x: Tensor, whole: Tensor) -> None:
        """An input in training mode, as (N, C, S) and as it came."""
        var, mean = torch.var_mean(x, -1, correction=0)
        moments = _moments(var, mean, x.shape[-1])
        self._merge("input", moments)
        self.batches += 1
        batch_mean = Moments(torch.ones(()).double(), moments.mean, torch.zeros_like(moments.mean))
        self.batch_means = batch_mean if self.batch_means is None else self.batch_means.merge(batch_mean)
        if self.last_mean is not None:
            self.steps = self.steps + (moments.mean - self.last_mean).square()
        self.last_mean = moments.mean
        if x.shape[0] > 1:
            self.sampled += 1
            self.spread = self.spread + moments.var(unbiased=True)
            self.expected = self.expected + mean.double().var(0).cpu() / x.shape[0]
        running_mean, running_var = (getattr(self.layer, f"running_{name}", None) for name in ("mean", "var"))
        if isinstance(running_mean, Tensor) and isinstance(running_var, Tensor) and self.kind == "batch":
            some = _sampled(x, _QUANTILES)
            self.predicted.add(
                (some - running_mean[:, None]) / (running_var[:, None] + self.layer.eps).sqrt()
            )
        padded, places = padding(whole.detach(), self.kind, len(getattr(self.layer, "normalized_shape", ())))
        self.padded += padded
        self.places += places

    def _merge(self, name: str, moments: Moments) -> None:
        known = self.moments.get(name)
        self.moments[name] = moments if known is None else known.merge(moments)

    def _by_channel(self, x: Tensor) -> Tensor:
        """(N, C, S); norms of features have one channel here, for their statistics are not of channels."""
        x = x.detach()
        if self.kind in ("layer", "rms", "other"):
            return x.reshape(x.shape[0], 1, -1)
        return x.reshape(x.shape[0], x.shape[1], -1)

    def _values(self, x: Tensor) -> int:
        """Values that one statistic is taken of."""
        if self.kind == "group":
            return x[0].numel() // int(self.layer.num_groups)
        if self.kind == "instance":
            return x[0, 0].numel()
        if self.kind in ("layer", "rms"):
            return math.prod(self.layer.normalized_shape)
        return x.numel() // x.shape[1]

    def traffic(self) -> Traffic | None:
        """What went through; None of nothing."""
        if set(self.moments) != {"input", "input_evaluated", "output", "output_evaluated"}:
            return None
        effective = scatter = apart = drift = math.nan
        if self.sampled and self.batch_means is not None:
            expected, spread = self.expected / self.sampled, self.spread / self.sampled
            moving = spread > 0
            if moving.any():
                counted = float(self.moments["input"].count.max()) / self.batches
                worth = (spread / expected.clamp(min=1e-300))[moving].clamp(max=counted)
                effective = float(worth.median())
                if self.batch_means.count >= _LEAST_BATCHES:
                    between = self.batch_means.var(unbiased=True)
                    scatter = float((between / expected.clamp(min=1e-300))[moving].median())
                    apart = float((between / spread.clamp(min=1e-300))[moving].median().sqrt())
                    steps = self.steps / (self.batches - 1)
                    drift = float((steps / spread.clamp(min=1e-300))[moving].median().sqrt())
        return Traffic(
            self.samples, self.values, **self.moments, low=self.low, high=self.high, effective=effective,
            scatter=scatter, apart=apart, drift=drift, padded=self.padded / max(1, self.places), masked=self.masked,
            predicted=self.predicted, outputs=self.outputs, dtype=self.dtype,
            gradient=self.gradients / self.calls if self.calls else None,
        )  # fmt: skip


def length(gradient: Tensor) -> float:
    """Its Euclidean norm."""
    found = float(gradient.norm())
    if 1e-15 < found < 1e15:
        return found
    return float(gradient.norm(dtype=torch.float64))  # the square may not be a float32


def _input(args: Any, kwargs: Any) -> Tensor | None:
    value = args[0] if args else kwargs.get("input")
    return value if isinstance(value, Tensor) and value.is_floating_point() else None


def _moments(var: Tensor, mean: Tensor, count: int) -> Moments:
    """Of channels, from those of each sample and channel (N, C), each over `count` values."""
    mean, var = mean.double().cpu(), var.double().cpu()
    centre = mean.mean(0)
    centre = centre + (mean - centre).mean(0)
    m2 = count * (var + (mean - centre).square()).sum(0)
    return Moments(torch.full_like(centre, count * mean.shape[0]), centre, m2)


def _roughly(x: Tensor) -> Moments:
    """The moments of some of (N, C, S)."""
    some = _sampled(x, _MOMENTS)
    return _moments(*torch.var_mean(some, -1, correction=0), some.shape[-1])


def _sampled(x: Tensor, values: int) -> Tensor:
    """Some samples and positions of every channel of (N, C, S), evenly spaced."""
    spare = max(1, x.numel() // values)
    apart = min(x.shape[2], spare)
    return x[:: max(1, spare // apart), :, ::apart]
