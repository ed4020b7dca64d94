"""Batch renorm beyond its contract: the correction, the schedule, degenerate cases."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor

import normkit as nk
from normkit import reference

U32 = 2.0**-24
AT_ONCE = {"warmup": 0, "r_steps": 0, "d_steps": 0}


def data(samples: int = 10, *, seed: int = 0) -> Tensor:
    return torch.randn(samples, 3, 4, generator=torch.Generator().manual_seed(seed)) * 2 + 1


def trained(layer: torch.nn.Module) -> torch.nn.Module:
    """With running statistics that leave r and d of the channels within, above and below their limits."""
    layer.weight.data.copy_(torch.tensor([0.5, 1.5, -2.0]))
    layer.bias.data.copy_(torch.tensor([0.1, -0.2, 0.3]))
    layer.running_mean.copy_(torch.tensor([0.5, 9.0, -9.0]))
    layer.running_var.copy_(torch.tensor([3.0, 0.1, 90.0]))
    return layer


@pytest.mark.parametrize("engine", ["compiled", "composed"])
@pytest.mark.parametrize("masked", [False, True])
def test_matches_the_specification(engine: str, masked: bool) -> None:
    x, dy = data(), data(seed=1)
    mask = torch.rand(10, 4, generator=torch.Generator().manual_seed(2)) > 0.4 if masked else None
    x = x if mask is None else x.masked_fill(~mask[:, None], float("nan"))
    x.requires_grad_()
    residual = data(seed=3).requires_grad_()
    layer = trained(nk.BatchRenorm1d(3, r_max=1.5, d_max=0.5, **AT_ONCE))
    known = [t.double().numpy() for t in (layer.running_mean, layer.running_var)]
    if engine == "composed":  # a limit that is a tensor is not read
        limits = {"r_max": torch.tensor(1.5), "d_max": torch.tensor(0.5)}
        y = nk.functional.batch_renorm(
            x, layer.running_mean, layer.running_var, layer.weight, layer.bias, True, residual=residual,
            mask=mask, **limits,
        )  # fmt: skip
    else:
        y = layer(x, residual=residual, mask=mask)
    y.backward(dy)
    weight, bias = layer.weight.detach().numpy(), layer.bias.detach().numpy()
    valid = None if mask is None else mask.numpy()
    z, cache = reference.batch_renorm(
        x.detach().double().nan_to_num().numpy(), *known, 1.5, 0.5, weight, bias, mask=valid
    )
    assert 1 / 1.5 < cache.r[0] < 1.5
    assert cache.r[1:].tolist() == [1.5, 1 / 1.5]
    assert abs(cache.d[0]) < 0.5
    assert cache.d[1:].tolist() == [-0.5, 0.5]
    kept = np.ones(x.shape, bool) if valid is None else np.broadcast_to(valid[:, None], x.shape)
    dx, dweight, dbias = reference.backward(dy.double().numpy(), cache)
    wanted = (
        np.where(kept, z + residual.detach().double().numpy(), 0),
        dx,
        dweight,
        dbias,
        np.where(kept, dy.numpy(), 0),
    )
    for got, want in zip((y, x.grad, layer.weight.grad, layer.bias.grad, residual.grad), wanted, strict=True):
        # A few roundings of float32 at the magnitude of the terms; sums of 120 of them.
        np.testing.assert_allclose(got.detach().numpy(), want, rtol=0, atol=40 * U32 * 10)
    mean = reference.running_update(known[0], cache.batch.mean, 0.1)
    np.testing.assert_allclose(layer.running_mean, mean, rtol=4 * U32)


@pytest.mark.parametrize("activation", [None, "relu", "silu"])
def test_without_a_correction_it_is_batch_norm(activation: str | None) -> None:
    x = data().requires_grad_()
    mean, var = torch.full((3,), 7.0), torch.full((3,), 9.0)
    y = nk.functional.batch_renorm(
        x, mean.clone(), var.clone(), training=True, r_max=1, d_max=0, activation=activation
    )
    expected = nk.functional.batch_norm(x, mean, var, training=True, activation=activation)
    assert torch.equal(y, expected)
    dx = [torch.autograd.grad(v.sin().sum(), x)[0] for v in (y, expected)]
    torch.testing.assert_close(*dx, rtol=0, atol=8 * U32)


def test_without_limits_training_normalizes_as_evaluation_does() -> None:
    layer = trained(nk.BatchRenorm1d(3, r_max=1e6, d_max=1e6, **AT_ONCE))
    expected = copy.deepcopy(layer).eval()(data())
    torch.testing.assert_close(layer(data()), expected, rtol=2e-6, atol=2e-6)


def test_warm_up_is_batch_norm_and_then_limits_grow() -> None:
    layer, twin = nk.BatchRenorm1d(3, warmup=2, r_steps=6, d_steps=4), nk.BatchNorm1d(3)
    # What the paper's schedule gives after 2 steps of batch norm, for r_max 3 and d_max 5.
    limits = [(1, 0), (1, 0), (1, 0), (1.5, 2.5), (2, 5), (2.5, 5), (3, 5), (3, 5)]
    for step, (r_max, d_max) in enumerate(limits):
        x = data(seed=step) * (step + 1)
        expected = nk.functional.batch_renorm(
            x, layer.running_mean.clone(), layer.running_var.clone(), training=True, r_max=r_max, d_max=d_max
        )
        tensors = layer._limits(layer.num_batches_tracked)
        assert [float(t) for t in tensors] == [r_max, d_max]
        y = layer(x)
        assert torch.equal(y, expected)
        assert torch.equal(y, twin(x)) == (step <= 2)
    assert all(torch.equal(twin.state_dict()[k], v) for k, v in layer.state_dict().items())


def test_defaults_are_the_papers() -> None:
    layer = nk.BatchRenorm2d(3)
    limits = {
        0: (1, 0),
        5_000: (1, 0),
        15_000: (1 + 2 * 10 / 35, 2.5),
        25_000: (1 + 2 * 20 / 35, 5),
        40_000: (3, 5),
    }
    for steps, expected in limits.items():
        assert layer._limits(steps) == pytest.approx(expected)


def test_schedule_goes_on_from_a_checkpoint() -> None:
    """And weights of a batch norm of torch's load, with their count."""
    options = {"warmup": 1, "r_steps": 5, "d_steps": 5}
    layer, other = nk.BatchRenorm1d(3, **options), nk.BatchRenorm1d(3, **options)
    for seed in range(3):
        layer(data(seed=seed))
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other(data(seed=9)), layer(data(seed=9)))
    torch_layer = torch.nn.BatchNorm1d(3)
    torch_layer.load_state_dict(layer.state_dict())
    other.load_state_dict(torch_layer.state_dict())
    assert torch.equal(other(data(seed=9)), layer(data(seed=9)))


def test_compiled_code_corrects_alike() -> None:
    """Unlike the contract's case, with r and d within their limits, through which the running statistics show."""
    torch._dynamo.reset()
    plain, other = (nk.BatchRenorm1d(3, r_max=50.0, d_max=50.0, **AT_ONCE) for _ in range(2))
    compiled = torch.compile(other, fullgraph=True)
    for seed in range(2):
        results = []
        for run in (plain, compiled):
            x = data(seed=seed).requires_grad_()
            y = run(x)
            y.sin().sum().backward()
            results.append((y, x.grad))
        for a, b in zip(*results, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"r_max": 0.5}, "r_max must be 1 or more, got 0.5"),
        ({"d_max": -1.0}, "d_max must not be negative, got -1.0"),
        ({"warmup": 10, "r_steps": 5}, "0 <= warmup <= both, got warmup=10, r_steps=5, d_steps=25000"),
        ({"track_running_stats": False}, "towards running statistics, got track_running_stats=False"),
    ],
)
def test_misuse(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        nk.BatchRenorm1d(3, **options)
