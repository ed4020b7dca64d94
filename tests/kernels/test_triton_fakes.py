"""Operators and layers on CUDA tensors that have no memory: what compilers and exporters see, without a GPU.

Without gradients: torch without CUDA has no device for autograd to guard.
"""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

import normkit as nk
from normkit.kernels import compiled

OPERATORS = torch.ops.normkit
# kind, shape, size
CALLS = [
    ("channels", (4, 6, 5, 5), 0), ("ghosts", (5, 6, 5, 5), 2), ("given", (4, 6, 5, 5), 0),
    ("groups", (4, 6, 5, 5), 3), ("filters", (4, 6, 5, 5), 6), ("layer", (4, 5, 6), 1), ("rms", (4, 5, 6), 1),
]  # fmt: skip
LAYERS = [
    (partial(nk.BatchNorm2d, 6, activation="gelu"), (4, 6, 5, 5)),
    (partial(nk.GhostBatchNorm2d, 6, 2), (4, 6, 5, 5)),
    (partial(nk.GroupNorm, 3, 6), (4, 6, 5, 5)),
    (partial(nk.InstanceNorm2d, 6, affine=True, track_running_stats=True), (4, 6, 5, 5)),
    (partial(nk.LayerNorm, 6), (4, 5, 6)),
    (partial(nk.RMSNorm, 6), (4, 5, 6)),
]


@pytest.fixture(autouse=True)
def hopper(monkeypatch):
    """torch's answer to what the device can do."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _=None: (9, 0))


def facts(t: Tensor) -> tuple[object, ...]:
    return t.shape, t.stride(), t.dtype


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("kind", "shape", "size"), CALLS)
def test_operators_promise_what_kernels_give(kind, shape, size, dtype, channels_last):
    """Shapes, strides and dtypes of the CPU's kernels, whose primitives the GPU's are; on the GPU."""

    def call(device: str) -> list[Tensor]:
        x = torch.ones(shape, dtype=dtype, device=device)
        if channels_last and x.dim() == 4:
            x = x.to(memory_format=torch.channels_last)
        weight = torch.ones(6, device=device)
        given = (weight, weight) if kind == "given" else (None, None)
        arguments = kind, x, weight, weight, None, None, *given, size, 1e-5, None
        y, stats = OPERATORS.normalize(*arguments)
        return [y, stats, *OPERATORS.normalize_backward(x, stats, *arguments)]

    with FakeTensorMode():
        promised = call("cuda")
    given = call("cpu")
    assert [facts(t) for t in promised] == [facts(t) for t in given]
    assert {t.device.type for t in promised} == {"cuda"}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("make", "shape"), LAYERS)
def test_layers_are_operators_in_a_graph(make, shape, training):
    """No value is asked for on the way, which a tensor without memory could not answer: nothing waits for the GPU."""
    with FakeTensorMode(), torch.no_grad():
        layer = make(device="cuda").train(training)
        x = torch.ones(shape, device="cuda")
        graph = make_fx(layer)(x)
    names = [str(node.target) for node in graph.graph.nodes]
    assert "normkit.normalize.default" in names
    tracks = training and any("running" in name for name, _ in layer.named_buffers())
    assert ("normkit.update_running.default" in names) == tracks


def test_what_the_kernels_do_not_take(monkeypatch):
    with FakeTensorMode():
        x = torch.ones(4, 6, device="cuda")
        with monkeypatch.context() as older:
            older.setattr(torch.cuda, "get_device_capability", lambda _=None: (7, 5))
            assert (
                nk.kernels.explain(x)
                == "composed: the GPU kernels need compute capability 8.0, this device has 7.5"
            )
        assert nk.kernels._choose(x) is compiled
        assert nk.kernels.explain(x.double()) == "composed: no GPU kernels for torch.float64"
