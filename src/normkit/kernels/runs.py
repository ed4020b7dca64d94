"""Runs of neighbouring samples, the sub-batches of ghost batch norm."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor


@lru_cache(maxsize=256)  # a tensor takes longer to make than a small batch to normalize; nobody changes it
def values_of_runs(samples: int, size: int, values: int) -> Tensor:
    """How many values a channel has in each run of `size` samples, and in what remains, from those of one sample."""
    return torch.tensor([min(size, samples - i) * values for i in range(0, samples, size)])
