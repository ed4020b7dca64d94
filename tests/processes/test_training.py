"""Whole models in several processes, under DistributedDataParallel and FSDP2, train as one process does."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
import torch.distributed as dist
from ranks import Ranks
from test_values import assert_equals_whole, cut, layer_of, step, whole
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import normkit as nk

STEPS = 4


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3),
        nk.BatchNorm2d(16, activation="relu"),
        nn.Flatten(),
        nn.Linear(16 * 16, 6),
        nn.BatchNorm1d(6),
    ).double()


def relatives() -> nn.Module:
    """Every relative of batch norm that shares statistics, in training by statistics of its own."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nk.GhostBatchNorm2d(8, 2, activation="relu"),
        nn.Conv2d(8, 8, 3),
        nk.BatchRenorm2d(8, warmup=0, r_steps=2, d_steps=2, r_max=1.5, d_max=0.5),
        nn.Conv2d(8, 8, 1),
        nk.SwitchNorm2d(8, activation="silu"),
        nk.BatchInstanceNorm2d(8),
        nn.Conv2d(8, 8, 1),
        nk.VirtualBatchNorm2d(8),
        nn.Flatten(),
        nn.Linear(8 * 16, 6),
        nk.AdaptiveBatchNorm1d(6),
        nn.Linear(6, 6),
        nk.BatchNorm1d(6, training_statistics="running", guard="nonfinite"),
    ).double()


NETWORKS = {"batch norm": network, "relatives": relatives}


def data(step: int, rows: int) -> Tensor:
    generator = torch.Generator().manual_seed(step)
    return torch.randn(rows, 3, 8, 8, dtype=torch.float64, generator=generator)


def train(model: nn.Module, rank: int, size: int, rows: int = 12) -> None:
    """Equal parts of each batch: then the mean of the processes' gradients is that of the batch."""
    if any(isinstance(layer, nk.VirtualBatchNorm2d) for layer in model.modules()):
        with nk.reference_batch(model), torch.no_grad():
            model(data(STEPS, rows).chunk(size)[rank])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for i in range(STEPS):
        optimizer.zero_grad()
        part = data(i, rows).chunk(size)[rank]
        (model(part) - 1).pow(4).mean().backward()
        optimizer.step()


def data_parallel(rank: int, group: Any, kind: str) -> dict[str, Tensor]:
    model = nk.synchronize(NETWORKS[kind](), group)
    wrapped = DistributedDataParallel(model, process_group=group)
    train(wrapped, rank, group.size())
    return model.state_dict()


def sync_batch_norm(rank: int, group: Any, kind: str) -> dict[str, Tensor]:
    """DistributedDataParallel takes our SyncBatchNorm on the CPU; torch's it refuses there."""
    model = NETWORKS[kind]()
    for i, channels in ((1, 8), (7, 6)):
        model[i] = nk.SyncBatchNorm(channels, process_group=group, dtype=torch.float64)
    nk.synchronize(model, group)
    train(DistributedDataParallel(model, process_group=group), rank, group.size())
    return model.state_dict()


def sharded(rank: int, group: Any, kind: str) -> dict[str, Tensor]:
    mesh = DeviceMesh.from_group(group, "cpu")
    model = nk.synchronize(NETWORKS[kind](), group)
    for layer in model:
        if list(layer.parameters()):
            fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    train(model, rank, group.size())
    return {k: v.full_tensor() if hasattr(v, "full_tensor") else v for k, v in model.state_dict().items()}


@pytest.mark.parametrize(
    ("way", "kind"),
    [
        (data_parallel, "batch norm"),
        (data_parallel, "relatives"),
        (sync_batch_norm, "batch norm"),
        (sharded, "batch norm"),
        (sharded, "relatives"),
    ],
)
@pytest.mark.parametrize("size", ["two", "three"])
def test_trains_as_one_process(size: str, way: Any, kind: str, request: pytest.FixtureRequest) -> None:
    """In float64, some roundings grown by a few steps; without synchronizing, the first digits would differ."""
    alone = NETWORKS[kind]()
    train(alone, 0, 1)
    for state in request.getfixturevalue(size)(way, kind, timeout=30):
        if isinstance(state, Exception):
            raise state
        for key, value in alone.state_dict().items():
            torch.testing.assert_close(state[key], value, rtol=1e-9, atol=1e-10)


def three_parts(rank: int, group: Any, sizes: tuple[int, ...]) -> dict[str, Tensor]:
    layer = layer_of(process_group=group, activation="gelu")
    return step(layer, cut(whole(rows=sum(sizes)), sizes, rank), residual=True, mask=True)


@pytest.mark.parametrize("sizes", [(4, 4, 4), (1, 0, 11), (0, 12, 0)], ids=str)
def test_three_are_one(three: Ranks, sizes: tuple[int, ...]) -> None:
    expected = step(layer_of(activation="gelu"), whole(), residual=True, mask=True)
    assert_equals_whole(three(three_parts, sizes), expected)


def collectives(rank: int, group: Any) -> list[str]:
    """The collectives of the third training step of two layers of different sizes."""
    layers = nn.Sequential(nk.SyncBatchNorm(5, process_group=group), nk.SyncBatchNorm(5, process_group=group))
    wide = nk.SyncBatchNorm(40, process_group=group)

    def once() -> None:
        x = torch.randn(4, 5, requires_grad=True)
        wide(layers(x).repeat(1, 8)).square().sum().backward()

    once()
    once()
    with torch.profiler.profile() as profile:
        once()
    return sorted(event.name for event in profile.events() if event.name.startswith("c10d::"))


def test_two_collectives_per_layer(two: Ranks) -> None:
    for names in two(collectives):
        assert names == ["c10d::_allgather_base_"] * 3 + ["c10d::allreduce_"] * 3


def double_backward(rank: int, group: Any) -> list[Tensor]:
    batch = cut(whole(dtype=torch.float64), (5, 7), rank)
    return penalty(layer_of(torch.float64, process_group=group), batch)


def penalty(layer: nn.Module, batch: dict[str, Tensor]) -> list[Tensor]:
    """Gradients of a function of gradients."""
    x = batch["x"].clone().requires_grad_()
    (dx,) = torch.autograd.grad((layer(x) * batch["dy"]).sum(), x, create_graph=True)
    (dx.pow(3).sum()).backward()
    return [x.grad, layer.weight.grad]


def test_double_backward(two: Ranks) -> None:
    dx, dweight = penalty(layer_of(torch.float64), whole(dtype=torch.float64))
    first, second = two(double_backward)
    torch.testing.assert_close(torch.cat((first[0], second[0])), dx, rtol=1e-11, atol=1e-13)
    torch.testing.assert_close(first[1] + second[1], dweight, rtol=1e-11, atol=1e-13)


def conditional(rank: int, group: Any, sizes: tuple[int, ...], mask: bool) -> dict[str, Tensor]:
    """A scale and a shift for each sample."""
    batch = whole(rows=sum(sizes))
    generator = torch.Generator().manual_seed(2)
    batch |= {name: torch.randn(sum(sizes), 5, generator=generator) for name in ("weight", "bias")}
    batch = batch if rank < 0 else cut(batch, sizes, rank)
    layer = nk.BatchNorm2d(5, affine=False, process_group=group)
    x, weight, bias = (batch[name].clone().requires_grad_() for name in ("x", "weight", "bias"))
    y = layer(x, weight=weight, bias=bias, mask=batch["mask"] if mask else None)
    y.backward(batch["dy"])
    return {"y": y.detach(), "dx": x.grad, "dw": weight.grad, "db": bias.grad, **layer.state_dict()}


@pytest.mark.parametrize("mask", [False, True])
@pytest.mark.parametrize("sizes", [(5, 7), (12, 0)], ids=str)
def test_conditional(two: Ranks, sizes: tuple[int, ...], mask: bool) -> None:
    expected = conditional(-1, None, sizes, mask)
    assert_equals_whole(two(conditional, sizes, mask), expected, cut_up=("y", "dx", "dw", "db"))


def adaptive(rank: int, group: Any) -> dict[str, Tensor]:
    layer = nk.AdaptiveBatchNorm2d(5, process_group=group)
    batch = whole() if rank < 0 else cut(whole(), (4, 8), rank)
    return step(layer, batch, residual=False, mask=True)


def test_adaptive_trains_as_batch_norm(two: Ranks) -> None:
    assert_equals_whole(two(adaptive), adaptive(-1, None))


def compiled(rank: int, group: Any) -> list[bool]:
    """The graph breaks where processes meet; evaluation is one graph."""
    plain = nk.BatchNorm2d(5, process_group=group)
    layer = copy.deepcopy(plain)
    batch = cut(whole(), (5, 7), rank)
    expected = step(plain, batch, residual=True, mask=True)
    layer.compile(backend="aot_eager")
    found = step(layer, batch, residual=True, mask=True)
    evaluated = torch.compile(layer.eval(), backend="aot_eager", fullgraph=True)(batch["x"])
    return [torch.equal(found[key], expected[key]) for key in expected] + [
        torch.equal(evaluated, plain.eval()(batch["x"]))
    ]


def test_compiled(two: Ranks) -> None:
    for same in two(compiled, timeout=60):
        assert all(same)


def copies(rank: int, group: Any) -> list[bool]:
    """A copy shares the group; a pickle finds the one of that name."""
    layer = nk.BatchNorm1d(3, process_group=group)
    others = copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))
    for other in others:
        other(torch.randn(4, 3))
    return [other.process_group is group for other in others]


def test_copies(two: Ranks) -> None:
    assert two(copies) == [[True, True]] * 2


def evaluates_alone(rank: int, group: Any) -> Tensor | None:
    """One process may validate while the others wait elsewhere."""
    layer = nk.BatchNorm1d(3, process_group=group)
    layer(torch.randn(4, 3))
    y = layer.eval()(torch.ones(2, 3)).detach() if rank == 0 else None
    layer.train()(torch.randn(4, 3))
    return y


def test_evaluation_is_local(two: Ranks) -> None:
    first, second = two(evaluates_alone)
    assert first.shape == (2, 3)
    assert second is None


def of_the_world(rank: int, group: Any) -> tuple[Tensor, Tensor]:
    """Without a group it is all processes, which need not be known when the layer is made."""
    layer = nk.SyncBatchNorm(3)
    assert "process_group" not in repr(layer)
    x = torch.randn(4, 3) + rank
    layer(x)
    dist.barrier()
    return x, layer.running_mean


def test_world(two: Ranks) -> None:
    (x, mean), (z, other) = two(of_the_world)
    assert torch.equal(mean, other)
    torch.testing.assert_close(mean, 0.1 * torch.cat((x, z)).mean(0))
