"""Where the kernels run in this process, and tensors there."""

from __future__ import annotations

import os

import torch
from torch import Tensor

DEVICE = "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def laid_out(x: Tensor, channels_last: bool) -> Tensor:
    x = x.to(DEVICE)
    return x.movedim(1, -1).contiguous().movedim(-1, 1) if channels_last else x.contiguous()
