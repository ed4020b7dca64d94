"""The family beside batch norm: what each norm takes, as a ratio to our own batch norm of the same values.

Both do a training step of one layer, as in `normkit.bench.speed`. Norms over tokens stand beside batch norm over a
table with a row per token. Adaptive batch norm, which differs from batch norm in evaluation alone, stands there
without gradients beside the forward pass of batch norm in training, which takes the batch's statistics as it does.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

import normkit as nk
from normkit.bench.cases import groups_of, layer
from normkit.bench.contenders import of_module
from normkit.bench.result import Measured, Result, Spread
from normkit.bench.shapes import IMAGES, TOKENS, Shape
from normkit.bench.timing import Contender, interleave

BATCH, MEMBER = "batch norm", "member"  # the two contenders


@dataclass(frozen=True)
class Member:
    """A norm of the family; `build` makes it for an input of a size, `bound` is the ratio it may come to."""

    key: str
    title: str
    build: Callable[[tuple[int, ...]], nn.Module]
    bound: float | None = None
    shapes: tuple[Shape, ...] = IMAGES
    evaluation: bool = False


def _of_dimension(name: str, size: tuple[int, ...], **options: object) -> nn.Module:
    """The layer of this name for images or volumes of this size."""
    return getattr(nk, f"{name}{len(size) - 2}d")(size[1], **options)


MEMBERS = (
    Member("layer", "Layer norm", lambda size: nk.LayerNorm(size[-1]), shapes=TOKENS),
    Member("rms", "RMS norm", lambda size: nk.RMSNorm(size[-1]), shapes=TOKENS),
    Member("group", "Group norm", lambda size: nk.GroupNorm(groups_of(size[1]), size[1])),
    Member("instance", "Instance norm", lambda size: _of_dimension("InstanceNorm", size, affine=True)),
)


def measure(member: Member, shape: Shape, repeats: int) -> Measured:
    """Time the member and batch norm on one shape."""
    with torch.set_grad_enabled(not member.evaluation):
        times = interleave(contenders(member, shape), repeats)
    x = torch.empty(shape.size)
    return Measured(
        row=member.key,
        network=shape.network,
        size=shape.size,
        backend=nk.kernels.explain(x),
        tensor_bytes=x.numel() * x.element_size(),
        forward_bytes=0,
        backward_bytes=0,
        beyond_cache=False,
        times=times,
    )


def contenders(member: Member, shape: Shape) -> list[Contender]:
    """The member and batch norm, on the same values."""
    generator = torch.Generator().manual_seed(0)
    x, dy = (torch.randn(shape.size, generator=generator) for _ in range(2))
    table, dtable = (t.flatten(0, -2) if member.shapes is TOKENS else t for t in (x, dy))
    batch = layer(nk, "batch", tuple(table.shape), x.dtype)
    ours = member.build(shape.size).train(not member.evaluation)
    if member.evaluation:
        return [Contender(MEMBER, lambda: ours(x)), Contender(BATCH, lambda: batch(x))]
    return [of_module(MEMBER, ours, x, dy, None), of_module(BATCH, batch, table, dtable, None)]


def ratio(one: Measured) -> Spread:
    """How many times the time of batch norm the member took."""
    found = one.ratio(MEMBER, BATCH)
    assert found is not None
    return found


@dataclass(frozen=True)
class Cost:
    """A member over its shapes: the geometric mean of the ratios, the greatest one, and where that was."""

    member: Member
    mean: float
    worst: float
    where: str

    @property
    def verdict(self) -> str:
        """Met where no shape exceeds the bound; a dash without one."""
        if self.member.bound is None:
            return "—"
        return "met" if self.worst <= self.member.bound else "missed"


def costs(result: Result) -> list[Cost]:
    """A cost per member that was measured, in the order of the members."""
    return [_cost(member, found) for member in MEMBERS if (found := result.of(member.key))]


def _cost(member: Member, measured: Sequence[Measured]) -> Cost:
    ratios = {str(one): ratio(one).median for one in measured}
    where = max(ratios, key=lambda shape: ratios[shape])
    return Cost(member, statistics.geometric_mean(ratios.values()), ratios[where], where)
