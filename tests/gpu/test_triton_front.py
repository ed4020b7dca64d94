"""The way from a layer to the GPU's kernels: autograd, operators, running statistics, what is refused and why."""

from __future__ import annotations

import os

import pytest
import torch
from torch.nn import functional
from triton_device import DEVICE

import normkit as nk
from normkit import kernels
from normkit.kernels import composed, families

# On CPU tensors the kernels run where they are asked for, which is settled when normkit is imported.
ASKED = DEVICE == "cuda" or os.environ.get("NORMKIT_BACKEND") == "triton"


def test_the_kernels_are_chosen_and_say_so():
    assert ASKED, "the interpreted process sets NORMKIT_BACKEND=triton"
    x = torch.ones(2, 3, device=DEVICE)
    assert nk.kernels.explain(x).startswith("compiled: Triton ")
    assert kernels._choose(x) is kernels.compiled
    assert nk.kernels.explain(x.double()) == "composed: no GPU kernels for torch.float64"
    assert "empty" in nk.kernels.explain(x[:0])
    assert nk.kernels.explain(x.to("meta")) == "composed: no compiled kernels for meta tensors"


def test_what_the_kernels_cannot_take_is_computed_all_the_same():
    layer = nk.BatchNorm1d(3, device=DEVICE, dtype=torch.float64)
    x = torch.randn(8, 3, device=DEVICE, dtype=torch.float64)
    torch.testing.assert_close(layer(x), functional.batch_norm(x, None, None, training=True))


def test_positions_beyond_32_bits_are_composed():
    """Looked at, not computed: an expanded tensor has the sizes without the memory."""
    x = torch.zeros(1, 1, device=DEVICE).expand(2**31, 1)
    assert "positions of a channel" in nk.kernels.explain(x)


@pytest.mark.parametrize("guard", [None, "nonfinite"])
@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("masked", [False, True])
def test_running_statistics_move_as_by_torch_operations(momentum, guard, masked):
    stats = torch.randn(2, 1500, dtype=torch.float64).abs().to(DEVICE)
    count = torch.tensor(40, device=DEVICE) if masked else 40
    ours, theirs = [
        [
            torch.zeros(1500, device=DEVICE),
            torch.ones(1500, device=DEVICE),
            *torch.zeros(2, 1, dtype=torch.int64, device=DEVICE).unbind(),
        ]
        for _ in range(2)
    ]
    for batch in (stats, 2 * stats, torch.where(stats > 2, torch.nan, stats)):
        if guard is None and batch.isnan().any():
            continue
        for move, (mean, var, tracked, skipped) in (
            (families.family(stats).update_running, ours),
            (composed.update_running, theirs),
        ):
            move(mean, var, batch, count, momentum, tracked[0], None if guard is None else skipped[0])
    for got, want in zip(ours, theirs, strict=True):
        assert torch.equal(got, want)
    assert ours[2].item() == 2
    assert ours[3].item() == (guard is not None)


def test_fewer_than_two_elements_move_nothing():
    mean, var = torch.zeros(3, device=DEVICE), torch.ones(3, device=DEVICE)
    tracked = torch.zeros((), dtype=torch.int64, device=DEVICE)
    stats = torch.ones(2, 3, dtype=torch.float64, device=DEVICE)
    families.family(mean).update_running(mean, var, stats, 1, 0.1, tracked)
    assert torch.equal(mean, torch.zeros_like(mean))
    assert torch.equal(var, torch.ones_like(var))
    assert tracked.item() == 0


@pytest.mark.parametrize("training", [True, False])
def test_a_layer_beside_torch(training):
    torch.manual_seed(0)
    ours, theirs = (
        nk.BatchNorm2d(3, device=DEVICE).train(training),
        torch.nn.BatchNorm2d(3, device=DEVICE).train(training),
    )
    x, dy = torch.randn(4, 3, 5, 6, device=DEVICE), torch.randn(4, 3, 5, 6, device=DEVICE)
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    outputs = [layer(value) for layer, value in zip((ours, theirs), inputs, strict=True)]
    for y in outputs:
        y.backward(dy)
    # Two float32 results, each some units in the last place from the truth.
    close = {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(*outputs, **close)
    torch.testing.assert_close(inputs[0].grad, inputs[1].grad, **close)
    torch.testing.assert_close(ours.weight.grad, theirs.weight.grad, **close)
    torch.testing.assert_close(ours.running_var, theirs.running_var, **close)
    assert ours.num_batches_tracked == theirs.num_batches_tracked


def test_compiled_program_has_the_operator():
    """torch.compile traces the operators, forward and backward, in one graph, and gives the same bits."""
    seen: list[str] = []

    def backend(graph, inputs):
        seen.extend(str(node.target) for node in graph.graph.nodes)
        return graph

    layer, x = nk.LayerNorm(8, device=DEVICE), torch.randn(4, 8, device=DEVICE)
    with torch.no_grad():
        y = torch.compile(layer, fullgraph=True, backend=backend)(x)
        assert torch.equal(y, layer(x))
    assert any("normkit.normalize" in name for name in seen)


def test_operators_pass_torchs_own_checks():
    torch.manual_seed(1)
    x = torch.randn(3, 2, 4, device=DEVICE, requires_grad=True)
    weight = torch.randn(2, device=DEVICE, requires_grad=True)
    arguments = "channels", x, weight, weight, None, None, None, None, 0, 1e-5, "relu"
    # Without what runs the operator under inductor's own compiler, a GPU's toolchain.
    torch.library.opcheck(
        torch.ops.normkit.normalize,
        arguments,
        test_utils=("test_schema", "test_autograd_registration", "test_faketensor"),
    )


def test_second_derivatives():
    torch.manual_seed(2)
    x = torch.randn(3, 4, device=DEVICE, requires_grad=True)
    layer = nk.LayerNorm(4, device=DEVICE)

    def penalty(norm):
        (gradient,) = torch.autograd.grad(norm(x).square().sum(), x, create_graph=True)
        return torch.autograd.grad(gradient.square().sum(), x)[0]

    def plain(v):
        return functional.layer_norm(v, (4,), layer.weight, layer.bias)

    torch.testing.assert_close(
        penalty(layer), penalty(plain), rtol=1e-3, atol=1e-3
    )  # float32, twice differentiated


def test_out_of_memory_changes_no_buffer():
    """Outputs are allocated first; what torch raises then is torch's own."""
    layer = nk.BatchNorm1d(2, device=DEVICE)
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    x = torch.zeros(1, 2, 1, device=DEVICE).expand(2**29, 2, 2**10)  # 4 TiB once it is written out
    with pytest.raises(RuntimeError, match=r"allocate|out of memory"):
        layer(x)
    for name, value in layer.state_dict().items():
        assert torch.equal(value, before[name])
