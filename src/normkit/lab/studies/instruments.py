"""What looks on while a study trains: distributions, gradients of layers, the loss along the gradient.

Each looks at copies of parameters and buffers, under random numbers that it gives back: a training with instruments
is to the bit the one without.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call

from normkit.lab.studies.fit import Instrument, Moment

ACTIVATIONS = (nn.ReLU, nn.Sigmoid)
PERCENTILES = (15, 50, 85)  # as in Ioffe and Szegedy (2015), figure 1


class Quantiles(Instrument):
    """Percentiles, over the samples of a probe, of each unit's input to each activation, in training mode."""

    def __init__(self, probe: Tensor, every: int) -> None:
        self.probe, self.every = probe, every
        self.steps: list[int] = []
        self.readings: list[list[NDArray[np.float64]]] = []  # reading, layer: (percentiles, units)

    def before(self, moment: Moment) -> None:
        if moment.step % self.every == 0:
            with torch.no_grad(), torch.random.fork_rng(devices=[]), _inputs(moment.network) as inputs:
                functional_call(moment.network, _copied(moment.network), (self.probe,))
            self.steps.append(moment.step)
            self.readings.append([np.percentile(x.double().numpy(), PERCENTILES, axis=0) for x in inputs])

    def drift(self) -> float:
        """How far percentiles move from one reading to the next, in units of the spread between the outer two.

        The mean over readings, layers, units and percentiles. A unit without spread in a reading is left out there.
        """
        moves = list[NDArray[np.float64]]()
        for earlier, later in pairwise(self.readings):
            for a, b in zip(earlier, later, strict=True):
                spread = a[-1] - a[0]
                alive = spread > 0
                moves.append((np.abs(b - a)[:, alive] / spread[alive]).ravel())
        return float(np.concatenate(moves).mean())


class GradientShift(Instrument):
    r"""How much a layer's gradient changes when the layers before it take their step.

    .. math:: \frac{\lVert G_i - G_i' \rVert}{\lVert G_i \rVert}, \quad G_i = \nabla_{W_i} L(W_1^t, \dots, W_k^t; B_t),
              \quad G_i' = \nabla_{W_i} L(W_1^{t+1}, \dots, W_{i-1}^{t+1}, W_i^t, \dots, W_k^t; B_t)

    B_t being the step's batch: internal covariate shift as Santurkar et al. (2018) define it (definition 2.1), there
    without the denominator; and the cosine of the angle between the two. A layer is all parameters of one layer with
    weights, and of the norm that follows it.
    """

    def __init__(self, every: int) -> None:
        self.every = every
        self.changes: list[float] = []  # relative
        self.distances: list[float] = []  # as in the paper
        self.cosines: list[float] = []
        self._earlier: dict[str, Tensor] = {}

    def before(self, moment: Moment) -> None:
        if moment.step % self.every == 0:
            self._earlier = _copied(moment.network)

    def after(self, moment: Moment) -> None:
        if moment.step % self.every:
            return
        groups = layers(moment.network)
        moved = {name: p.detach() for name, p in moment.network.named_parameters()}
        mixed = dict(self._earlier)
        for previous, group in pairwise(groups):
            before = _gradient(moment, dict(self._earlier), group)
            mixed.update({name: moved[name] for name in previous})
            self._note(before, _gradient(moment, mixed, group))

    def _note(self, before: Tensor, after: Tensor) -> None:
        distance, size = (after - before).norm().item(), before.norm().item()
        if size > 0:
            self.distances.append(distance)
            self.changes.append(distance / size)
            self.cosines.append((before @ after).item() / max(size * after.norm().item(), 1e-300))


class LayerGradients(Instrument):
    """The gradient of the loss with respect to each activation's output, as a root mean square, by layer."""

    def __init__(self, every: int) -> None:
        self.every = every
        self.readings: list[list[float]] = []

    def before(self, moment: Moment) -> None:
        if moment.step % self.every:
            return
        with torch.random.fork_rng(devices=[]), _outputs(moment.network) as outputs:
            loss = moment.loss(
                functional_call(moment.network, _copied(moment.network, True), (moment.x,)), moment.y
            )
        gradients = torch.autograd.grad(loss, outputs)
        self.readings.append([g.double().square().mean().sqrt().item() for g in gradients])

    def slopes(self) -> list[float]:
        """For each reading the decades that the gradient gains with each layer that the backward pass goes through.

        That of a line through the logarithms: above 0 it explodes, below 0 it vanishes.
        """
        ends = np.finfo(np.float32)  # where every unit is dead nothing comes through, or all overflows
        sizes = np.clip(np.nan_to_num(self.readings, nan=np.inf), float(ends.tiny), float(ends.max))
        logs = np.log10(sizes)[:, ::-1]
        return [float(np.polyfit(np.arange(len(row)), row, 1)[0]) for row in logs]


class AlongTheGradient(Instrument):
    r"""The loss and its gradient at points along a step's own direction, on its batch.

    .. math:: \theta_j = \theta - \eta_j \nabla L(\theta), \quad
              \frac{\lVert \nabla L(\theta_j) - \nabla L(\theta) \rVert}{\lVert \nabla L(\theta) \rVert}

    Santurkar et al. (2018), section 3.1: variation of the loss, and gradient predictiveness.
    """

    def __init__(self, lengths: Sequence[float], every: int) -> None:
        self.lengths, self.every = lengths, every
        self.variations: list[float] = []  # highest less lowest loss along the line
        self.changes: list[float] = []  # relative change of the gradient, the largest along the line
        self.distances: list[float] = []  # as in the paper, without the denominator

    def before(self, moment: Moment) -> None:
        if moment.step % self.every:
            return
        everything = [name for name, _ in moment.network.named_parameters()]
        start = _copied(moment.network)
        direction = {
            name: p.grad.clone() for name, p in moment.network.named_parameters() if p.grad is not None
        }
        gradient = torch.cat([direction[name].flatten() for name in everything]).double()
        losses, distances = list[float](), list[float]()
        for length in self.lengths:
            point = {n: t - length * direction[n] if n in direction else t.clone() for n, t in start.items()}
            losses.append(_loss(moment, point).item())
            distances.append((_gradient(moment, point, everything) - gradient).norm().item())
        if np.isfinite(losses).all() and np.isfinite(distances).all():
            self.variations.append(max(losses) - min(losses))
            self.distances.append(max(distances))
            self.changes.append(max(distances) / max(gradient.norm().item(), 1e-300))


def layers(network: nn.Module) -> list[list[str]]:
    """Names of parameters by layer: each dense layer or convolution begins one, the norm after it belongs to it."""
    groups: list[list[str]] = []
    for name, module in network.named_modules():
        own = [f"{name}.{key}" for key, _ in module.named_parameters(recurse=False)]
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            groups.append(own)
        elif own:
            groups[-1] += own
    return groups


def _copied(network: nn.Module, differentiable: bool = False) -> dict[str, Tensor]:
    """Parameters and buffers as they are now."""
    parameters = {n: p.detach().clone().requires_grad_(differentiable) for n, p in network.named_parameters()}
    return parameters | {name: buffer.clone() for name, buffer in network.named_buffers()}


def _loss(moment: Moment, state: dict[str, Tensor]) -> Tensor:
    """The loss on the step's batch with other parameters; buffers are copied again, as training mode moves them."""
    buffers = {name: state[name].clone() for name, _ in moment.network.named_buffers()}
    with torch.random.fork_rng(devices=[]):
        return moment.loss(functional_call(moment.network, state | buffers, (moment.x,)), moment.y)


def _gradient(moment: Moment, state: dict[str, Tensor], names: Sequence[str]) -> Tensor:
    """The gradient of some parameters, as one vector in float64."""
    state = state | {name: state[name].detach().clone().requires_grad_() for name in names}
    gradients = torch.autograd.grad(_loss(moment, state), [state[name] for name in names])
    return torch.cat([gradient.flatten() for gradient in gradients]).double()


@contextmanager
def _inputs(network: nn.Module) -> Generator[list[Tensor]]:
    """The inputs of the activations, in the order of the forward pass."""
    seen: list[Tensor] = []
    hooks = [
        module.register_forward_pre_hook(lambda _, given: seen.append(given[0].detach().clone()))
        for module in network.modules()
        if isinstance(module, ACTIVATIONS)
    ]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def _outputs(network: nn.Module) -> Generator[list[Tensor]]:
    """The outputs of the activations, in the graph, in the order of the forward pass."""
    seen: list[Tensor] = []

    def see(_module: nn.Module, _given: Any, output: Tensor) -> None:
        seen.append(output)

    hooks = [
        module.register_forward_hook(see) for module in network.modules() if isinstance(module, ACTIVATIONS)
    ]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()
