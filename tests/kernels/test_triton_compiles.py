"""What the interpreter cannot show of the GPU's kernels: that they compile, what they load at once, what they spill."""

from __future__ import annotations

import random
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from ptx import Compiled, compiled

from normkit.kernels.codes import ACTIVATIONS
from normkit.kernels.triton import channel_kernels, row_kernels, rows, running
from normkit.kernels.triton.plan import _plan, _plan_of_stage, sizes

TYPES = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16"}
# A few registers that do not fit lie in the first-level cache; more would cost what the kernel is there to save.
SPILLED = 64


def channel_pointers(dtype: torch.dtype, *tensors: str) -> dict[str, str]:
    small = dict.fromkeys(("weight_ptr", "bias_ptr"), "*fp32")
    sums = ("mean_ptr", "var_ptr", "stats_ptr", "sums_ptr", "slopes_ptr", "partial_ptr")
    wide = dict.fromkeys(sums, "*fp64")
    return {**dict.fromkeys(tensors, TYPES[dtype]), **small, **wide, "arrived_ptr": "*i32"}


def channel_constants(
    dtype: torch.dtype,
    size: tuple[int, int, int],
    channels_last: bool,
    barrier: bool,
    activation: str = "relu",
) -> dict:
    warps, elements, held = size
    j = 64
    lanes = warps * 32 * (16 // dtype.itemsize) // j
    return {
        "SUMS": True, "OUTPUTS": True, "SOURCE": 2 if barrier else 1, "BARRIER": barrier, "HELD": held,
        "CHANNELS_LAST": channels_last, "RUN": elements // (lanes * j), "LANES": lanes, "J": j, "PER_SET": False,
        "ACTIVATION": ACTIVATIONS[activation], "K": 32,
    }  # fmt: skip


def channel_kernel(
    kernel: Any,
    dtype: torch.dtype,
    constants: dict,
    warps: int,
    scratch: Path,
    *tensors: str,
    architecture: int = 90,
) -> Compiled:
    pointers = channel_pointers(dtype, *tensors)
    pointers = {
        name: of for name, of in pointers.items() if name in kernel.arg_names and name != "slopes_ptr"
    }
    if "mask_ptr" in tensors:
        pointers["mask_ptr"] = "*i1"
    return compiled(kernel, pointers, constants, warps, architecture, scratch)


def check(made: Compiled, dtype: torch.dtype) -> None:
    assert made.spilled <= SPILLED
    at_once = r"ld\.global\.v4\.b32|cp\.async\.cg\.shared\.global [^;]*, 0x10,"
    assert re.search(at_once, made.ptx), "16 bytes at once"
    assert "st.global.v4.b32" in made.ptx
    assert not re.search(r"\bred\.", made.ptx), "no value is added atomically"


FORWARD = channel_kernels.forward_kernel, "x_ptr", "y_ptr"
BACKWARD = channel_kernels.backward_kernel, "x_ptr", "dy_ptr", "dx_ptr"


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_a_program_holds_around_a_barrier(dtype, channels_last, tmp_path):
    """x, and backward dy too, stay in registers from the sums to the outputs: 128 KiB of them in a program."""
    for kernel, *tensors in (FORWARD, BACKWARD):
        size = sizes(dtype.itemsize, backward=kernel is BACKWARD[0])[-1]
        assert size[1] * size[2] * dtype.itemsize * (len(tensors) - 1) == 128 << 10
        constants = channel_constants(dtype, size, channels_last, barrier=True)
        made = channel_kernel(kernel, dtype, constants, size[0], tmp_path, *tensors)
        check(made, dtype)
        loads = re.findall(r"ld\.global\.v4\.b32", made.ptx)
        # Each thread reads what it holds once, 16 bytes at a time; some more are statistics or parameters.
        held = size[1] * size[2] * dtype.itemsize * (len(tensors) - 1) // (16 * 32 * size[0])
        assert held <= len(loads) < 1.5 * held
        assert re.findall(r"atom\.[\w.]*", made.ptx) == ["atom.global.gpu.acq_rel.add.u32"], "arrival alone"
        assert "ld.global.gpu.acquire.b32" in made.ptx, "looking whether all have arrived"
        assert "ld.global.cg.b64" in made.ptx, "the others' sums come from the cache that all share"


@pytest.mark.parametrize(("kernel", "activation"), [(FORWARD, "elu"), (BACKWARD, "gelu")])
def test_activations_of_what_is_held(kernel, activation, tmp_path):
    """Those that take the most registers; and no minimum with 0, which would lose NaN."""
    kernel, *tensors = kernel
    size = sizes(2, backward=len(tensors) > 2)[-1]
    constants = channel_constants(torch.bfloat16, size, False, barrier=False, activation=activation)
    made = channel_kernel(kernel, torch.bfloat16, constants, size[0], tmp_path, *tensors)
    check(made, torch.bfloat16)
    assert not re.search(r"\bmin\.f32", made.ptx)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [(4, 2048, 1), (4, 4096, 0), (8, 8192, 1)])
def test_smaller_tiles(size, dtype, tmp_path):
    """And of a device before, held and passed through: no barrier, nothing atomic at all."""
    constants = channel_constants(dtype, size, True, barrier=False)
    tensors = (*BACKWARD[1:], "residual_ptr", "dresidual_ptr", "mask_ptr")
    made = channel_kernel(BACKWARD[0], dtype, constants, size[0], tmp_path, *tensors, architecture=80)
    check(made, dtype)
    assert "atom." not in made.ptx
    assert "sqrt.rn.f64" in made.ptx


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kernel", [FORWARD, BACKWARD], ids=["forward", "backward"])
def test_sums_of_a_set_that_passes_through(kernel, dtype, tmp_path):
    """What comes next is on its way to the shared memory, and several programs fit a processor."""
    kernel, *tensors = kernel
    constants = channel_constants(dtype, (4, 4096, 0), True, barrier=False) | {"OUTPUTS": False, "SOURCE": 2}
    made = channel_kernel(kernel, dtype, constants, 4, tmp_path, *tensors)
    assert made.spilled == 0
    assert made.registers * 128 * 2 <= 65536
    assert len(re.findall(r"cp\.async\.c[ag]\.shared\.global", made.ptx)) >= 2 * (len(tensors) - 1)


@pytest.mark.parametrize("M", [768, 8192, 20000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows(M, dtype, tmp_path):
    pointers = dict.fromkeys(("x_ptr", "y_ptr", "dy_ptr", "dx_ptr"), TYPES[dtype])
    pointers |= {"weight_ptr": "*fp32", "bias_ptr": "*fp32", "stats_ptr": "*fp64"}
    for kernel, most in (
        (row_kernels.forward_kernel, rows.WHOLE),
        (row_kernels.backward_kernel, rows.WHOLE_BACKWARD),
    ):
        whole, several, run, lanes, warps = rows.tile(M, dtype.itemsize, most)
        constants = {"CENTRED": True, "WHOLE": whole, "ROWS": several, "RUN": run, "LANES": lanes}
        of = {**pointers, **({"partial_ptr": "*fp32"} if whole else {})}
        of = {name: kind for name, kind in of.items() if name in kernel.arg_names}
        made = compiled(kernel, of, constants, warps, 90, tmp_path)
        check(made, dtype)
        assert "atom." not in made.ptx


def test_small_kernels(tmp_path):
    wide = dict.fromkeys(("partial_ptr", "stats_ptr", "sums_ptr", "slopes_ptr", "var_ptr"), "*fp64")
    for kernel, constants in (
        (channel_kernels.join_moments_kernel, {"WIDTH": 8, "K": 256}),
        (channel_kernels.join_sums_kernel, {"PER_SET": False, "WIDTH": 256, "K": 8}),
        (running._move_kernel, {"CUMULATIVE": True, "WIDTH": 1024}),
    ):
        pointers = {
            **wide,
            "weight_ptr": "*fp32",
            "mean_ptr": "*fp32",
            "batches_ptr": "*i64",
            "skipped_ptr": "*i64",
        }
        if kernel is running._move_kernel:
            pointers["var_ptr"] = "*fp32"
        pointers = {name: of for name, of in pointers.items() if name in kernel.arg_names}
        made = compiled(kernel, pointers, constants, 4, 90, tmp_path)
        assert made.spilled == 0
        assert "atom." not in made.ptx


def test_no_compilation_for_a_shape():
    """What a kernel is compiled for, over shapes as networks have them and many others: a bounded set."""
    draw = random.Random(0)
    held, passed = set(), set()
    for _ in range(3000):
        N, C, S = (round(2 ** draw.uniform(0, most)) for most in (10, 12, 16))
        last, processors, backward = draw.random() < 0.5, draw.choice((40, 108, 132)), draw.random() < 0.5
        shape = N, C, S, draw.choice((N, 1)), last, 2
        for cut in (_plan(*shape, processors, backward), _plan_of_stage(*shape)):
            assert cut.blocks * cut.splits <= processors or not cut.barrier
            assert cut.splits * cut.per_split >= cut.size * cut.chunks > (cut.splits - 1) * cut.per_split
            assert not cut.held or cut.held * cut.run * cut.lanes >= cut.per_split
            of_tile = cut.channels_last, cut.j, cut.warps, cut.run, cut.lanes
            (held if cut.held else passed).add((*of_tile, cut.held, cut.barrier, cut.together))
    # Three widths of a tile in each layout, times: six parts of a set forward and six backward, of which two are the
    # same, and one that serves a stage alone, around a barrier or not.
    assert len(held) <= 2 * 3 * 2 * 11
    # The same widths, alone, around a barrier, in two sweeps.
    assert len(passed) <= 2 * 3 * 3


@pytest.mark.parametrize("channels_last", [False, True])
def test_16_megabytes_stay_on_an_h100(channels_last):
    """Batch norm in training, bfloat16: one launch, which holds x, for all layers of up to 16 MB of ResNet-50."""
    for C, side in ((64, 112), (64, 56), (256, 56), (512, 28), (1024, 14), (2048, 7)):
        for N in (4, 8, 16, 32, 64, 80):
            if N * C * side**2 * 2 <= 16 << 20:
                cut = _plan(N, C, side**2, N, channels_last, 2, processors=132, backward=False)
                assert cut.together, (N, C, side)
                assert cut.held, (N, C, side)
