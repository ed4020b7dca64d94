"""The families of kernels behind the compiled backend: `cpu`, in C++, and `triton`, for NVIDIA GPUs.

Both are modules with the same primitives on plain tensors. Triton is imported when the first tensor needs it, for
`import normkit` needs torch and NumPy alone. `NORMKIT_BACKEND=triton` with `TRITON_INTERPRET=1`, both set before the
import, runs the GPU's kernels on CPU tensors by Triton's interpreter, slowly: for tests and for reading along.
"""

from __future__ import annotations

import importlib.util
import os
from types import ModuleType

import torch
from torch import Tensor

try:
    from normkit.kernels import cpu
except ImportError as failure:  # installed without a compiler
    if "NORMKIT_ISA" in str(failure):
        raise
    cpu, _no_cpu = None, f"the compiled extension is not there ({failure})"
else:
    _no_cpu = None

_INTERPRETING = os.environ.get("NORMKIT_BACKEND") == "triton"
_NO_TRITON = (
    None
    if importlib.util.find_spec("triton") is not None
    else 'Triton is not installed: pip install "normkit[triton]"'
)
_GPU_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_LEAST_CAPABILITY = (8, 0)  # that has bfloat16, and what Triton supports
_MOST_POSITIONS = 2**31 - 2**15  # that the GPU's kernels count in 32 bits, a tile beyond the end included


def family(x: Tensor) -> ModuleType:
    """The primitives for x, of which `against` has nothing to say."""
    if x.is_cpu and not _INTERPRETING:
        assert cpu is not None
        return cpu
    from normkit.kernels import triton

    return triton


def on_cpu(x: Tensor) -> bool:
    """Whether the C++ kernels take x: numbers are there to be read, and more is fused."""
    return x.is_cpu and not _INTERPRETING


def against(x: Tensor) -> str | None:
    """Why no family takes tensors such as x; None where one does."""
    if x.is_cpu and not _INTERPRETING:
        if cpu is None:
            return _no_cpu
        return None if x.dtype in cpu.DTYPES else f"no compiled kernels for {x.dtype}"
    if x.is_cpu and os.environ.get("TRITON_INTERPRET") != "1":
        return "Triton's kernels take CUDA tensors, and CPU tensors with TRITON_INTERPRET=1"
    if not x.is_cpu and not x.is_cuda:
        return f"no compiled kernels for {x.device.type} tensors"
    if _NO_TRITON is not None:
        return _NO_TRITON
    if x.dtype not in _GPU_DTYPES:
        return f"no GPU kernels for {x.dtype}"
    if x.dim() > 1 and x.shape[1] > 0 and x.numel() // x.shape[1] > _MOST_POSITIONS:
        return f"no GPU kernels for more than {_MOST_POSITIONS} positions of a channel"
    return _of_device(x) if x.is_cuda else None


def describe(x: Tensor) -> str:
    """Which kernels take x, in words."""
    if on_cpu(x):
        facts = family(x).describe()
        return f"CPU kernels for {facts['instruction_set']}, built by {facts['compiler']}"
    return family(x).describe(x)


def _of_device(x: Tensor) -> str | None:
    if torch.version.hip is not None:
        return "the GPU kernels are written for NVIDIA's"
    capability = torch.cuda.get_device_capability(x.device)
    if capability >= _LEAST_CAPABILITY:
        return None
    return f"the GPU kernels need compute capability 8.0, this device has {capability[0]}.{capability[1]}"
