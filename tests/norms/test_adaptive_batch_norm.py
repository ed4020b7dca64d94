"""What adaptive batch norm has beyond its contract: its ends, its blend in evaluation, masks."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import normkit as nk
from normkit import reference

U32 = 2.0**-24


def batch(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 2 + 3


def trained(**options: object) -> nk.AdaptiveBatchNorm2d:
    """In evaluation, with running statistics and parameters of its own."""
    layer = nk.AdaptiveBatchNorm2d(4, **options)
    layer(batch(8, 4, 3, 5, seed=0) * 2)
    layer.weight.data.copy_(torch.tensor([0.5, 1.5, -2.0, 1.0]))
    layer.bias.data.copy_(torch.tensor([0.1, -0.2, 0.3, 0.0]))
    return layer.eval()


def test_trains_as_batch_norm() -> None:
    adaptive, plain = nk.AdaptiveBatchNorm2d(4), nk.BatchNorm2d(4)
    for seed in range(3):
        x = batch(8, 4, 3, 5, seed=seed)
        assert torch.equal(adaptive(x), plain(x))
    assert all(torch.equal(plain.state_dict()[k], v) for k, v in adaptive.state_dict().items())
    assert isinstance(adaptive, nn.BatchNorm2d)


class TestEnds:
    def test_without_a_prior_it_is_the_batch(self) -> None:
        layer, x = trained(prior=0.0), batch(6, 4, 3, 5, seed=1)
        y = layer(x)
        torch.testing.assert_close(y, copy.deepcopy(layer).train()(x), rtol=0, atol=16 * U32 * 5)
        per_sample = trained(prior=0.0, per_sample=True)
        instance = nk.functional.instance_norm(x, weight=layer.weight, bias=layer.bias)
        torch.testing.assert_close(per_sample(x), instance, rtol=0, atol=16 * U32 * 5)

    def test_an_infinite_prior_is_no_adaptation(self) -> None:
        layer, x = trained(prior=float("inf")), batch(6, 4, 3, 5, seed=1)
        plain = nk.BatchNorm2d(4).eval()
        plain.load_state_dict(layer.state_dict())
        torch.testing.assert_close(layer(x), plain(x), rtol=0, atol=16 * U32 * 5)

    def test_an_all_false_mask_is_defined(self) -> None:
        for prior in (0.0, 16.0):
            y = trained(prior=prior)(batch(2, 4, 3, 5, seed=1), mask=torch.zeros(3, 5, dtype=torch.bool))
            assert not y.any()


@pytest.mark.parametrize("per_sample", [False, True], ids=["batch", "sample"])
@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
def test_evaluation_matches_the_specification(per_sample: bool, masked: bool) -> None:
    layer = trained(prior=4.0, per_sample=per_sample)
    x, dy = batch(6, 4, 3, 5, seed=1), batch(6, 4, 3, 5, seed=2)
    mask = torch.rand(6, 3, 5, generator=torch.Generator().manual_seed(3)) < 0.7 if masked else None
    if mask is not None:
        mask[4] = False
        x = x.masked_fill(~mask[:, None], float("nan"))
    before = {k: v.clone() for k, v in layer.state_dict().items()}
    x.requires_grad_()
    y = layer(x, mask=mask)
    y.backward(dy)
    given = (layer.running_mean, layer.running_var, torch.tensor(4.0), layer.weight, layer.bias)
    expected, cache = reference.adaptive_batch_norm(
        x.detach().double().numpy(),
        *(t.detach().double().numpy() for t in given),
        mask=None if mask is None else mask.numpy(),
        per_sample=per_sample,
    )
    gradients = reference.backward(dy.double().numpy(), cache)
    # A few roundings of float32 at the magnitude of the terms.
    for a, b in zip((y, x.grad, layer.weight.grad, layer.bias.grad), [expected, *gradients], strict=True):
        np.testing.assert_allclose(a.detach().numpy(), b, rtol=0, atol=64 * U32 * max(10, np.abs(b).max()))
    assert all(torch.equal(before[k], v) for k, v in layer.state_dict().items())


def test_it_corrects_a_shift_that_running_statistics_cannot() -> None:
    """Schneider et al.: a corruption that scales and shifts what a layer sees."""
    clean = batch(64, 4, 3, 5, seed=0)
    corrupted = 0.3 * clean - 4
    errors = []
    for prior in (float("inf"), 16.0, 0.0):
        layer = nk.AdaptiveBatchNorm2d(4, momentum=1.0, prior=prior)
        expected = layer(clean)
        errors.append((layer.eval()(corrupted) - expected).square().mean().item())
    assert errors[0] > 2 * errors[1] > 2 * errors[2]
    assert errors[2] < 1e-6


@pytest.mark.parametrize("prior", [-1.0, float("nan")])
def test_prior_is_no_count(prior: float) -> None:
    with pytest.raises(ValueError, match="prior is a number of samples"):
        nk.AdaptiveBatchNorm2d(4, prior=prior)
