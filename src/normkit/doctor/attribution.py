"""Which norms make evaluation differ from training: each is switched alone, and as few as leave little together.

A norm's effect is how far the model's output moves when that norm alone goes from running statistics to those of the
batch. What it leaves of the distance between the modes is measured along with it. Then norms are switched together, the
one that leaves least first and the others by effect: as few as leave little. A norm behind a wrong one takes that one's
error away too, mostly not all of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from normkit.doctor.readings import Makers
from normkit.doctor.switching import Part
from normkit.doctor.taps import Tap
from normkit.errors import InputError

_PASSES = 8  # over the batch, for norms one by one, as long as that leaves a sample for each
_WORTH_IT = 0.1  # a distance between the modes, in deviations of the output, below which nothing is looked at
_LITTLE = 0.1  # of it
Output = Callable[[Collection[str], "Sequence[int] | None"], Tensor]


@dataclass(frozen=True)
class Attribution:
    """Effects by name, in deviations of the output; and what norms make together."""

    effects: Mapping[str, float] = field(default_factory=dict[str, float])
    makers: Makers | None = None


@torch.no_grad()
def attribute(taps: Mapping[str, Tap], gap: float, samples: int, output: Output) -> Attribution:
    """Attribute the distance between the modes to norms.

    Takes about ten passes over the batch; with more than eight norms for each of its samples, a pass more for each so
    many norms as there are samples; and of a model whose output for a sample depends on others, a pass for each norm.

    Args:
        taps: on the norms that train.
        gap: the distance, in deviations of the output; below a tenth nothing is looked at.
        samples: in the batch; 0 where that is not known.
        output: of the batch, in evaluation mode but for the norms of these names; of these samples of it, or of all.
    """
    told = {name: tap.layer for name, tap in taps.items() if tap.values > 1}  # others have none of the batch
    layers = {name: layer for name, layer in told.items() if _tracks(layer)}
    if not gap >= _WORTH_IT or not layers:
        return Attribution()
    part = _part(len(layers), samples)
    base = _base(layers, part, output)
    scale = float((base - base.mean()).square().mean().sqrt())
    if not 0 < scale < math.inf:  # nor where it is not a number: statistics are not, which is a finding
        return Attribution()
    trained = output(told, None)
    effects: dict[str, float] = {}
    left: dict[str, float] = {}
    for name, alone, evaluated, goal in _each_alone(layers, part, base, trained, output):
        effects[name] = _length(alone - evaluated) / scale
        left[name] = _share(alone, evaluated, goal)
    best = min(left, key=lambda name: left[name])
    # Of two errors that cancel each other in part, each alone leaves more than there was: the others by effect.
    order = sorted(effects, key=lambda name: (name == best, effects[name]), reverse=True)
    return Attribution(effects, _makers(order, base, trained, output))


def _tracks(layer: nn.Module) -> bool:
    return isinstance(getattr(layer, "running_mean", None), Tensor)


def _part(norms: int, samples: int) -> Part | None:
    """As many samples as the passes have room for, of each norm and once of none; None for the whole batch."""
    copies = math.ceil((norms + 1) / _PASSES)
    return Part(max(1, samples // copies), samples) if min(copies, samples) > 1 else None


def _base(layers: Mapping[str, nn.Module], part: Part | None, output: Output) -> Tensor:
    """The output in evaluation mode, while the part looks on."""
    if part is not None:
        try:
            with part.holding(layers):
                return output((), None)
        except InputError:  # no memory for what is held, or a norm that can not be called again
            part.held.clear()
    return output((), None)


def _each_alone(
    layers: Mapping[str, nn.Module], part: Part | None, base: Tensor, trained: Tensor, output: Output
) -> Iterator[tuple[str, Tensor, Tensor, Tensor]]:
    """Norms by name, with the output where it alone is switched, where none is, and where all are: of the same samples.

    Of a part of the batch where that tells it, else of the whole one.
    """
    whole = dict.fromkeys(layers)
    of_base, of_trained = (part.of(base), part.of(trained)) if part else (None, None)
    if part and of_base is not None and of_trained is not None:
        for name, alone in part.switched(layers, of_base, lambda rows: output((), rows)):
            del whole[name]
            yield name, alone, of_base, of_trained
    for name in whole:
        yield name, output([name], None), base, trained


def _makers(order: list[str], base: Tensor, trained: Tensor, output: Output) -> Makers | None:
    """The fewest from the start of the order that leave little, found by halving."""
    if not 0 < _length(trained - base) < math.inf:
        return None
    left: dict[int, float] = {}

    def share_left(count: int) -> float:
        if count not in left:
            left[count] = _share(output(order[:count], None), base, trained)
        return left[count]

    low, high = (1, 1) if share_left(1) <= _LITTLE else (min(2, len(order)), len(order))
    while low < high:
        middle = (low + high) // 2
        if share_left(middle) <= _LITTLE:
            high = middle
        else:
            low = middle + 1
    return Makers(tuple(order[:high]), share_left(high), 1 - share_left(1), len(order))


def _share(output: Tensor, base: Tensor, trained: Tensor) -> float:
    """How much of the way from one to the other an output leaves."""
    whole = _length(trained - base)
    return _length(trained - output) / whole if whole > 0 else math.inf


def _length(x: Tensor) -> float:
    return float(x.square().mean().sqrt())
