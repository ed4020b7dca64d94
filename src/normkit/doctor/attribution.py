"""Which norm makes evaluation differ from training: each alone goes from running statistics to those of the batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from normkit.doctor.taps import Tap
from normkit.errors import InputError

_MOST = 12  # norms that are switched, those whose statistics are furthest from the data's
_WORTH_IT = 0.1  # a gap of the output, in its deviations, below which none is


@torch.no_grad()
def effects(taps: Mapping[str, Tap], gap: float, output: Callable[[str | None], Tensor]) -> dict[str, float]:
    """How far the output moves, in its deviations, by the name of the norm that was switched.

    Args:
        taps: on the norms that train.
        gap: of the whole model; below a tenth of a deviation nothing is switched.
        output: of a batch, in evaluation mode but for this norm; None: in evaluation mode.
    """
    distances = {name: distance for name, tap in taps.items() if (distance := tap.distance()) > 0}
    if gap < _WORTH_IT or not distances:
        return {}
    base = output(None)
    scale = float((base - base.mean()).square().mean().sqrt())
    found: dict[str, float] = {}
    for name in sorted(distances, key=lambda name: distances[name], reverse=True)[:_MOST]:
        try:
            moved = output(name)
        except InputError:  # one value per channel, which this norm refuses
            continue
        found[name] = float((moved - base).square().mean().sqrt()) / max(scale, 1e-300)
    return found
