"""Affine maps of classes and of samples, for batch, instance, layer and group norm."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import normkit as nk

NORMS = {
    "batch": (lambda: nk.BatchNorm2d(6, affine=False), (4, 6, 5, 3), (6,)),
    "adaptive": (lambda: nk.AdaptiveBatchNorm2d(6, affine=False), (4, 6, 5, 3), (6,)),
    "instance": (lambda: nk.InstanceNorm2d(6), (4, 6, 5, 3), (6,)),
    "instance-tracked": (lambda: nk.InstanceNorm2d(6, track_running_stats=True), (4, 6, 5, 3), (6,)),
    "group": (lambda: nk.GroupNorm(3, 6, affine=False), (4, 6, 5, 3), (6,)),
    "layer": (lambda: nk.LayerNorm(6, elementwise_affine=False), (4, 5, 6), (6,)),
    "layer-two-axes": (lambda: nk.LayerNorm((5, 6), elementwise_affine=False), (4, 5, 6), (5, 6)),
}
every_norm = pytest.mark.parametrize("name", NORMS)


def made(name: str) -> tuple[nn.Module, Tensor, Tensor, Tensor]:
    """The norm, its input, and a weight and a bias for each sample."""
    make, shape, row = NORMS[name]
    generator = torch.Generator().manual_seed(0)
    x, weight, bias = (
        torch.randn(size, generator=generator, dtype=torch.float64).requires_grad_()
        for size in (shape, (4, *row), (4, *row))
    )
    return make().double(), x, weight, bias


def spread(parameter: Tensor, x: Tensor, name: str) -> Tensor:
    """Of each sample at each of its elements."""
    if name.startswith("layer"):
        return parameter.reshape(4, *[1] * (x.dim() - parameter.dim()), *parameter.shape[1:])
    return parameter.reshape(4, 6, 1, 1)


@every_norm
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_one_map_for_each_sample(name: str, training: bool) -> None:
    """As the plain norm with torch's own multiplication and addition after it, backward too."""
    norm, x, weight, bias = made(name)
    plain = made(name)[0]
    for layer in (norm, plain):
        layer(x.detach() * 2 + 1)
        layer.train(training)
    y = norm(x, weight=weight, bias=bias)
    expected = plain(x) * spread(weight, x, name) + spread(bias, x, name)
    # A few roundings of float64 at values of order ten.
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-13)
    dy = torch.randn(y.shape, dtype=y.dtype, generator=torch.Generator().manual_seed(1))
    for got, wanted in zip(
        torch.autograd.grad(y, (x, weight, bias), dy),
        torch.autograd.grad(expected, (x, weight, bias), dy),
        strict=True,
    ):
        torch.testing.assert_close(got, wanted, rtol=0, atol=1e-12)
    for key, value in plain.state_dict().items():
        torch.testing.assert_close(norm.state_dict()[key], value, rtol=1e-14, atol=0)


@every_norm
def test_half_input_is_rounded_once(name: str) -> None:
    norm, x, weight, bias = (v.float() for v in made(name))
    x = x.bfloat16()
    y = norm(x, weight=weight, bias=bias)
    expected = norm(x.float(), weight=weight, bias=bias)
    assert y.dtype == torch.bfloat16
    # The unit roundoff of bfloat16, once; the rest is that of float32.
    assert ((y - expected).abs() <= 2.0**-8 * expected.abs() + 1e-6).all()


@every_norm
def test_classes(name: str) -> None:
    norm, x, _, _ = made(name)
    layer = nk.Conditional(norm, 3).double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)))
    labels = torch.tensor([2, 0, 2, 2])
    y = layer(x, labels)
    expected = made(name)[0](x, weight=layer.weight[labels], bias=layer.bias[labels])
    assert torch.equal(y, expected)
    y.square().sum().backward()
    assert not layer.weight.grad[1].any()
    assert layer.weight.grad[[0, 2]].all()


def test_it_starts_as_the_norm() -> None:
    x = torch.randn(4, 6, 5, 3)
    layer, plain = nk.Conditional(nk.GroupNorm(3, 6, affine=False), 10), nk.GroupNorm(3, 6, affine=False)
    torch.testing.assert_close(layer(x, torch.tensor([1, 2, 3, 4])), plain(x), rtol=0, atol=1e-6)


def test_residual_and_mask_reach_the_norm() -> None:
    x, residual = torch.randn(4, 6, 5), torch.randn(4, 6, 5)
    mask = torch.arange(5) < torch.tensor([5, 2, 3, 1])[:, None]
    layer = nk.Conditional(nk.BatchNorm1d(6, affine=False, activation="relu"), 3)
    plain = nk.BatchNorm1d(6, activation="relu")
    got = layer(x, torch.tensor([0, 1, 2, 0]), residual=residual, mask=mask)
    torch.testing.assert_close(got, plain(x, residual=residual, mask=mask), rtol=0, atol=2e-6)


@pytest.mark.parametrize(
    ("norm", "error", "message"),
    [
        (nk.BatchNorm2d(6), ValueError, r"got a BatchNorm2d with its own: make it with affine=False"),
        (nn.BatchNorm2d(6, affine=False), TypeError, "GroupNorm or LayerNorm of normkit, got a BatchNorm2d"),
    ],
)
def test_wrong_norms_are_named(norm: nn.Module, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        nk.Conditional(norm, 10)


@pytest.mark.parametrize("condition", [torch.zeros(3, dtype=torch.long), torch.zeros(4)])
def test_wrong_conditions_are_named(condition: Tensor) -> None:
    layer = nk.Conditional(nk.GroupNorm(3, 6, affine=False), 10)
    with pytest.raises(ValueError, match=r"class of each sample, int64 of shape \[4\], got torch"):
        layer(torch.randn(4, 6, 5), condition)


@every_norm
def test_wrong_maps_are_named(name: str) -> None:
    norm, x, weight, bias = made(name)
    before = {k: v.clone() for k, v in norm.state_dict().items()}
    with pytest.raises(RuntimeError, match=r"weight must have shape \[.*\] for one per sample"):
        norm(x, weight=weight[:3], bias=bias)
    with pytest.raises(RuntimeError, match=r"bias is torch\.float32"):
        norm(x, weight=weight, bias=bias.float())
    assert all(torch.equal(before[k], v) for k, v in norm.state_dict().items())
