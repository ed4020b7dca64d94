"""What batch-instance norm has beyond its contract: its ends, the clipped gate, masks."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import normkit as nk
from normkit import reference

U32 = 2.0**-24


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_its_ends_are_batch_norm_and_instance_norm(training: bool) -> None:
    x = torch.randn(4, 6, 5, 3) * 2 + 5
    batch, instance = nk.BatchNorm2d(6), nk.InstanceNorm2d(6)
    batch(x + 1)
    for rho, norm in ((1.0, batch), (0.0, instance)):
        layer = nk.BatchInstanceNorm2d(6)
        layer(x + 1)
        layer.rho.data.fill_(rho)
        norm.train(training)
        torch.testing.assert_close(layer.train(training)(x), norm(x), rtol=0, atol=8 * U32 * 5)


def test_it_starts_as_batch_norm() -> None:
    assert torch.equal(nk.BatchInstanceNorm2d(6).rho, torch.ones(6))


class TestGate:
    def test_is_clipped_where_it_is_used(self) -> None:
        x = torch.randn(4, 6, 5)
        layer = nk.BatchInstanceNorm1d(6)
        inside = layer(x)
        layer.rho.data.fill_(1.5)
        assert torch.equal(layer(x), inside)

    @pytest.mark.parametrize(
        ("rho", "gradient", "passed"),
        [(1.5, -1, 0), (1.5, 1, 1), (1.0, -1, 0), (0.5, -1, -1), (0.5, 1, 1), (0.0, 1, 0), (-0.5, -1, -1)],
    )
    def test_a_gradient_outwards_is_zero(self, rho: float, gradient: float, passed: float) -> None:
        gate = torch.tensor([rho], requires_grad=True)
        torch.ops.normkit.clip(gate).backward(torch.tensor([float(gradient)]))
        assert gate.grad == passed

    def test_descent_is_that_of_the_paper(self) -> None:
        """Against clipping after each step: the same gates, wherever these ended on a bound or inside."""
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(8, 6, 20, generator=generator) * 2 + torch.randn(8, 6, 1, generator=generator)
        target = torch.lerp(
            nk.InstanceNorm1d(6)(x),
            nk.BatchNorm1d(6, affine=False)(x),
            torch.linspace(-0.5, 1.5, 6).view(6, 1),
        )
        ends = []
        for clip_after in (False, True):
            layer = nk.BatchInstanceNorm1d(6, affine=False)
            optimizer = torch.optim.SGD(layer.parameters(), lr=0.3)
            for _ in range(200):
                optimizer.zero_grad()
                (layer(x) - target).square().mean((0, 2)).sum().backward()
                optimizer.step()
                if clip_after:
                    layer.rho.data.clamp_(0, 1)
            ends.append(layer.rho.detach().clamp(0, 1))
        torch.testing.assert_close(ends[0], ends[1], rtol=0, atol=1e-3)
        torch.testing.assert_close(ends[0], torch.linspace(-0.5, 1.5, 6).clamp(0, 1), rtol=0, atol=1e-3)

    def test_operator_passes_opcheck(self) -> None:
        gate = torch.tensor([0.2, 0.7], requires_grad=True)
        torch.library.opcheck(torch.ops.normkit.clip.default, (gate,))


def test_mask_matches_the_specification() -> None:
    mask = torch.arange(9) < torch.tensor([9, 4, 2, 0, 6])[:, None]
    x = torch.randn(5, 3, 9, generator=torch.Generator().manual_seed(0)) * 2 + 5
    x = x.masked_fill(~mask[:, None], float("nan")).requires_grad_()
    layer = nk.BatchInstanceNorm1d(3)
    layer.rho.data.copy_(torch.tensor([0.2, 0.5, 0.9]))
    y = layer(x, mask=mask)
    dy = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    y.backward(dy)
    parameters = [p.detach().double().numpy() for p in (layer.weight, layer.bias, layer.rho)]
    expected, cache = reference.batch_instance_norm(
        x.detach().double().numpy(), *parameters, mask=mask.numpy()
    )
    gradients = reference.backward(dy.double().numpy(), cache)
    got = [y, x.grad, layer.weight.grad, layer.bias.grad, layer.rho.grad]
    # A few roundings of float32 at the magnitude of the terms.
    for a, b in zip(got, [expected, *gradients], strict=True):
        np.testing.assert_allclose(a.detach().numpy(), b, rtol=0, atol=64 * U32 * max(10, np.abs(b).max()))


def test_one_value_per_sample_and_channel_has_no_instance_part() -> None:
    with pytest.raises(ValueError, match=r"Expected more than 1 spatial element .*\[4, 6, 1\]"):
        nk.BatchInstanceNorm1d(6)(torch.randn(4, 6, 1))
    with pytest.raises(ValueError, match=r"expected 3D input \(got 2D input\)"):
        nk.BatchInstanceNorm1d(6)(torch.randn(4, 6))
