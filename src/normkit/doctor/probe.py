"""One pass of hooks over the batches: a model goes in, readings come out, and the model is as it was.

The norms run in training mode and in evaluation mode, everything else in evaluation mode both times: what differs
is then the norms' doing, and no random number is drawn.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from normkit.doctor import anatomy
from normkit.doctor.batches import Batch, Loss, read
from normkit.doctor.graph import Graph, first_tensor, recorded, trace
from normkit.doctor.kinds import norm_kind
from normkit.doctor.readings import Gap, Readings, Run
from normkit.doctor.state import untouched
from normkit.doctor.taps import Tap
from normkit.doctor.target import blaming
from normkit.errors import InputError
from normkit.statistics import Moments

_ATTRIBUTED = 24  # norms that are switched one by one, those with the largest gaps
_WORTH_SWITCHING = 0.02  # a gap of the output, in its deviations, below which that is not done


def probe(
    model: nn.Module,
    batches: Iterable[Any] | None,
    loss: Loss | None,
    optimizer: torch.optim.Optimizer | None,
) -> Readings:
    """Read a model, and what batches do in it.

    Raises:
        InputError: batches that cannot be read; a model or a loss that raises, with the cause.
    """
    if batches is None:
        return anatomy.readings(model, optimizer, trace(model))
    pass_ = _Pass(model, loss)
    with untouched(model):
        trains = anatomy.flags_after_train(model)
        for batch in read(batches, _device(model)):
            pass_.batch(batch, trains)
        traffic = pass_.traffic()
        effects = pass_.effects(trains)
        gradients = {name: total / pass_.batches for name, total in pass_.gradients.items()}
    return anatomy.readings(
        model, optimizer, pass_.graph or trace(model), pass_.run(), traffic, effects, gradients
    )


class _Pass:
    """What is gathered from batch to batch."""

    def __init__(self, model: nn.Module, loss: Loss | None) -> None:
        self.model, self.loss = model, loss
        self.layers = {name: layer for name, layer in model.named_modules() if norm_kind(layer) is not None}
        self.weights = anatomy.weights_of(model)
        self.graph: Graph | None = None
        self.taps: dict[str, Tap] = {}
        self.batches = 0
        self.sizes: list[int] = []
        self.input: Moments | None = None
        self.distance = self.length = 0.0
        self.losses = [0.0, 0.0]
        self.gradients: dict[str, float] = {}
        self.first: Batch | None = None

    def batch(self, batch: Batch, trains: dict[str, bool]) -> None:
        """One batch in both modes."""
        self.batches += 1
        self.sizes = [min([*self.sizes, batch.samples]), max([*self.sizes, batch.samples])]
        self._take_input(batch)
        self.first = self.first or batch
        self.taps = {name: Tap(layer) for name, layer in self.layers.items()} if not self.taps else self.taps
        try:
            output = self._train(batch, trains)
            evaluated = self._evaluate(batch)
        finally:
            for name in self.taps:
                self.taps[name].evaluates = False
        gap = (output - evaluated).square().sum()
        self.distance += float(gap)
        self.length += float((output - output.mean()).square().sum())

    def _train(self, batch: Batch, trains: dict[str, bool]) -> Tensor:
        """The norms train; gradients where there is a loss."""
        self._switch(trains)
        learns = self.loss is not None and any(p.requires_grad for p in self.model.parameters())
        for parameter in self.model.parameters():
            parameter.grad = None
        with torch.set_grad_enabled(learns):
            if self.graph is None:
                with recorded(self.model) as graph_of:
                    output = self._forward(batch)
                    self.graph = graph_of(output)
            else:
                output = self._forward(batch)
            value = self._loss(output, batch)
        if value is not None:
            self.losses[0] += float(value.detach())
            if learns and value.requires_grad:
                value.backward()
                self._take_gradients()
        return _of_model(output).detach().double()

    def _evaluate(self, batch: Batch) -> Tensor:
        self._switch({})
        for tap in self.taps.values():
            tap.evaluates = True
        with torch.no_grad():
            output = self._forward(batch)
            value = self._loss(output, batch)
        self.losses[1] += 0.0 if value is None else float(value)
        return _of_model(output).double()

    def _switch(self, trains: dict[str, bool]) -> None:
        """Everything to evaluation mode but these norms."""
        for module in self.model.modules():
            module.training = False
        for name, layer in self.layers.items():
            layer.training = trains.get(name, False)

    def _forward(self, batch: Batch) -> Any:
        with blaming(f"the model raises on batch {self.batches - 1}"):
            return batch.forward(self.model)

    def _loss(self, output: Any, batch: Batch) -> Tensor | None:
        if self.loss is None:
            return None
        with blaming(f"the loss raises on batch {self.batches - 1}"):
            return self.loss(output, batch.target)

    def _take_gradients(self) -> None:
        for name, weight in self.weights.items():
            if weight.grad is not None:
                length = float(weight.grad.norm(dtype=torch.float64))
                self.gradients[name] = self.gradients.get(name, 0.0) + length

    def _take_input(self, batch: Batch) -> None:
        x = next(
            (value for value in (*batch.args, *batch.kwargs.values()) if isinstance(value, Tensor)), None
        )
        if x is not None and x.is_floating_point() and x.dim() > 1:
            features = x.dim() - 1 if x.dim() == 3 else 1
            moments = Moments.of(x.cpu(), [axis for axis in range(x.dim()) if axis != features])
            self.input = moments if self.input is None else self.input.merge(moments)

    def traffic(self) -> dict[str, Any]:
        """What each tap gathered; the hooks are gone afterwards."""
        for tap in self.taps.values():
            tap.remove()
        return {name: tap.traffic() for name, tap in self.taps.items()}

    def run(self) -> Run:
        """What the batches were as a whole."""
        gap = None
        if self.length > 0:
            losses = [None if self.loss is None else total / self.batches for total in self.losses]
            gap = Gap((self.distance / self.length) ** 0.5, *losses)
        return Run(self.batches, self.sizes[0], self.sizes[1], self.input, gap)

    def effects(self, trains: dict[str, bool]) -> dict[str, float]:
        """How far the output moves when one norm alone goes by the batch's statistics, on the first batch."""
        if self.first is None or not self.length or (self.distance / self.length) ** 0.5 < _WORTH_SWITCHING:
            return {}
        switched = [name for name in self.layers if trains.get(name) and self._distance(name) > 0]
        switched = sorted(switched, key=self._distance, reverse=True)[:_ATTRIBUTED]
        with torch.no_grad():
            self._switch({})
            base = _of_model(self._forward(self.first)).double()
            scale = float((base - base.mean()).square().mean().sqrt())
            found: dict[str, float] = {}
            for name in switched:
                self._switch({name: True})
                try:
                    moved = _of_model(self._forward(self.first)).double()
                except InputError:  # a batch of one value, which this norm refuses
                    continue
                found[name] = float((moved - base).square().mean().sqrt()) / max(scale, 1e-300)
        return found

    def _distance(self, name: str) -> float:
        """Between running statistics and those that came in, of the worst channel."""
        layer, tap = self.layers[name], self.taps[name]
        running, seen = getattr(layer, "running_mean", None), tap.moments.get("input")
        if not isinstance(running, Tensor) or seen is None or running.shape != seen.mean.shape:
            return 0.0
        var = seen.var(unbiased=False)
        known_var: Any = layer.running_var
        away = (running.double().cpu() - seen.mean).abs() / (var + 1e-12).sqrt()
        stretch = (known_var.double().cpu() / (var + 1e-12)).clamp(min=1e-12).log().abs()
        return float((away + stretch).nan_to_num(1e6).max())


def _of_model(output: Any) -> Tensor:
    try:
        return first_tensor(output)
    except TypeError as wrong:
        raise InputError(str(wrong)) from None


def _device(model: nn.Module) -> torch.device | None:
    parameter = next(model.parameters(), None)
    return None if parameter is None else parameter.device
