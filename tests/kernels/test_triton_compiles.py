"""What the interpreter cannot show of the GPU's kernels: that they compile, what they load at once, what they spill."""

from __future__ import annotations

import random
import re

import pytest
import torch
from ptx import Compiled, compiled

from normkit.kernels.triton import channel_kernels, row_kernels, rows, running
from normkit.kernels.triton.plan import SIZES, _plan, sizes

TYPES = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16"}
# A few registers that do not fit lie in the first-level cache; more would cost what the kernel is there to save.
SPILLED = 64


def channel_pointers(dtype: torch.dtype, *tensors: str) -> dict[str, str]:
    small = dict.fromkeys(("weight_ptr", "bias_ptr"), "*fp32")
    sums = ("mean_ptr", "var_ptr", "stats_ptr", "sums_ptr", "slopes_ptr", "partial_ptr")
    wide = dict.fromkeys(sums, "*fp64")
    return {**dict.fromkeys(tensors, TYPES[dtype]), **small, **wide, "arrived_ptr": "*i32"}


def channel_constants(dtype: torch.dtype, size: tuple[int, int], channels_last: bool, barrier: bool) -> dict:
    warps, elements = size
    j = 64 if channels_last else 256
    lanes = warps * 32 * (16 // dtype.itemsize) // j
    return {
        "SUMS": True, "OUTPUTS": True, "SOURCE": 2 if barrier else 1, "BARRIER": barrier, "ONE_TILE": True,
        "CHANNELS_LAST": channels_last, "RUN": elements // (lanes * j), "LANES": lanes, "J": j, "PER_SET": False,
        "ACTIVATION": 1, "K": 32,
    }  # fmt: skip


def check(made: Compiled, dtype: torch.dtype) -> None:
    assert made.spilled <= SPILLED
    assert "ld.global.v4.b32" in made.ptx, "16 bytes at once"
    assert "st.global.v4.b32" in made.ptx
    assert not re.search(r"\bred\.", made.ptx), "no value is added atomically"


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_largest_tile_around_a_barrier(dtype, channels_last, tmp_path):
    """x, and backward dy too, stay in registers from the sums to the outputs."""
    for kernel, tensors in (
        (channel_kernels.forward_kernel, ("x_ptr", "y_ptr")),
        (channel_kernels.backward_kernel, ("x_ptr", "dy_ptr", "dx_ptr")),
    ):
        pointers = channel_pointers(dtype, *tensors)
        pointers = {name: of for name, of in pointers.items() if name in kernel.arg_names}
        if "slopes_ptr" in kernel.arg_names:
            del pointers["slopes_ptr"]
        size = sizes(channels_last, kernel is channel_kernels.backward_kernel)[-1]
        constants = channel_constants(dtype, size, channels_last, barrier=True)
        made = compiled(kernel, pointers, constants, size[0], 90, tmp_path)
        check(made, dtype)
        assert re.findall(r"atom\.[\w.]*", made.ptx) == ["atom.global.gpu.acq_rel.add.u32"], "arrival alone"
        assert "ld.global.gpu.acquire.b32" in made.ptx, "looking whether all have arrived"
        assert "ld.global.cg.b64" in made.ptx, "the others' sums come from the cache that all share"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", SIZES[:2])
def test_smaller_tiles(size, dtype, tmp_path):
    """And of a device before: no barrier, nothing atomic at all."""
    constants = channel_constants(dtype, size, True, barrier=False)
    kernel = channel_kernels.backward_kernel
    pointers = channel_pointers(dtype, "x_ptr", "dy_ptr", "dx_ptr", "residual_ptr", "dresidual_ptr")
    pointers = {name: of for name, of in pointers.items() if name in kernel.arg_names}
    made = compiled(kernel, {**pointers, "mask_ptr": "*i1"}, constants, size[0], 80, tmp_path)
    check(made, dtype)
    assert "atom." not in made.ptx
    assert "sqrt.rn.f64" in made.ptx


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
        (channel_kernels.join_moments_kernel, {"WIDTH": 32, "K": 32}),
        (channel_kernels.join_sums_kernel, {"PER_SET": False, "WIDTH": 32, "K": 32}),
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
    seen = set()
    for _ in range(3000):
        N, C, S = (round(2 ** draw.uniform(0, most)) for most in (10, 12, 16))
        last, processors = draw.random() < 0.5, draw.choice((40, 108, 132))
        cut = _plan(N, C, S, draw.choice((N, 1)), last, 2, processors)
        assert cut.blocks * cut.splits <= processors or not cut.barrier
        assert cut.splits * cut.per_split >= min(cut.size, N) * cut.chunks > (cut.splits - 1) * cut.per_split
        assert cut.run * cut.lanes * cut.j in {elements for _, elements in SIZES}
        seen.add(
            (cut.channels_last, cut.j, cut.warps, cut.run, cut.lanes, cut.one_tile, cut.barrier, cut.together)
        )
    # Two widths channels last and three contiguous, times: three sizes of one tile, the largest around a barrier in
    # one tile and in several, those that pass through alone and in two sweeps.
    assert len(seen) <= 5 * 7
