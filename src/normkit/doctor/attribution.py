"""Which norms make evaluation differ from training: all of them by an estimate, the first by switching them.

A norm's effect is how far the model's output moves when that norm alone goes from running statistics to those of the
batch. One backward pass estimates it for all norms. Those of the largest estimates, and those furthest from the data,
are switched one by one, which measures it, and how much of the distance between the modes it leaves; then together, the
one that leaves least first and the others by effect: as few as leave little. A norm behind a wrong one takes that one's
error away too, mostly not all of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from normkit.doctor.readings import Makers
from normkit.doctor.taps import Tap
from normkit.errors import InputError

_MOST = 8  # norms that are switched one by one
_WORTH_IT = 0.1  # a distance between the modes, in deviations of the output, below which nothing is looked at
_LITTLE = 0.1  # of it
Output = Callable[[Collection[str]], Tensor]


@dataclass(frozen=True)
class Attribution:
    """Effects by name, in deviations of the output; which of them were measured; and what they make together."""

    effects: Mapping[str, float] = field(default_factory=dict[str, float])
    switched: frozenset[str] = frozenset()
    makers: Makers | None = None


def attribute(taps: Mapping[str, Tap], gap: float, output: Output) -> Attribution:
    """Attribute the distance between the modes to norms.

    Args:
        taps: on the norms that train.
        gap: the distance, in deviations of the output; below a tenth nothing is looked at.
        output: of a batch, in evaluation mode but for the norms of these names.
    """
    told = {name: tap for name, tap in taps.items() if tap.values > 1}  # which have statistics of the batch
    moved = {name: tap for name, tap in told.items() if tap.distance() > 0}
    if not gap >= _WORTH_IT or not moved:
        return Attribution()
    base, lengths = estimates({name: tap.layer for name, tap in moved.items()}, lambda: output(()))
    scale = float((base - base.mean()).square().mean().sqrt())
    if (
        not 0 < scale < math.inf
    ):  # nor where it is not a number: statistics are not, for which there is a finding
        return Attribution()
    found = {name: length / scale for name, length in lengths.items()}
    # Behind a saturated activation an estimate is 0; the distance of a norm from its data knows nothing of effects.
    by_effect = sorted(moved, key=lambda name: found.get(name, 0.0), reverse=True)
    by_distance = sorted(moved, key=lambda name: moved[name].distance(), reverse=True)
    order = list(dict.fromkeys(name for pair in zip(by_effect, by_distance, strict=True) for name in pair))
    with torch.no_grad():
        first, rest = order[:_MOST], order[_MOST:]
        trained = output(told)
        effects = {name: found[name] for name in rest if name in found}
        left: dict[str, float] = {}
        for name in first:
            alone = output([name])
            effects[name] = _length(alone - base) / scale
            left[name] = _length(alone - trained)
        best = min(first, key=lambda name: left[name])
        # Of two errors that cancel each other in part, each alone leaves more than there was: the others by effect.
        first.sort(key=lambda name: (name == best, effects[name]), reverse=True)
        makers = _makers([*first, *rest], left[best], _length(trained - base), trained, output)
    return Attribution(effects, frozenset(first), makers)


def _makers(order: list[str], alone: float, whole: float, trained: Tensor, output: Output) -> Makers | None:
    """The fewest from the start of the order that leave little, found by halving; the first alone is known."""
    if not 0 < whole < math.inf:
        return None
    left = {1: alone / whole}

    def share_left(count: int) -> float:
        if count not in left:
            left[count] = _length(trained - output(order[:count])) / whole
        return left[count]

    low, high = (1, 1) if alone <= _LITTLE * whole else (min(2, len(order)), len(order))
    while low < high:
        middle = (low + high) // 2
        if share_left(middle) <= _LITTLE:
            high = middle
        else:
            low = middle + 1
    return Makers(tuple(order[:high]), share_left(high), 1 - left[1], len(order))


def estimates(
    layers: Mapping[str, nn.Module], output: Callable[[], Tensor]
) -> tuple[Tensor, dict[str, float]]:
    r"""The output, and how far each norm moves it to first order; none where the model gives no gradients.

    With :math:`\Delta_l` the difference that batch statistics make in a norm's output and :math:`J_l` the derivative
    of the model's output by it, that is the length of :math:`J_l \Delta_l`, as root mean square. For signs :math:`v`
    drawn at random, :math:`v^T J_l \Delta_l` has the square of that length as its mean square, a draw for each sample,
    and one backward pass gives it for all layers: :math:`\langle J_l^T v, \Delta_l \rangle`.

    Hutchinson 1990.

    Args:
        layers: by their names, in evaluation mode.
        output: runs the model.
    """
    probes = {name: _Probe(layer) for name, layer in layers.items()}
    try:
        result = _probed(probes.values(), output)
    except (InputError, RuntimeError):  # not differentiable, or no memory for it
        with torch.no_grad():
            return output(), {}
    size, samples = result.numel(), len(result) if result.dim() else 1
    found = {name: probe.length(samples) / size**0.5 for name, probe in probes.items() if probe.products}
    return result, found


def _probed(probes: Collection[_Probe], output: Callable[[], Tensor]) -> Tensor:
    """Run the model forward and, where it gives gradients, backward, with hooks on the norms."""
    with ExitStack() as stack, torch.enable_grad():
        for probe in probes:
            stack.callback(probe.layer.register_forward_hook(probe.after, with_kwargs=True).remove)
        result = output()
        ends = [end for probe in probes for end in probe.ends]
        if ends and result.requires_grad:
            signs = torch.randint(0, 2, result.shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
            torch.autograd.grad(result, ends, signs.to(result), allow_unused=True)
    return result.detach()


class _Probe:
    """A hook on a norm that takes the product of the output's gradient and what batch statistics change in it."""

    def __init__(self, layer: nn.Module) -> None:
        self.layer = layer
        self.ends: list[Tensor] = []
        self.products: list[Tensor] = []
        self.busy = False

    def after(self, layer: nn.Module, args: Any, kwargs: Any, output: Any) -> Tensor | None:
        """Give the output a gradient, whatever requires one."""
        if self.busy or not isinstance(output, Tensor) or not output.dim():
            return None
        end = torch.zeros((), dtype=output.dtype, device=output.device, requires_grad=True)
        self.ends.append(end)
        told = output.detach()
        output = output + end
        output.register_hook(lambda gradient: self._take(gradient, told, args, kwargs))
        return output

    @torch.no_grad()
    def _take(self, gradient: Tensor, evaluated: Tensor, args: Any, kwargs: Any) -> None:
        """The other output is made here and not in the forward pass, where all of them would be held at once."""
        buffers = {name: buffer.clone() for name, buffer in self.layer.named_buffers()}
        self.busy, self.layer.training = True, True
        try:
            change = functional_call(self.layer, buffers, args, kwargs) - evaluated
        finally:
            self.busy, self.layer.training = False, False
        self.products.append((gradient.float() * change.float()).flatten(1).sum(1))

    def length(self, samples: int) -> float:
        """Of what the norm changes in the output; of several calls, together."""
        if not self.products:
            return 0.0
        whole = samples if all(len(product) % samples == 0 for product in self.products) else 1
        total = torch.stack([product.reshape(whole, -1).sum(1) for product in self.products]).sum(0)
        length = float(total.double().square().sum().sqrt())
        return length if math.isfinite(length) else 0.0


def _length(x: Tensor) -> float:
    return float(x.square().mean().sqrt())
