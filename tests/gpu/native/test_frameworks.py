"""Layers on a GPU under torch.compile, torch.export, autocast, CUDA graphs and DistributedDataParallel with NCCL."""

from __future__ import annotations

import copy
import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import normkit as nk

LAYERS = {
    "batch": (lambda: nk.BatchNorm2d(16, activation="relu"), (8, 16, 20, 20)),
    "ghost": (lambda: nk.GhostBatchNorm2d(16, 4), (8, 16, 20, 20)),
    "renorm": (lambda: nk.BatchRenorm2d(16), (8, 16, 20, 20)),
    "group": (lambda: nk.GroupNorm(4, 16), (8, 16, 20, 20)),
    "instance": (lambda: nk.InstanceNorm2d(16, affine=True), (8, 16, 20, 20)),
    "layer": (lambda: nk.LayerNorm(48), (8, 5, 48)),
    "rms": (lambda: nk.RMSNorm(48), (8, 5, 48)),
}


@pytest.fixture(params=list(LAYERS))
def layer_and_input(request) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    make, shape = LAYERS[request.param]
    return make().cuda(), torch.randn(shape, device="cuda")


def gradients(run: nn.Module, layer: nn.Module, x: Tensor) -> list[Tensor]:
    """Output and gradients; `run` is the layer or what was made of it."""
    layer.zero_grad()
    x = x.clone().requires_grad_()
    y = run(x)
    y.float().square().sum().backward()
    return [y.detach(), x.grad, *(p.grad for p in layer.parameters()), *(b.clone() for b in layer.buffers())]


def close(found: list[Tensor], want: list[Tensor]) -> None:
    # Sums of up to 3,200 numbers of float32, in another order.
    for a, b in zip(found, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_the_kernels_run(layer_and_input):
    _, x = layer_and_input
    assert nk.kernels.explain(x).startswith("compiled: Triton ")


def test_beside_the_cpu(layer_and_input):
    layer, x = layer_and_input
    on_cpu = copy.deepcopy(layer).cpu()
    found, want = gradients(layer, layer, x), gradients(on_cpu, on_cpu, x.cpu())
    close([t.cpu() for t in found], want)


@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_compiled(mode, layer_and_input):
    """In one graph; the second mode replays CUDA graphs."""
    layer, x = layer_and_input
    other = copy.deepcopy(layer)
    run = torch.compile(other, fullgraph=True, mode=mode)
    for _ in range(4):
        torch.compiler.cudagraph_mark_step_begin()
        close(gradients(run, other, x), gradients(layer, layer, x))


def test_exported(layer_and_input):
    layer, x = layer_and_input
    layer.eval()
    batch = torch.export.Dim("batch", min=2)
    program = torch.export.export(layer, (x,), dynamic_shapes=({0: batch},))
    assert any("normkit.normalize" in str(node.target) for node in program.graph.nodes)
    for inputs in (x, x[:5]):
        torch.testing.assert_close(program.module()(inputs), layer(inputs))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype, layer_and_input):
    """Half inputs with float32 parameters: the output's dtype is torch's."""
    layer, x = layer_and_input
    other = copy.deepcopy(layer)
    with torch.autocast("cuda", dtype=dtype):
        found = gradients(layer, layer, x.to(dtype))
    assert found[1].dtype == dtype
    want = gradients(other, other, x.to(dtype).float())
    assert torch.linalg.vector_norm(found[0].float() - want[0]) <= 0.01 * torch.linalg.vector_norm(want[0])


def test_on_another_device():
    """Kernels run where their tensors are, not where the current device is."""
    if torch.cuda.device_count() > 1:
        layer, x = nk.BatchNorm2d(16, device="cuda:1"), torch.randn(8, 16, 9, 9, device="cuda:1")
        with torch.cuda.device(0):
            close(gradients(layer, layer, x)[:1], [nn.BatchNorm2d(16, device="cuda:1")(x).detach()])


def train(rank: int, world: int, path: str, sync: bool) -> None:
    dist.init_process_group("nccl", init_method=f"file://{path}/meet", rank=rank, world_size=world)
    torch.cuda.set_device(rank)
    torch.manual_seed(0)
    norm = nk.SyncBatchNorm(4) if sync else nk.BatchNorm2d(4, activation="relu")
    model = nn.Sequential(nn.Conv2d(3, 4, 3), norm, nn.Flatten(), nn.LazyLinear(2)).cuda()
    model(torch.zeros(1, 3, 8, 8, device="cuda").expand(2, 3, 8, 8))
    model = DistributedDataParallel(model, device_ids=[rank])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(5):
        torch.manual_seed(10 * step + rank)
        loss = model(torch.randn(6, 3, 8, 8, device="cuda")).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    torch.save({name: value.cpu() for name, value in model.state_dict().items()}, f"{path}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize("sync", [False, True])
def test_distributed_data_parallel(sync, tmp_path: Path):
    """Over all devices there are, by NCCL: parameters stay the same everywhere, shared statistics as well."""
    world = torch.cuda.device_count()
    os.environ.setdefault("NCCL_DEBUG", "WARN")
    torch.multiprocessing.start_processes(
        train, (world, str(tmp_path), sync), nprocs=world, start_method="spawn"
    )
    states = [torch.load(tmp_path / f"{rank}.pt") for rank in range(world)]
    assert all(value.isfinite().all() for value in states[0].values())
    for state in states[1:]:
        assert torch.equal(state["module.0.weight"], states[0]["module.0.weight"])
        if sync:
            torch.testing.assert_close(state["module.1.running_mean"], states[0]["module.1.running_mean"])
