"""The grid that runs all at once: one launch beside two, over and over, from several streams, in CUDA graphs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from normkit.kernels import triton as gpu
from normkit.kernels.codes import ACTIVATIONS
from normkit.kernels.triton.plan import plan

EPS = 1e-5
RELU = ACTIVATIONS["relu"]


def values(shape: tuple[int, ...], channels_last: bool, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    x = torch.randn(shape, device="cuda", dtype=dtype) * 2 + 3
    return x.to(memory_format=torch.channels_last) if channels_last else x


def in_two(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Statistics first, outputs by another launch: programs that wait for nobody."""
    (mean, var, _), _ = gpu.channels_moments(x)
    return gpu.channels_normalize(x, mean, var, weight, bias, EPS, RELU)


def close(y: Tensor, want: Tensor) -> None:
    """One unit in the last place: means that are summed in another order are rounded differently at the end."""
    torch.testing.assert_close(y, want, rtol=2.0**-7 if y.dtype == torch.bfloat16 else 1e-5, atol=1e-3)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("shape", [(32, 64, 56, 56), (32, 8, 40, 40), (4, 2, 300, 300), (16, 3, 256, 256)])
def test_the_same_bits_every_time(shape, channels_last):
    x = values(shape, channels_last)
    assert plan(x, shape[0]).barrier, "on a device of many processors"
    weight, bias = torch.randn(2, shape[1], device="cuda")
    first = gpu.channels_forward(x, weight, bias, EPS, RELU)
    close(first[0], in_two(x, weight, bias))
    dy = values(shape, channels_last)
    gradients = gpu.channels_backward(x, dy, first[1], weight, bias, EPS, RELU)
    for _ in range(200):
        y, stats, _ = gpu.channels_forward(x, weight, bias, EPS, RELU)
        again = gpu.channels_backward(x, dy, stats, weight, bias, EPS, RELU)
    assert torch.equal(y, first[0])
    assert torch.equal(stats, first[1])
    assert all(torch.equal(a, b) for a, b in zip(again[:3], gradients[:3], strict=True))


def test_several_streams_at_once():
    """Each launch has counters of its own, and one that does not fit beside another waits instead of hanging."""
    shape = 32, 64, 56, 56
    inputs = [values(shape, last) for last in (False, True) for _ in range(3)]
    weight, bias = torch.randn(2, 64, device="cuda")
    want = [gpu.channels_forward(x, weight, bias, EPS, RELU)[0] for x in inputs]
    torch.cuda.synchronize()
    streams = [torch.cuda.Stream() for _ in inputs]
    for _ in range(50):
        found = []
        for stream, x in zip(streams, inputs, strict=True):
            with torch.cuda.stream(stream):
                found.append(gpu.channels_forward(x, weight, bias, EPS, RELU)[0])
        torch.cuda.synchronize()
        assert all(torch.equal(y, expected) for y, expected in zip(found, want, strict=True))


@pytest.mark.parametrize("channels_last", [False, True])
def test_a_cuda_graph_is_replayed(channels_last):
    """Counters begin at 0 in every replay, and nothing in a call waits for the device."""
    shape = 32, 64, 56, 56
    x, dy = values(shape, channels_last), values(shape, channels_last)
    weight, bias = torch.randn(2, 64, device="cuda")
    running = torch.zeros(64, device="cuda"), torch.ones(64, device="cuda")
    tracked = torch.zeros((), dtype=torch.int64, device="cuda")

    def step() -> list[Tensor | None]:
        y, stats, count = gpu.channels_forward(x, weight, bias, EPS, RELU)
        gpu.update_running(*running, stats, count, 0.1, tracked)
        return [y, *gpu.channels_backward(x, dy, stats, weight, bias, EPS, RELU)]

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()  # compiles and loads the kernels, which must not happen while a graph is captured
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    before = tracked.item()
    for number in range(20):
        x.copy_(values(shape, channels_last))
        dy.copy_(values(shape, channels_last))
        graph.replay()
        y, stats, _ = gpu.channels_forward(x, weight, bias, EPS, RELU)
        want = [y, *gpu.channels_backward(x, dy, stats, weight, bias, EPS, RELU)]
        for got, expected in zip(captured, want, strict=True):
            assert got is expected is None or torch.equal(got, expected)
        assert tracked.item() == before + number + 1


def test_a_device_that_is_busy():
    """Programs that occupy processors delay the launch; it begins once it fits, all at once."""
    x = values((32, 64, 56, 56), True)
    weight, bias = torch.randn(2, 64, device="cuda")
    want = gpu.channels_forward(x, weight, bias, EPS, RELU)[0]
    busy, matrix = torch.cuda.Stream(), torch.randn(4096, 4096, device="cuda")
    torch.cuda.synchronize()
    for _ in range(20):
        with torch.cuda.stream(busy):
            matrix @ matrix
        assert torch.equal(gpu.channels_forward(x, weight, bias, EPS, RELU)[0], want)
    torch.cuda.synchronize()


def test_out_of_memory_leaves_the_running_statistics():
    import normkit as nk

    layer = nk.BatchNorm2d(64, device="cuda")
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    x = values((8, 64, 56, 56), False, torch.float32)
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info()
    total = torch.cuda.get_device_properties(0).total_memory
    held = torch.cuda.memory_reserved()
    torch.cuda.set_per_process_memory_fraction((held + (1 << 20)) / total)
    try:
        with pytest.raises(torch.OutOfMemoryError):
            layer(x)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert free > 0
    for name, value in layer.state_dict().items():
        assert torch.equal(value, before[name])
