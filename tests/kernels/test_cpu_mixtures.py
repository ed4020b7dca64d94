"""Switch norm's and batch-instance norm's kernels against the specification, and against torch operations."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from cpu_oracle import ULP, UNIT
from torch import Tensor

import normkit as nk
from normkit import kernels, reference
from normkit.kernels.cpu import mixtures

EPS = 1e-5
SHAPES = [(9, 5, 3, 3), (4, 48, 20, 20), (3, 2, 150, 130), (7, 300, 2)]
LOGITS = [0.5, -0.5, 1.0], [-1.0, 0.3, 0.2]


def tensors(shape: tuple[int, ...], dtype: torch.dtype, channels_last: bool) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    x, dy, residual = (torch.randn(shape, generator=generator).to(dtype) for _ in range(3))
    x = x * 2 + 5
    if channels_last:
        x, dy, residual = (t.movedim(1, -1).contiguous().movedim(-1, 1) for t in (x, dy, residual))
    mask = torch.rand((shape[0], *shape[2:]), generator=generator) > 0.3
    mask[1] = False
    weight, bias = (torch.randn(shape[1], generator=generator).to(dtype) for _ in range(2))
    return [x, dy, residual, mask, weight, bias]


def shares(kind: str, channels: int) -> list[Tensor]:
    if kind == "switched":
        return [torch.tensor(logits) for logits in LOGITS]
    return [torch.linspace(0.05, 0.95, channels)]


def specified(kind: str, *arguments: object, **options: object):
    x, weight, bias, *rest = arguments
    norm = reference.switch_norm if kind == "switched" else reference.batch_instance_norm
    return norm(x, weight, bias, *rest, eps=EPS, **options)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", list(UNIT), ids=str)
@pytest.mark.parametrize("shape", [*SHAPES, (6, 11)], ids=str)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("is_known", [False, True])
@pytest.mark.parametrize("kind", mixtures.MIXTURES)
def test_matches_the_specification(kind, shape, dtype, channels_last, masked, is_known):
    """Roundings of sums, at the magnitude of their terms.

    Moments are float64 whatever x is; where x is that too, their roundings count as often as a mean is greater than
    the deviation: two values that lie close together make that a thousand.
    """
    if kind == "interpolated" and len(shape) == 2:
        return  # one value per sample and channel has no instance statistic: the layer refuses it
    x, dy, _, mask, weight, bias = tensors(shape, dtype, channels_last)
    learned, code = shares(kind, shape[1]), mixtures.MIXTURES[kind]
    mask = mask if masked else None
    known = (torch.full((shape[1],), 4.0), torch.linspace(0.5, 20, shape[1])) if is_known else (None, None)
    y, statistics, batch, count = mixtures.mixture_forward(
        code, x, known, learned, weight, bias, EPS, 0, None, mask
    )
    found = mixtures.mixture_backward(
        code, x, dy, statistics, batch, is_known, learned, weight, bias, EPS, 0, None, mask
    )
    dx, _, dshares, dweight, dbias = found
    wide = [t.double().numpy() for t in (x, weight, bias, *learned)]
    options = {
        "mask": None if mask is None else mask.numpy(),
        "running": tuple(t.double().numpy() for t in known) if is_known else None,
    }
    want, cache = specified(kind, *wide, **options)
    want_dx, want_dweight, want_dbias, *want_dshares = reference.backward(dy.double().numpy(), cache)
    assert count == (x.numel() // shape[1] if mask is None else int(mask.sum()))
    unit, terms = UNIT[dtype], x.numel() // shape[1]
    if dtype == torch.float64:
        unit *= max(1.0, float((statistics[3].abs() / (statistics[4] + EPS).sqrt()).max()))
    for got, exact, sums in [
        (y, want, 1),
        (dx, want_dx, 1),
        (dweight, want_dweight, terms**0.5),
        (dbias, want_dbias, terms**0.5),
        *((d, e, x.numel() ** 0.5) for d, e in zip(dshares, want_dshares, strict=True)),
    ]:
        scale = max(10, float(np.abs(exact).max())) * sums
        rounding = max(ULP[got.dtype], UNIT[got.dtype]) * np.abs(exact)
        error = np.abs(got.double().numpy() - exact)
        assert (error <= 16 * unit * scale + rounding).all(), (error / (unit * scale)).max()


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("layer", [nk.SwitchNorm2d, nk.BatchInstanceNorm2d])
def test_torch_operations_agree(layer, training, channels_last, monkeypatch):
    """Activation, residual, mask and all gradients, in float64: what is asked of torch comes the other way."""
    x, dy, residual, mask, weight, bias = tensors((4, 6, 5, 7), torch.float64, channels_last)
    results = []
    for backend in ("compiled", "composed"):
        monkeypatch.setattr(kernels, "_ASKED", backend)
        norm = layer(6, activation="silu", dtype=torch.float64).train(training)
        with torch.no_grad():
            for parameter, value in zip(norm.parameters(), (weight, bias), strict=False):
                parameter.copy_(value)
            for name in norm._shares():
                norm.get_parameter(name).uniform_(0.1, 0.9, generator=torch.Generator().manual_seed(1))
        leaves = [t.clone().requires_grad_() for t in (x, residual)]
        y = norm(leaves[0], residual=leaves[1], mask=mask)
        gradients = torch.autograd.grad(y, [*leaves, *norm.parameters()], dy)
        results.append([y, *gradients, *norm.buffers()])
    for native, by_torch in zip(*results, strict=True):
        torch.testing.assert_close(native, by_torch, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("rho", "outwards"), [(1.5, True), (1.0, True), (0.5, False), (0.0, True), (-0.5, True)]
)
def test_gates_are_clipped_and_gradients_lead_inwards(rho, outwards):
    """As the operator of the composed rule, whose gradient is zero where a descent would lead further out."""
    x, dy, *_ = tensors((4, 8, 5, 5), torch.float64, False)
    gate = torch.full((8,), rho, dtype=torch.float64, requires_grad=True)
    norm = partial(nk.functional.batch_instance_norm, x, None, None, training=True)
    (native,) = torch.autograd.grad(norm(gate), gate, dy)
    inside = torch.ops.normkit.clip(gate)
    assert torch.equal(norm(gate), norm(inside))
    by_torch = torch.autograd.grad(norm(gate), gate, dy, create_graph=True)[0]
    torch.testing.assert_close(native, by_torch, rtol=1e-10, atol=1e-12)
    assert bool((native == 0).any()) == outwards


def test_only_what_is_wanted_is_made():
    """A frozen input of frozen everything but one gate costs no pass over its gradient."""
    x, dy, _, _, weight, bias = tensors((4, 8, 5, 5), torch.float32, False)
    learned = shares("switched", 8)
    _, statistics, batch, _ = mixtures.mixture_forward(0, x, (None, None), learned, weight, bias, EPS)
    dx, *rest = mixtures.mixture_backward(
        0, x, dy, statistics, batch, False, learned, weight, bias, EPS, wants_x=False
    )
    whole, *others = mixtures.mixture_backward(0, x, dy, statistics, batch, False, learned, weight, bias, EPS)
    assert dx is None
    assert whole is not None
    torch.testing.assert_close(rest, others, rtol=0, atol=0)
