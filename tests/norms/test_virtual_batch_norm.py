"""What virtual batch norm has beyond its contract: how its reference is set, kept and missed."""

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


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3), nk.VirtualBatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 3, 3), nk.VirtualBatchNorm2d(3)
    )


def test_each_sample_is_one_more_of_the_reference_batch() -> None:
    """Against batch norm of the reference batch with the sample appended."""
    layer, chosen, x = nk.VirtualBatchNorm2d(4), batch(6, 4, 3, 5, seed=0), batch(3, 4, 3, 5, seed=1)
    layer.set_reference(chosen)
    y = layer(x)
    for sample, got in zip(x, y, strict=True):
        together = nk.BatchNorm2d(4)(torch.cat([chosen, sample[None]]))
        torch.testing.assert_close(got, together[-1], rtol=0, atol=16 * U32 * 5)


def test_no_sample_sees_another() -> None:
    layer, x = nk.VirtualBatchNorm1d(4), batch(8, 4, 5, seed=1)
    layer.set_reference(batch(16, 4, 5, seed=0))
    y = layer(x)
    assert torch.equal(y[2:3], layer(x[2:3]))
    (dx,) = torch.autograd.grad(layer(x.requires_grad_())[0].square().sum(), x)
    assert not dx[1:].any()
    assert dx[0].any()


class TestContext:
    def test_sets_every_reference_in_one_run(self) -> None:
        """Layer by layer: each one's input in a network whose earlier layers are plain batch norm."""
        model, chosen = network(), batch(5, 2, 9, 9, seed=0)
        plain = nn.Sequential(
            *(nk.BatchNorm2d(m.num_features) if i in (1, 4) else m for i, m in enumerate(model))
        )
        with nk.reference_batch(model):
            y = model(chosen)
        torch.testing.assert_close(y, plain(chosen), rtol=0, atol=32 * U32 * 5)
        for i in (1, 4):
            x = plain[:i](chosen)
            torch.testing.assert_close(model[i].reference_mean, x.mean((0, 2, 3)), rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(
                model[i].reference_var, x.var((0, 2, 3), unbiased=False), rtol=1e-5, atol=0
            )
            assert model[i].reference_size == 5

    def test_an_error_gives_the_references_back(self) -> None:
        model = network()
        with nk.reference_batch(model):
            model(batch(5, 2, 9, 9, seed=0))
        before, x = copy.deepcopy(model.state_dict()), batch(2, 2, 9, 9, seed=1)
        expected = model(x)
        model.append(nn.Linear(7, 7))  # after all layers have taken the new reference
        with pytest.raises(RuntimeError, match="shapes cannot be multiplied"), nk.reference_batch(model):
            model(batch(5, 2, 9, 9, seed=2))
        model.pop(5)
        assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
        assert torch.equal(model(x), expected)

    def test_an_error_leaves_an_unset_layer_unset(self) -> None:
        model = network()
        with pytest.raises(RuntimeError, match="Given groups"), nk.reference_batch(model):
            model(batch(5, 7, 9, 9, seed=0))
        with pytest.raises(RuntimeError, match="none was set"):
            model(batch(5, 2, 9, 9, seed=0))

    def test_needs_a_layer(self) -> None:
        with pytest.raises(ValueError, match="got Linear without"), nk.reference_batch(nn.Linear(2, 2)):
            pass


class TestUnset:
    def test_is_named(self) -> None:
        message = (
            r"VirtualBatchNorm1d .* none was set: call set_reference\(x\), .*nk.reference_batch\(model\)"
        )
        with pytest.raises(RuntimeError, match=message):
            nk.VirtualBatchNorm1d(4)(torch.randn(3, 4))

    def test_a_state_dict_sets_it(self) -> None:
        one, other = nk.VirtualBatchNorm1d(4), nk.VirtualBatchNorm1d(4)
        other.load_state_dict(one.state_dict())
        with pytest.raises(RuntimeError, match="none was set"):
            other(torch.randn(3, 4))
        one.set_reference(batch(6, 4, seed=0))
        other.load_state_dict(one.state_dict())
        x = torch.randn(3, 4)
        assert torch.equal(other(x), one(x))
        other.reset_parameters()
        with pytest.raises(RuntimeError, match="none was set"):
            other(x)

    @pytest.mark.parametrize("shape", [(0, 4), (1, 4), (3, 5), (3,)])
    def test_a_batch_without_statistics_sets_nothing(self, shape: tuple[int, ...]) -> None:
        layer = nk.VirtualBatchNorm1d(4)
        before = copy.deepcopy(layer.state_dict())
        with pytest.raises((ValueError, RuntimeError)):
            layer.set_reference(torch.randn(shape))
        assert all(torch.equal(before[k], v) for k, v in layer.state_dict().items())
        assert not layer.has_reference


@pytest.mark.parametrize("flat", [True, False], ids=["vectors", "sequences"])
def test_masks_match_the_specification(flat: bool) -> None:
    """Of the reference batch as of the input; a sample of padding alone is no sample."""
    shape = (5, 3) if flat else (5, 3, 9)
    mask = torch.tensor([1, 1, 0, 1, 0]).bool()
    mask = mask if flat else (torch.arange(9) < torch.tensor([9, 4, 0, 1, 6])[:, None])
    valid = mask.unsqueeze(1)
    chosen = batch(*shape, seed=0).masked_fill(~valid, float("nan"))
    x = batch(*shape, seed=1).masked_fill(~valid, float("nan")).requires_grad_()
    layer = nk.VirtualBatchNorm1d(3, dtype=torch.float64)
    layer.set_reference(chosen.double(), mask=mask)
    samples = 3 if flat else 4
    assert layer.reference_size == samples
    layer.float()
    y = layer(x, mask=mask)
    dy = batch(*shape, seed=2)
    y.backward(dy)
    _, cache = reference.batch_norm(chosen.double().numpy(), mask=mask.numpy())
    expected, cache = reference.virtual_batch_norm(
        x.detach().double().numpy(),
        cache.mean,
        cache.var,
        samples,
        np.ones(3),
        np.zeros(3),
        mask=mask.numpy(),
    )
    gradients = reference.backward(dy.double().numpy(), cache)
    # A few roundings of float32 at the magnitude of the terms.
    for a, b in zip((y, x.grad, layer.weight.grad, layer.bias.grad), [expected, *gradients], strict=True):
        np.testing.assert_allclose(a.detach().numpy(), b, rtol=0, atol=64 * U32 * max(10, np.abs(b).max()))
