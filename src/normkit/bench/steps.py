"""Whole training steps of real networks: the same network with torch's batch norm and with ours."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import normkit as nk
from normkit.bench.contenders import EAGER, OURS
from normkit.bench.networks import NETWORKS
from normkit.bench.result import Measured
from normkit.bench.timing import Contender, interleave

STEPS = "steps"  # the key that selects them, beside those of the rows
SIZE = (8, 3, 96, 96)


def measure(network: str, repeats: int, size: tuple[int, ...] = SIZE) -> Measured:
    """Time forward, loss, backward and SGD step of a network of `NETWORKS`, on random images and labels."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(size, generator=generator)
    labels = torch.randint(1000, (size[0],), generator=generator)
    found = [
        Contender(name, _step(build(network, norm), x, labels))
        for name, norm in ((OURS, nk.BatchNorm2d), (EAGER, nn.BatchNorm2d))
    ]
    return Measured(
        row=STEPS,
        network=network,
        size=size,
        backend=nk.kernels.explain(x),
        tensor_bytes=x.numel() * x.element_size(),
        forward_bytes=0,
        backward_bytes=0,
        beyond_cache=False,
        times=interleave(found, repeats),
    )


def build(name: str, norm: Callable[[int], nn.Module]) -> nn.Module:
    """With the same initial weights whatever the norm."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return NETWORKS[name](norm)


def _step(network: nn.Module, x: Tensor, labels: Tensor) -> Callable[[], None]:
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-3, momentum=0.9)

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(network(x), labels).backward()
        optimizer.step()

    return step
