"""The sub-batches of all processes, as if one process had taken them one after the other."""

from __future__ import annotations

import torch
from torch import Tensor

from normkit.processes.line import Call, Layer, Line


def gather_runs(
    line: Line, layer: Layer, mean: Tensor, var: Tensor, counts: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Means, variances (K, C) and counts (K) of this process's sub-batches, to those of all, in the order of ranks.

    One all-gather. Where a process has fewer sub-batches than another, empty ones, of count 0, stand behind its own.

    Raises:
        ProcessError: another process does something else, or does not come.
    """
    channels = mean.shape[1]
    own = torch.cat((counts.to(mean.dtype)[:, None], mean.detach(), var.detach()), 1)
    _, rows = line.gather(Call("forward", layer, channels), (), own.flatten())
    count, mean, var = rows.clone().view(-1, 1 + 2 * channels).split([1, channels, channels], 1)
    return mean, var, count.flatten().to(torch.int64)
