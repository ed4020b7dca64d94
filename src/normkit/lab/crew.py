"""The processes that train one run together, as torchrun starts them; one alone where nobody did."""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import normkit as nk
from normkit.errors import InputError

_Value = TypeVar("_Value")


@dataclass(frozen=True)
class Crew:
    """A process among those of a run. Each trains on its part of every batch; the first one writes."""

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this is the process that owns the store and talks to the user."""
        return self.rank == 0

    def wrap(self, model: nn.Module) -> nn.Module:
        """The model to train: gradients are means over all processes, and so are statistics of batches."""
        if self.size == 1:
            return model
        return DistributedDataParallel(nk.synchronize(model))

    def part(self, batch: torch.Tensor) -> torch.Tensor:
        """The samples of a batch that are for this process."""
        return batch.tensor_split(self.size)[self.rank]

    def total(self, value: torch.Tensor) -> float:
        """The sum of a scalar over all processes."""
        if self.size > 1:
            value = value.detach().clone()
            dist.all_reduce(value)
        return value.item()

    def told(self, value: _Value) -> _Value:
        """What the first process has, for all."""
        if self.size == 1:
            return value
        values: list[Any] = [value]
        dist.broadcast_object_list(values)
        return values[0]

    def gathered(self, value: torch.Tensor) -> list[torch.Tensor]:
        """What each process has, by rank, for the first one; it alone for the others."""
        if self.size == 1:
            return [value]
        values: list[Any] | None = [None] * self.size if self.leads else None
        dist.gather_object(value, values)
        return values or [value]


@contextmanager
def assembled(device: str) -> Generator[Crew]:
    """Meet the processes that torchrun started, over gloo, or NCCL for CUDA, whose device each takes by its local rank.

    Raises:
        InputError: CUDA, and fewer devices than processes.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1 or "RANK" not in os.environ:
        yield Crew()
        return
    kind = torch.device(device).type
    if kind == "cuda":
        local, devices = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
        if local >= devices:
            raise InputError(
                f"--device cuda needs a device for each process, got {devices}: start fewer processes"
            )
        torch.cuda.set_device(local)
    dist.init_process_group("nccl" if kind == "cuda" else "gloo")
    try:
        yield Crew(dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()
