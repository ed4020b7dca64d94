"""The family beside batch norm: what each norm takes, as a ratio to our own batch norm of the same values.

Both do a training step of one layer, as in `normkit.bench.speed`. Norms over tokens stand beside batch norm over a
table with a row per token. Norms of weights give the weight of a 3×3 convolution of as many outputs as inputs, and
stand beside batch norm over its output. Adaptive batch norm, which differs from batch norm in evaluation alone,
stands there without gradients beside the forward pass of batch norm in training, which takes the batch's
statistics as it does.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import normkit as nk
from normkit.bench.cases import groups_of, layer
from normkit.bench.contenders import of_module
from normkit.bench.result import Measured, Result, Spread
from normkit.bench.shapes import IMAGES, TABLES, TOKENS, Shape
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


class _Given(nn.Module):
    """A layer with what it takes besides the input."""

    def __init__(self, layer: nn.Module, **given: Any) -> None:
        super().__init__()
        self.layer, self.given = layer, given

    def forward(self, x: Tensor) -> Tensor:
        """The layer's output."""
        return self.layer(x, **self.given)


class _Weight(nn.Module):
    """The weight of a 3×3 convolution, made by its parametrization at every use."""

    def __init__(self, norm: Callable[[nn.Module], nn.Module], channels: int) -> None:
        super().__init__()
        self.convolution: Any = norm(nn.Conv2d(channels, channels, 3, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        """The weight, whatever the input."""
        return self.convolution.weight


def _of_dimension(name: str, size: tuple[int, ...], *given: Any, **options: Any) -> Any:
    """The layer of this name for an input of this size, which is a table, images or volumes."""
    return getattr(nk, f"{name}{max(1, len(size) - 2)}d")(size[1], *given, **options)


def _virtual(size: tuple[int, ...]) -> nn.Module:
    layer = _of_dimension("VirtualBatchNorm", size)
    with nk.reference_batch(layer):
        layer(torch.randn(8, *size[1:]))
    return layer


def _conditional(size: tuple[int, ...]) -> nn.Module:
    layer = nk.Conditional(_of_dimension("BatchNorm", size, affine=False), num_classes=10)
    return _Given(layer, condition=torch.arange(size[0]) % 10)


WITHIN = 1.25  # what a norm built on batch norm may take
CONVOLUTIONS = tuple(shape for shape in IMAGES if shape.network in {"VGG-16", "tiny"})

MEMBERS = (
    # Four sub-batches, fewer where the batch has not so many pairs.
    Member("ghost", "Ghost batch norm", lambda s: _of_dimension("GhostBatchNorm", s, max(2, s[0] // 4)), WITHIN),
    Member("renorm", "Batch renormalization", lambda s: _of_dimension("BatchRenorm", s), WITHIN),
    Member("sync", "Synchronized batch norm, one process", lambda s: nk.SyncBatchNorm(s[1]), WITHIN),
    Member("adaptive", "Adaptive batch norm, evaluation", lambda s: _of_dimension("AdaptiveBatchNorm", s), WITHIN,
           evaluation=True),
    Member("switch", "Switch norm", lambda s: _of_dimension("SwitchNorm", s), 2.0),
    Member("batch_instance", "Batch-instance norm", lambda s: _of_dimension("BatchInstanceNorm", s)),
    Member("virtual", "Virtual batch norm", _virtual),
    Member("conditional", "Conditional batch norm", _conditional),
    Member("recurrent", "Recurrent batch norm, one step",
           lambda s: _Given(nk.RecurrentBatchNorm(s[1], max_length=2), step=1), shapes=TABLES),
    Member("layer", "Layer norm", lambda s: nk.LayerNorm(s[-1]), shapes=TOKENS),
    Member("rms", "RMS norm", lambda s: nk.RMSNorm(s[-1]), shapes=TOKENS),
    Member("dynamic_tanh", "Dynamic tanh", lambda s: nk.DynamicTanh(s[-1]), shapes=TOKENS),
    Member("group", "Group norm", lambda s: nk.GroupNorm(groups_of(s[1]), s[1])),
    Member("instance", "Instance norm", lambda s: _of_dimension("InstanceNorm", s, affine=True)),
    Member("frn", "Filter response norm", lambda s: nk.FilterResponseNorm(s[1])),
    Member("weight_norm", "Weight norm", lambda s: _Weight(nk.weight_norm, s[1]), shapes=CONVOLUTIONS),
    Member("weight_standardization", "Weight standardization",
           lambda s: _Weight(nk.weight_standardization, s[1]), shapes=CONVOLUTIONS),
    Member("spectral_norm", "Spectral norm", lambda s: _Weight(nk.spectral_norm, s[1]), shapes=CONVOLUTIONS),
)  # fmt: skip


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
    with torch.random.fork_rng(devices=[]):  # initial weights are random
        ours = member.build(shape.size).train(not member.evaluation)
    if member.evaluation:
        return [Contender(MEMBER, lambda: ours(x)), Contender(BATCH, lambda: batch(x))]
    if member.shapes is CONVOLUTIONS:
        dy = torch.randn(ours(x).shape, generator=generator)
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
