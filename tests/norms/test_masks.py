"""Masks in group, instance, layer and RMS norm; those of batch norm and its relatives are tested with them."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import normkit as nk
from normkit import reference

U32 = 2.0**-24
# name: layer, shape of the input, where the features are, specification (x, weight, bias, mask)
NORMS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int, Callable[..., object]]] = {
    "group": (
        lambda: nk.GroupNorm(2, 4),
        (5, 4, 9),
        1,
        lambda x, w, b, mask: reference.group_norm(x, 2, w, b, mask=mask),
    ),
    "instance": (
        lambda: nk.InstanceNorm1d(4, affine=True),
        (5, 4, 9),
        1,
        lambda x, w, b, mask: reference.instance_norm(x, w, b, mask=mask),
    ),
    "layer": (
        lambda: nk.LayerNorm(4),
        (5, 9, 4),
        -1,
        lambda x, w, b, mask: reference.layer_norm(x, 1, w, b, mask=mask),
    ),
    "layer-two-axes": (
        lambda: nk.LayerNorm((9, 4)),
        (5, 9, 4),
        -1,
        lambda x, w, b, mask: reference.layer_norm(x, 2, w, b, mask=mask),
    ),
    "rms": (
        lambda: nk.RMSNorm(4, eps=1e-5),
        (5, 9, 4),
        -1,
        lambda x, w, b, mask: reference.rms_norm(x, 1, w, eps=1e-5, mask=mask),
    ),
    "rms-two-axes": (
        lambda: nk.RMSNorm((9, 4), eps=1e-5),
        (5, 9, 4),
        -1,
        lambda x, w, b, mask: reference.rms_norm(x, 2, w, eps=1e-5, mask=mask),
    ),
}
MASK = torch.arange(9) < torch.tensor([9, 4, 1, 0, 6])[:, None]
every_norm = pytest.mark.parametrize("name", NORMS)


def padded(name: str, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, Tensor, Tensor]:
    """The layer, an input whose padding is NaN, and where that is."""
    make, shape, features, _ = NORMS[name]
    generator = torch.Generator().manual_seed(0)
    layer = make()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.rand(parameter.shape, generator=generator) + 0.5)
    padding = ~MASK.unsqueeze(features).expand(shape)
    x = (torch.randn(shape, generator=generator) * 2 + 5).masked_fill(padding, float("nan"))
    return layer.to(dtype), x.to(dtype), padding


@every_norm
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_matches_the_specification(name: str, dtype: torch.dtype) -> None:
    layer, x, padding = padded(name, dtype)
    dy = torch.randn(x.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    x.requires_grad_()
    y = layer(x, mask=MASK)
    y.backward(dy)
    parameters = [getattr(layer, n, None) for n in ("weight", "bias")]
    arrays = [None if p is None else p.detach().double().numpy() for p in parameters]
    expected, cache = NORMS[name][3](x.detach().double().numpy(), *arrays, mask=MASK.numpy())
    gradients = reference.backward(dy.double().numpy(), cache)
    assert not y[padding].any()
    assert not x.grad[padding].any()
    unit = {torch.float32: U32, torch.float64: 2.0**-53, torch.bfloat16: 2.0**-8}[dtype]
    # A few roundings at the magnitude of the terms: 1 / √ε for a gradient through a sample of one value.
    got = [(y, 1), (x.grad, 1e-5**-0.5), *((None if p is None else p.grad, 1) for p in parameters)]
    for (a, scale), b in zip(got, [expected, *gradients], strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            atol = 64 * unit * max(scale, np.abs(b).max())
            np.testing.assert_allclose(a.detach().double().numpy(), b, rtol=0, atol=atol)


@every_norm
def test_equals_the_valid_elements_alone(name: str) -> None:
    """Sample by sample, cut to its length; to the bit where a row is a token."""
    layer, x, _ = padded(name)
    y = layer(x, mask=MASK)
    for n, length in enumerate([9, 4, 1, 0, 6]):
        if length < 2:
            continue
        if name in ("layer", "rms"):
            assert torch.equal(y[n, :length], layer(x[n, :length]))
        elif name.endswith("two-axes"):
            cut = type(layer)((length, 4), eps=layer.eps)
            for parameter_name, parameter in cut.named_parameters():
                parameter.data.copy_(getattr(layer, parameter_name)[:length])
            torch.testing.assert_close(y[n, :length], cut(x[n, :length]), rtol=0, atol=8 * U32 * 5)
        else:
            alone = layer(x[n : n + 1, :, :length])
            torch.testing.assert_close(y[n : n + 1, :, :length], alone, rtol=0, atol=8 * U32 * 5)


@every_norm
def test_a_full_mask_changes_nothing(name: str) -> None:
    layer, _, _ = padded(name)
    x = torch.randn(NORMS[name][1], generator=torch.Generator().manual_seed(1))
    whole = layer(x, mask=torch.ones(5, 9, dtype=torch.bool))
    torch.testing.assert_close(whole, layer(x), rtol=0, atol=8 * U32 * 5)
    assert torch.equal(whole, layer(x, mask=torch.ones(9, dtype=torch.bool)))


@every_norm
def test_nothing_valid_gives_zeros(name: str) -> None:
    layer, x, _ = padded(name)
    x.requires_grad_()
    y = layer(x, mask=torch.zeros(5, 9, dtype=torch.bool))
    y.sum().backward()
    assert not y.any()
    assert not x.grad.any()
    assert all(not p.grad.any() for p in layer.parameters())


@every_norm
@pytest.mark.parametrize(
    ("mask", "error", "message"),
    [
        (torch.ones(5, 4, dtype=torch.bool), ValueError, r"input without channels, \[5, 9\], got \[5, 4\]"),
        (torch.ones(5, 9), TypeError, r"bool tensor.* got torch.float32"),
    ],
)
def test_wrong_masks_are_named(name: str, mask: Tensor, error: type[Exception], message: str) -> None:
    layer, x, _ = padded(name)
    with pytest.raises(error, match=message):
        layer(x, mask=mask)


@every_norm
@pytest.mark.parametrize("dynamic", [None, True])
def test_compiles(name: str, dynamic: bool | None) -> None:
    torch._dynamo.reset()
    layer, x, _ = padded(name)
    compiled = torch.compile(copy.deepcopy(layer), fullgraph=True, backend="aot_eager", dynamic=dynamic)
    torch.testing.assert_close(compiled(x, mask=MASK), layer(x, mask=MASK), rtol=0, atol=8 * U32 * 5)


class TestInstanceNormTracking:
    def layer(self) -> nn.Module:
        return nk.InstanceNorm1d(4, track_running_stats=True, momentum=0.25)

    def test_averages_over_the_samples_that_have_a_variance(self) -> None:
        _, x, _ = padded("instance")
        layer = self.layer()
        layer(x, mask=MASK)
        cut = [x[n, :, :length] for n, length in ((0, 9), (1, 4), (4, 6))]
        mean = torch.stack([c.mean(1) for c in cut]).mean(0)
        var = torch.stack([c.var(1) for c in cut]).mean(0)
        torch.testing.assert_close(layer.running_mean, 0.25 * mean, rtol=4 * U32, atol=0)
        torch.testing.assert_close(layer.running_var, 0.75 + 0.25 * var, rtol=4 * U32, atol=0)

    @pytest.mark.parametrize("valid", [0, 1])
    def test_too_few_values_move_nothing(self, valid: int) -> None:
        layer = self.layer()
        before = copy.deepcopy(layer.state_dict())
        layer(torch.randn(5, 4, 9), mask=torch.arange(9) < valid)
        assert all(torch.equal(before[k], v) for k, v in layer.state_dict().items())

    def test_evaluation_takes_running_statistics(self) -> None:
        _, x, padding = padded("instance")
        layer = self.layer()
        layer(x, mask=MASK)
        layer.eval()
        y = layer(x, mask=MASK)
        expected = layer(x.nan_to_num())
        assert torch.equal(y, expected.masked_fill(padding, 0))

    def test_one_sample_without_a_batch(self) -> None:
        x, mask = torch.randn(4, 9), torch.arange(9) < 6
        layer = nk.InstanceNorm1d(4)
        assert torch.equal(layer(x, mask=mask), layer(x[None], mask=mask)[0])
