"""What takes several processes to find: statistics that differ between them, and norms that are not synchronized."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import normkit as nk


def _codes(model: nn.Module, batches: list[torch.Tensor] | None = None) -> set[tuple[str, str]]:
    return {(finding.code, finding.module) for finding in nk.diagnose(model, batches).findings}


def _process(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8, bias=False), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
    model = DistributedDataParallel(net, broadcast_buffers=False)
    for step in range(20):
        generator = torch.Generator().manual_seed(100 * rank + step)
        model(torch.randn(8, 4, generator=generator) + 2 * rank).sum().backward()
    found = _codes(model, [torch.randn(8, 4) for _ in range(2)])
    assert {("NK206", "module.1"), ("NK702", "module.1")} <= found, found

    model = DistributedDataParallel(nk.synchronize(net), broadcast_buffers=False)
    net[1].reset_running_stats()
    model(torch.randn(8, 4) + 2 * rank).sum().backward()
    found = _codes(model)
    assert not {code for code, _ in found} & {"NK206", "NK702"}, found

    plain = nn.Sequential(nn.Linear(4, 8, bias=False), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
    plain[1].running_mean += rank
    if rank == 0:  # without a group nobody is waited for
        assert "NK206" not in {code for code, _ in _codes(plain)}
    (finding,) = (f for f in nk.diagnose(plain, process_group="world").findings if f.code == "NK206")
    assert finding.module == "1"
    assert finding.evidence["apart"] == pytest.approx(1)
    plain[1].reset_running_stats()
    assert "NK206" not in {f.code for f in nk.diagnose(plain, process_group="world").findings}
    dist.barrier()
    dist.destroy_process_group()


def test_two_processes(tmp_path: Path) -> None:
    mp.spawn(_process, (str(tmp_path),), nprocs=2)
