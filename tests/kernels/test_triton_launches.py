"""The GPU's kernels through Triton's own launcher, on a driver that compiles for an H100 and notes what it would start.

So what a launch makes of real arguments is held without a GPU: the types it infers, arguments that are None or 1, which
calls share a kernel, and what a grid with a barrier needs. Tensors lie in the CPU's memory, and nobody reads them.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from normkit.kernels import triton as gpu
from normkit.kernels.codes import ACTIVATIONS
from normkit.kernels.triton import channel_kernels, plan, row_kernels, running

PROCESSORS = 132
KERNELS = [
    *(channel_kernels.forward_kernel, channel_kernels.backward_kernel),
    *(channel_kernels.join_moments_kernel, channel_kernels.join_sums_kernel),
    *(
        row_kernels.forward_kernel,
        row_kernels.backward_kernel,
        row_kernels.columns_kernel,
        row_kernels.join_kernel,
    ),
    running._move_kernel,
]


@dataclass
class Launch:
    kernel: str
    grid: tuple[int, int, int]
    cooperative: bool
    threads: int
    shared: int  # bytes
    arguments: dict[str, Any]


@dataclass
class Driver:
    """What Triton asks of a driver, for a device that is not there."""

    launches: list[Launch] = field(default_factory=list)

    @property
    def utils(self) -> Any:
        return SimpleNamespace(
            load_binary=lambda *_: (object(), object(), 0, 0, 1024),
            get_device_properties=lambda _: {"max_shared_mem": 227 << 10},
        )

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, _: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def launcher_cls(self, source: Any, metadata: Any) -> Callable[..., None]:
        def launch(x: int, y: int, z: int, *rest: Any) -> None:
            arguments = dict(zip(source.fn.arg_names, rest[6:], strict=True))
            warps, cooperative = metadata.num_warps, metadata.launch_cooperative_grid
            self.launches.append(
                Launch(metadata.name, (x, y, z), cooperative, 32 * warps, metadata.shared, arguments)
            )

        return launch


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Iterator[Driver]:
    """The driver, and torch's answer to how many processors there are."""
    recorder = Driver()
    properties = SimpleNamespace(multi_processor_count=PROCESSORS)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    plan._processors.cache_clear()
    for kernel in KERNELS:
        kernel.device_caches.clear()
    monkeypatch.setattr(driver, "_active", recorder)
    yield recorder
    plan._processors.cache_clear()
    for kernel in KERNELS:
        kernel.device_caches.clear()


def values(*shape: int, dtype: torch.dtype = torch.float32, last: bool = False) -> Tensor:
    x = torch.ones(shape, dtype=dtype)
    return x.movedim(1, -1).contiguous().movedim(-1, 1) if last else x


def test_every_primitive_with_arguments_of_every_type(device):
    """Statistics in float64, parameters of samples, masks, counts in tensors: the launcher takes them, and compiles."""
    x, weight = values(4, 6, 5, 5), values(6)
    stats, of_samples = values(3, 6, dtype=torch.float64), values(4, 6, dtype=torch.float64)
    mask = torch.ones(4, 5, 5, dtype=torch.bool)
    relu = ACTIVATIONS["relu"]
    gpu.channels_forward(x, weight, weight, 1e-5, relu)
    gpu.channels_forward(x, weight, None, 1, relu, x, mask)  # eps may be an integer
    gpu.channels_backward(x, x, stats, weight, weight, 1e-5, relu, x, mask)
    gpu.channels_moments(x, None, True)
    gpu.channels_normalize(x, of_samples, of_samples, of_samples, of_samples, 1e-5, tail=of_samples)
    gpu.channels_gradient_sums(x, x, of_samples, of_samples, of_samples, None, 1e-5)
    slopes = torch.stack((of_samples, of_samples))
    gpu.channels_input_gradient(x, x, of_samples, of_samples, slopes, of_samples, None, 1e-5)
    gpu.rows_forward(values(7, 1000), 1000, values(1000), None, 1e-5)
    gpu.rows_backward(values(7, 1000), values(7, 1000), values(3, 7).double(), values(1000), None, 1e-5)
    tracked = torch.zeros((), dtype=torch.int64)
    for count in (40, 2**40, torch.tensor(40)):
        gpu.update_running(values(6), values(6), stats, count, 0.1, tracked, tracked)
    assert len({launch.kernel for launch in device.launches}) == len(
        {k.__name__ for k in KERNELS} - {"columns_kernel"}
    )
    assert not any(launch.cooperative for launch in device.launches)
    assert all(launch.shared <= 227 << 10 for launch in device.launches)


@pytest.mark.parametrize("shape", [(1, 1), (4, 6, 1, 1), (4, 1, 3)])
def test_sizes_of_one(shape, device):
    """Which Triton takes for constants."""
    x, stats = values(*shape), values(3, shape[1], dtype=torch.float64)
    gpu.channels_forward(x, None, None, 1e-5)
    gpu.channels_backward(x, x, stats, None, None, 1e-5)
    rows = values(shape[0], 1)
    gpu.rows_backward(rows, rows, gpu.rows_forward(rows, 1, None, None, 1e-5)[1], values(1), None, 1e-5)
    assert len(device.launches) == 5


@pytest.mark.parametrize("last", [False, True])
def test_a_grid_with_a_barrier_runs_all_at_once(last, device):
    """A cooperative launch, of at most a program for each processor, whose threads have all registers of one."""
    x = values(32, 64, 56, 56, dtype=torch.bfloat16, last=last)
    gpu.channels_forward(x, None, None, 1e-5)
    (launch,) = device.launches
    assert launch.cooperative
    blocks, splits, _ = launch.grid
    assert 120 <= blocks * splits <= PROCESSORS
    assert launch.threads * 255 <= 65536
    arrived = launch.arguments["arrived_ptr"]
    assert arrived.dtype == torch.int32
    assert arrived.shape == (blocks,)
    assert launch.arguments["splits"] == splits


def test_no_kernel_for_a_shape(device, monkeypatch):
    """Over hundreds of shapes: a kernel for each cut, times whether 16 divides the sizes or they are 1, and no more."""
    kernels: set[tuple[str, str]] = set()

    def note(*, key: str, fn: Any, **_: Any) -> bool:
        kernels.add((fn.name, key))
        return True  # neither compiled nor launched

    def kind(size: int) -> str:
        return "1" if size == 1 else "16" if size % 16 == 0 else "any"

    monkeypatch.setattr(triton.knobs.runtime, "jit_cache_hook", note)
    draw = random.Random(0)
    parameters, expected = values(1000), set()
    for _ in range(400):
        N, C, S = (round(2 ** draw.uniform(0, most)) for most in (7, 9, 9))
        last, where = draw.random() < 0.5, draw.randrange(4)  # parameters anywhere in a buffer with others
        x = torch.empty((N, S, C) if last else (N, C, S), dtype=torch.bfloat16)
        x = x.movedim(-1, 1) if last else x
        weight = parameters[where : C + where]
        gpu.channels_forward(x, weight, weight, 1e-5)
        cut = plan.plan(x, N)
        tile = cut.channels_last, cut.j, cut.warps, cut.held, cut.barrier, cut.even, kind(C), kind(S)
        expected |= {(*tile, "both")} if cut.together else {(*tile, "sums"), (*tile, "outputs")}
    of_forward = [key for name, key in kernels if name.endswith("forward_kernel")]
    assert len(of_forward) <= len(expected)
    assert len(kernels) <= len(expected) + 2, "and two that join splits"
