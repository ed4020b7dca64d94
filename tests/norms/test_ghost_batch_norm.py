"""Ghost batch norm beyond its contract: sub-batches, their running statistics, masks, degenerate cases."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

import normkit as nk
from normkit import reference

U32 = 2.0**-24


def data(samples: int = 10, *, seed: int = 0) -> Tensor:
    return torch.randn(samples, 3, 4, generator=torch.Generator().manual_seed(seed)) * 2 + 5


def shaken(layer: torch.nn.Module) -> torch.nn.Module:
    layer.weight.data.copy_(torch.tensor([0.5, 1.5, -2.0]))
    layer.bias.data.copy_(torch.tensor([0.1, -0.2, 0.3]))
    return layer


@pytest.mark.parametrize("size", [2, 4, 5, 10, 64])
def test_is_batch_norm_of_each_sub_batch(size: int) -> None:
    """To the bit, with the running statistics of a batch norm that saw one after the other."""
    ghost, batch = nk.GhostBatchNorm1d(3, size), nk.BatchNorm1d(3)
    for seed in range(2):
        x = data(seed=seed)
        assert torch.equal(ghost(x), torch.cat([batch(part) for part in x.split(size)]))
    # Between sub-batches the layer keeps float64, where batch norm rounds to float32.
    for key, value in batch.state_dict().items():
        torch.testing.assert_close(ghost.state_dict()[key], value, rtol=8 * U32, atol=0)
    assert torch.equal(ghost.eval()(x), batch.load_state_dict(ghost.state_dict()) and batch.eval()(x))


@pytest.mark.parametrize("momentum", [0.1, None])
def test_running_statistics_are_the_papers(momentum: float | None) -> None:
    """Each sub-batch moves them in turn: weights η (1 - η)^(K - k); or all alike without a momentum."""
    x = data(11)
    layer = nk.GhostBatchNorm1d(3, 4, momentum=momentum)
    layer(x)
    _, cache = reference.ghost_batch_norm(x.double().numpy(), 4)
    mean, var = np.zeros(3), np.ones(3)
    for k, part in enumerate(cache.parts):
        factor = 1 / (k + 1) if momentum is None else momentum
        mean = reference.running_update(mean, part.mean, factor)
        var = reference.running_update(var, part.unbiased_var, factor)
    np.testing.assert_allclose(layer.running_mean, mean, rtol=2 * U32)
    np.testing.assert_allclose(layer.running_var, var, rtol=4 * U32)
    assert layer.num_batches_tracked == 3


@pytest.mark.parametrize("size", [3, 10])
@pytest.mark.parametrize("masked", [False, True])
def test_matches_the_specification(size: int, masked: bool) -> None:
    """With a mask, a sub-batch of which leaves one value and another none."""
    x, dy = data(), data(seed=1)
    mask = torch.rand(10, 4, generator=torch.Generator().manual_seed(2)) > 0.4 if masked else None
    if mask is not None:
        mask[3:9] = False
        mask[7, 2] = True
        x = x.masked_fill(~mask[:, None], float("nan"))
    x.requires_grad_()
    residual = data(seed=3).requires_grad_()
    layer = shaken(nk.GhostBatchNorm1d(3, size))
    y = layer(x, residual=residual, mask=mask)
    y.backward(dy)
    weight, bias = layer.weight.detach().numpy(), layer.bias.detach().numpy()
    valid = None if mask is None else mask.numpy()
    z, cache = reference.ghost_batch_norm(
        x.detach().double().nan_to_num().numpy(), size, weight, bias, mask=valid
    )
    kept = np.ones(x.shape, bool) if valid is None else np.broadcast_to(valid[:, None], x.shape)
    expected = np.where(kept, z + residual.detach().double().numpy(), 0)
    dx, dweight, dbias = reference.backward(dy.double().numpy(), cache)
    wanted = (expected, dx, dweight, dbias, np.where(kept, dy.numpy(), 0))
    for got, want in zip((y, x.grad, layer.weight.grad, layer.bias.grad, residual.grad), wanted, strict=True):
        # A few roundings of float32 at the magnitude of the terms: one value alone is divided by √ε.
        np.testing.assert_allclose(got.detach().numpy(), want, rtol=0, atol=40 * U32 * 200)


def test_masked_sub_batches_count_their_values() -> None:
    """Those of fewer than two values move nothing, on both ways to the buffers."""
    x, mask = data(), torch.ones(10, 4, dtype=torch.bool)
    mask[4:8] = False
    mask[5, 1] = True
    layer, twin, composed = (nk.GhostBatchNorm1d(3, 4), nk.BatchNorm1d(3), nk.GhostBatchNorm1d(3, 4))
    composed.running_mean = torch.zeros(3, 2)[:, 0]  # not contiguous: moved by torch operations
    layer(x, mask=mask), composed(x, mask=mask)
    twin(x[:4]), twin(x[8:])
    for other in (layer, composed):
        for key, value in twin.state_dict().items():
            torch.testing.assert_close(other.state_dict()[key], value, rtol=8 * U32, atol=0)


def test_function_is_the_layer() -> None:
    x, layer = data(), nk.GhostBatchNorm1d(3, 4)
    mean, var, count = torch.zeros(3), torch.ones(3), torch.tensor(0)
    y = nk.functional.ghost_batch_norm(x, 4, mean, var, training=True, num_batches_tracked=count)
    assert torch.equal(y, layer(x))
    assert torch.equal(mean, layer.running_mean)
    assert count == 3
    evaluated = nk.functional.ghost_batch_norm(x, 4, mean, var)
    torch.testing.assert_close(evaluated, layer.eval()(x), rtol=0, atol=0)


def test_threads_change_no_bit() -> None:
    x = torch.randn(64, 16, 32, 32, requires_grad=True)
    results = []
    threads = torch.get_num_threads()
    for number in (1, 2):
        torch.set_num_threads(number)
        layer = nk.GhostBatchNorm2d(16, 6)
        (dx,) = torch.autograd.grad(layer(x).sin().sum(), x)
        results.append((dx, layer.running_var))
    torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize(
    ("size", "samples", "message"),
    [
        (3, 4, r"got input size \[4, 3\] with ghost_size=3, whose last sub-batch has one: drop that sample"),
        (8, 1, r"Expected more than 1 value per channel when training, got input size \[1, 3\]"),
    ],
)
def test_one_value_has_no_variance(size: int, samples: int, message: str) -> None:
    layer = nk.GhostBatchNorm1d(3, size)
    with pytest.raises(ValueError, match=message):
        layer(torch.randn(samples, 3))
    assert layer.num_batches_tracked == 0
    layer.eval()(torch.randn(samples, 3))


@pytest.mark.parametrize("size", [1, 0, -2])
def test_sizes_below_two(size: int) -> None:
    message = f"the samples of a sub-batch, 2 or more, got {size}: take InstanceNorm"
    with pytest.raises(ValueError, match=message):
        nk.GhostBatchNorm1d(3, size)
    for training in (True, False):
        with pytest.raises(ValueError, match=message):
            nk.functional.ghost_batch_norm(data(), size, torch.zeros(3), torch.ones(3), training=training)
