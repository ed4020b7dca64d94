"""The GPU's kernels through Triton's compiler and NVIDIA's assembler, which need no GPU."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
DIVISIBLE = ("C", "S", "M")  # sizes of this suffice for loads of 16 bytes


@dataclass
class Compiled:
    """What the assembler made: its text, and what a thread needs."""

    ptx: str
    registers: int
    spilled: int  # bytes


def compiled(
    kernel: Any,
    pointers: dict[str, str],
    constants: dict[str, Any],
    warps: int,
    architecture: int,
    scratch: Path,
) -> Compiled:
    """A kernel for pointers of these types, None for those that are left out, and sizes that 16 divides."""
    signature, constexprs, attributes = {}, {}, {}
    for index, name in enumerate(kernel.arg_names):
        if name in constants or (name.endswith("_ptr") and name not in pointers):
            signature[name], constexprs[index,] = "constexpr", constants.get(name)
        elif name.endswith("_ptr"):
            signature[name] = pointers[name]
            if not kernel.params[index].do_not_specialize_on_alignment:
                attributes[index,] = [["tt.divisibility", 16]]
        else:
            signature[name] = "fp64" if name in ("eps", "momentum") else "i32"
            if name in DIVISIBLE:
                attributes[index,] = [["tt.divisibility", 16]]
    made = triton.compile(
        ASTSource(kernel, signature, constexprs=constexprs, attrs=attributes),
        target=GPUTarget("cuda", architecture, 32),
        options={"num_warps": warps, "launch_cooperative_grid": constants.get("BARRIER", False)},
    )
    file = scratch / "kernel.cubin"
    file.write_bytes(made.asm["cubin"])
    usage = subprocess.run([CUOBJDUMP, "-res-usage", file], capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    assert found is not None, usage
    return Compiled(made.asm["ptx"], int(found[1]), int(found[2]))
