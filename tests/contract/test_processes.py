"""Under DistributedDataParallel, two real processes over gloo end where torch's layers end."""

from __future__ import annotations

import copy
import socket

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import normkit as nk


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def network(batch_norm: type[nn.Module], layer_norm: type[nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), batch_norm(8), nn.ReLU(), nn.Linear(8, 4), layer_norm(4))


def train(rank: int, port: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    results = []
    for model in (network(nk.BatchNorm1d, nk.LayerNorm), network(nn.BatchNorm1d, nn.LayerNorm)):
        wrapped = DistributedDataParallel(model)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        generator = torch.Generator().manual_seed(rank)
        for _ in range(3):
            optimizer.zero_grad()
            wrapped(torch.randn(10, 6, generator=generator)).square().mean().backward()
            optimizer.step()
        results.append(copy.deepcopy(model.state_dict()))
    for key, expected in results[1].items():
        torch.testing.assert_close(results[0][key], expected, rtol=1e-5, atol=1e-6)
    del wrapped  # its reducer must not outlive the group
    dist.barrier()
    dist.destroy_process_group()


def test_distributed_data_parallel() -> None:
    """An assertion that fails in a process fails here: spawn raises what its children raise."""
    mp.spawn(train, args=(free_port(),), nprocs=2)
