"""What switch norm has beyond its contract: its degenerate cases, masks, running statistics."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor

import normkit as nk
from normkit import reference

U32 = 2.0**-24


def only(k: int) -> Tensor:
    """Logits whose softmax is one for the k-th statistic."""
    return torch.where(torch.arange(3) == k, 0.0, -torch.inf)


@pytest.mark.parametrize("k", range(3))
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_with_one_hot_weights_it_is_that_norm(k: int, training: bool) -> None:
    x = torch.randn(4, 6, 5, 3) * 2 + 5
    layer = nk.SwitchNorm2d(6)
    batch = nk.BatchNorm2d(6)
    for warm_up in (layer, batch):
        warm_up(x + 1)
        warm_up.train(training)
    layer.mean_weight.data.copy_(only(k))
    layer.var_weight.data.copy_(only(k))
    expected = (nk.InstanceNorm2d(6), nk.GroupNorm(1, 6), batch)[k](x)
    torch.testing.assert_close(layer(x), expected, rtol=0, atol=8 * U32 * 5)


def test_running_statistics_are_those_of_batch_norm() -> None:
    layer, batch = nk.SwitchNorm2d(6, momentum=None), nk.BatchNorm2d(6, momentum=None)
    for seed in range(3):
        x = torch.randn(4, 6, 5, 3, generator=torch.Generator().manual_seed(seed)) + seed
        layer(x), batch(x)
    for key in ("running_mean", "running_var", "num_batches_tracked"):
        torch.testing.assert_close(layer.state_dict()[key], batch.state_dict()[key], rtol=4 * U32, atol=1e-7)


def test_the_weights_are_learned() -> None:
    """Batch statistics of a constant shift per sample hurt here: descent gives the weight to the others."""
    torch.manual_seed(0)
    layer = nk.SwitchNorm2d(6, affine=False)
    optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)
    clean = torch.randn(8, 6, 5, 5)
    x = clean + 10 * torch.randn(8, 1, 1, 1)
    for _ in range(100):
        optimizer.zero_grad()
        (layer(x) - nk.GroupNorm(1, 6, affine=False)(clean)).square().mean().backward()
        optimizer.step()
    share = layer.mean_weight.softmax(0)
    assert share[2] < 0.1


class TestMask:
    mask = torch.arange(9) < torch.tensor([9, 4, 1, 0, 6])[:, None]

    def padded(self) -> Tensor:
        x = torch.randn(5, 3, 9, generator=torch.Generator().manual_seed(0)) * 2 + 5
        return x.masked_fill(~self.mask[:, None], float("nan"))

    @pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
    def test_matches_the_specification(self, training: bool) -> None:
        x, layer = self.padded().requires_grad_(), nk.SwitchNorm1d(3)
        layer.mean_weight.data.copy_(torch.tensor([0.5, -0.5, 1.0]))
        layer.var_weight.data.copy_(torch.tensor([-1.0, 0.3, 0.2]))
        layer.train(training)
        running = layer.running_mean.clone().numpy(), layer.running_var.clone().numpy()
        y = layer(x, mask=self.mask)
        dy = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
        y.backward(dy)
        expected, cache = reference.switch_norm(
            x.detach().double().numpy(),
            *(
                p.detach().double().numpy()
                for p in (layer.weight, layer.bias, layer.mean_weight, layer.var_weight)
            ),
            mask=self.mask.numpy(),
            running=None if training else running,
        )
        gradients = reference.backward(dy.double().numpy(), cache)
        names = ("weight", "bias", "mean_weight", "var_weight")
        got = [y, x.grad, *(getattr(layer, name).grad for name in names)]
        # A few roundings of float32 at the magnitude of the terms; one valid value in a sample leaves sqrt(eps).
        for a, b in zip(got, [expected, *gradients], strict=True):
            np.testing.assert_allclose(
                a.detach().numpy(), b, rtol=0, atol=64 * U32 * max(10, np.abs(b).max())
            )

    def test_nothing_valid_changes_nothing(self) -> None:
        layer = nk.SwitchNorm1d(3)
        before = copy.deepcopy(layer.state_dict())
        x = torch.randn(5, 3, 9, requires_grad=True)
        y = layer(x, mask=torch.zeros(5, 9, dtype=torch.bool))
        y.sum().backward()
        assert not y.any()
        assert not x.grad.any()
        assert all(torch.equal(before[k], v) for k, v in layer.state_dict().items())
        assert all(not p.grad.any() for p in layer.parameters())


def test_it_is_not_taken_for_a_batch_norm() -> None:
    """Conversion to torch's synchronized batch norm would silently drop the other statistics."""
    model = torch.nn.Sequential(nk.SwitchNorm2d(6))
    assert type(torch.nn.SyncBatchNorm.convert_sync_batchnorm(model)[0]) is nk.SwitchNorm2d


def test_wrong_weights_are_named() -> None:
    x, weights = torch.randn(4, 6, 5), torch.ones(2)
    with pytest.raises(RuntimeError, match=r"var_weight has shape \[3\], .* got \[2\]"):
        nk.functional.switch_norm(x, None, None, torch.ones(3), weights, training=True)


def test_parameters_can_be_reset() -> None:
    layer = nk.SwitchNorm2d(6)
    layer.mean_weight.data.fill_(7)
    layer.reset_parameters()
    assert torch.equal(layer.mean_weight, torch.ones(3))
