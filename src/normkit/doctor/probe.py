"""One pass of hooks over the batches: a model goes in, readings come out, and the model is as it was.

The norms run in training mode and in evaluation mode, everything else in evaluation mode both times: what differs
is then the norms' doing, and no random number is drawn.
"""

from __future__ import annotations

from collections.abc import Collection, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from normkit import processes
from normkit.doctor import anatomy
from normkit.doctor.anatomy import Seen
from normkit.doctor.attribution import Attribution, attribute
from normkit.doctor.batches import Batch, Loss, read
from normkit.doctor.copies import State, compare
from normkit.doctor.graph import Graph, first_tensor, recorded, trace
from normkit.doctor.kinds import norm_kind
from normkit.doctor.readings import Gap, Readings, Run
from normkit.doctor.taps import Tap, length
from normkit.doctor.target import blaming
from normkit.statistics import Moments
from normkit.surgery.feed import Forward, feeder
from normkit.surgery.freeze import Frozen
from normkit.surgery.restore import Saved, kept


def probe(
    model: nn.Module,
    batches: Iterable[object] | None,
    loss: Loss | None,
    optimizer: torch.optim.Optimizer | None,
    *,
    forward: Forward | None = None,
    reference: nn.Module | State | None = None,
    process_group: processes.Group = None,
) -> Readings:
    """Read a model, what it was compared with, and what batches do in it.

    Raises:
        InputError: batches that cannot be read; a model or a loss that raises, with the cause; a reference that the
            model is no copy of.
    """
    others = compare(model, reference, process_group)  # before anything else can fail in one process alone
    if batches is None:
        return anatomy.readings(model, optimizer, trace(model), others, Seen())
    pass_ = _Pass(model, loss, feeder(model, forward), anatomy.flags_after_train(model))
    with kept(model), torch.random.fork_rng(), _gradients_kept(model):
        with pass_.tapped():
            for batch in read(batches):
                pass_.batch(batch)
        # Synchronized norms wait for each other, and how far the modes lie apart is each process' own.
        alone = others.processes < 2 or not any(map(anatomy.is_synchronized, model.modules()))
        attribution = pass_.attribution() if alone else Attribution()
    return anatomy.readings(model, optimizer, pass_.graph, others, pass_.seen(attribution))


@contextmanager
def _gradients_kept(model: nn.Module) -> Generator[None]:
    gradients = {parameter: parameter.grad for parameter in model.parameters()}
    try:
        yield
    finally:
        for parameter, gradient in gradients.items():
            parameter.grad = gradient


class _Pass:
    """What is gathered from batch to batch; of these, the first alone is kept."""

    def __init__(
        self, model: nn.Module, loss: Loss | None, feed: Forward, trains: Mapping[str, bool]
    ) -> None:
        self.model, self.loss, self.feed, self.trains = model, loss, feed, trains
        self.modules = list(model.named_modules())
        self.weights = anatomy.weights_of(model)
        self.statistics = Saved(model.buffers())
        self.graph: Graph | None = None
        self.taps: dict[str, Tap] = {}
        self.first: Batch | None = None
        self.batches = self.most = 0
        self.least = 2**62
        self.input: Moments | None = None
        self.distance = self.length = 0.0  # squares: between the outputs, and of the output about its mean
        self.losses: list[float | None] = [None, None]  # in training mode, in evaluation
        self.gradients: dict[str, float] = {}

    @contextmanager
    def tapped(self) -> Generator[None]:
        """With hooks on every norm."""
        norms = [(name, layer) for name, layer in self.modules if norm_kind(layer) is not None]
        self.taps = {name: Tap(layer) for name, layer in norms}
        try:
            yield
        finally:
            for tap in self.taps.values():
                tap.remove()

    def batch(self, batch: Batch) -> None:
        """One batch in both modes."""
        self.first = self.first or batch
        self.batches += 1
        self.least, self.most = min(self.least, batch.samples), max(self.most, batch.samples)
        self._take_input(batch)
        output, evaluated = self._train(batch), self._evaluate(batch)
        self.distance += float((output - evaluated).square().sum())
        self.length += float((output - output.mean()).square().sum())

    def _train(self, batch: Batch) -> Tensor:
        """The norms train; gradients where there is a loss."""
        self._switch(self.trains)
        for parameter in self.model.parameters():
            parameter.grad = None
        with torch.set_grad_enabled(self.loss is not None):
            if self.graph is None:
                with recorded(self.model) as graph_of:
                    output = self._forward(batch)
                    self.graph = graph_of(output)
            else:
                output = self._forward(batch)
            value = self._loss(output, batch, 0)
        if value is not None and value.requires_grad:
            value.backward()
            self._take_gradients()
        return first_tensor(output).detach().double()

    @torch.no_grad()
    def _evaluate(self, batch: Batch) -> Tensor:
        self._switch({})
        output = self._forward(batch)
        self._loss(output, batch, 1)
        return first_tensor(output).double()

    def _switch(self, trains: Mapping[str, bool]) -> None:
        """Everything to evaluation mode but these norms; running statistics are those of the beginning again."""
        self.statistics.restore()
        for tap in self.taps.values():
            tap.evaluates = not trains
        for name, module in self.modules:
            if isinstance(module, nn.RNNBase) and not module.dropout:
                module.training = True  # the same without dropout, and cuDNN wants it for gradients
            elif not isinstance(module, Frozen):  # which remember a mode of their own
                module.training = trains.get(name, False)

    def _forward(self, batch: Batch) -> Any:
        with blaming(f"the model fails on batch {self.batches}"):
            return self.feed(batch.given)

    def _loss(self, output: Any, batch: Batch, mode: int) -> Tensor | None:
        """The loss, which counts for the mode that the model was in."""
        if self.loss is None:
            return None
        target, device = batch.target, first_tensor(output).device
        with blaming(f"the loss fails on batch {self.batches}"):
            value = self.loss(output, target.to(device) if isinstance(target, Tensor) else target)
            if value is not None:
                self.losses[mode] = (self.losses[mode] or 0.0) + float(value.detach())
        return value

    def _take_gradients(self) -> None:
        for name, weight in self.weights.items():
            if weight.grad is not None:
                self.gradients[name] = self.gradients.get(name, 0.0) + length(weight.grad)

    def _take_input(self, batch: Batch) -> None:
        """Moments by feature: the last axis of (N, L, C), else the second one."""
        x = next(iter(batch.inputs), None)
        if x is not None and x.is_floating_point() and x.dim() > 1:
            features = 2 if x.dim() == 3 else 1
            moments = Moments.of(x.cpu(), [axis for axis in range(x.dim()) if axis != features])
            self.input = moments if self.input is None else self.input.merge(moments)

    def _gap(self) -> float | None:
        """Between the outputs, in deviations of them; None where they do not vary."""
        return (self.distance / self.length) ** 0.5 if self.length > 0 else None

    def seen(self, attribution: Attribution) -> Seen:
        """What the batches showed as a whole."""
        losses = [None if total is None else total / self.batches for total in self.losses]
        apart = self._gap()
        gap = None if apart is None else Gap(apart, losses[0], losses[1], attribution.makers)
        return Seen(
            run=Run(self.batches, self.least, self.most, self.input, gap),
            traffic={name: tap.traffic() for name, tap in self.taps.items()},
            effects=attribution.effects,
            gradients={name: total / self.batches for name, total in self.gradients.items()},
        )

    def attribution(self) -> Attribution:
        """What each norm makes of the distance between the modes, on the first batch."""
        first, apart = self.first, self._gap()
        if first is None or apart is None:
            return Attribution()

        def output(norms: Collection[str], samples: Sequence[int] | None) -> Tensor:
            self._switch(dict.fromkeys(norms, True))
            batch = first if samples is None else first.of(samples)
            return first_tensor(self._forward(batch)).double()

        taps = {name: tap for name, tap in self.taps.items() if self.trains[name]}
        return attribute(taps, apart, first.samples, output)
