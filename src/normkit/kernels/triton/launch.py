"""Where kernels are launched."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def launch(kernel: Any, grid: tuple[int, ...], first: Tensor, *arguments: Any, **options: Any) -> None:
    """Run a kernel on the device of its first argument, which need not be the current one."""
    if not first.is_cuda or first.device.index == torch.cuda.current_device():
        kernel[grid](first, *arguments, **options)
        return
    with torch.cuda.device(first.device):
        kernel[grid](first, *arguments, **options)
