"""What batch norm has beyond its contract: masks, residuals, momentum, frozen layers, the articles."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import normkit as nk
from normkit import reference

U32 = 2.0**-24


class Named(Tensor):
    """A tensor of its own kind."""


def state_of(layer: nn.Module) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in layer.state_dict().items()}


def padded(*, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A batch of sequences (N, C, L) whose padding is NaN, and its mask (N, L)."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(5, 3, 9, generator=generator) * 2 + 5
    mask = torch.arange(9) < torch.tensor([9, 4, 1, 0, 6])[:, None]
    return x.masked_fill(~mask[:, None], float("nan")), mask


class TestMask:
    def test_forward_and_backward_match_the_specification(self) -> None:
        x, mask = padded()
        x.requires_grad_()
        layer = nk.BatchNorm1d(3)
        layer.weight.data.copy_(torch.tensor([0.5, 1.5, -2.0]))
        layer.bias.data.copy_(torch.tensor([0.1, -0.2, 0.3]))
        dy = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
        y = layer(x, mask=mask)
        y.backward(dy)

        valid = mask.numpy()
        weight, bias = layer.weight.detach().numpy(), layer.bias.detach().numpy()
        expected, cache = reference.batch_norm(
            np.where(valid[:, None], x.detach(), 0), weight, bias, mask=valid
        )
        dx, dweight, dbias = reference.backward(dy.numpy(), cache)
        # A few roundings of float32 at the magnitude of the terms, which are below 10.
        for got, wanted in (
            (y, expected),
            (x.grad, dx),
            (layer.weight.grad, dweight),
            (layer.bias.grad, dbias),
        ):
            np.testing.assert_allclose(got.detach().numpy(), wanted, rtol=0, atol=40 * U32 * 10)

    def test_equals_the_valid_elements_alone(self) -> None:
        x, mask = padded()
        masked, packed = nk.BatchNorm1d(3), nk.BatchNorm1d(3)
        y = masked(x, mask=mask).movedim(1, -1)[mask]
        alone = packed(x.movedim(1, -1)[mask])
        torch.testing.assert_close(y, alone, rtol=0, atol=8 * U32)
        for key, value in packed.state_dict().items():
            torch.testing.assert_close(masked.state_dict()[key], value, rtol=2 * U32, atol=0)

    def test_padding_comes_out_as_zero_and_passes_no_gradient(self) -> None:
        x, mask = padded()
        residual = x.clone().requires_grad_()
        x.requires_grad_()
        for training in (True, False):
            layer = nk.BatchNorm1d(3, activation="gelu").train(training)
            y = layer(x, residual=residual, mask=mask)
            assert torch.equal(y.movedim(1, -1)[~mask], torch.zeros(int((~mask).sum()), 3))
            for gradient in torch.autograd.grad(y.square().sum(), (x, residual)):
                assert torch.equal(gradient.movedim(1, -1)[~mask], torch.zeros(int((~mask).sum()), 3))
                assert gradient.isfinite().all()

    def test_full_mask_changes_nothing(self) -> None:
        """But the order of sums in float64, whose last bits may round an output to the number beside it."""
        x = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(0))
        plain, masked = nk.BatchNorm2d(3), nk.BatchNorm2d(3)
        y = masked(x, mask=torch.ones(4, 5, 5, dtype=torch.bool))
        torch.testing.assert_close(y, plain(x), rtol=2 * U32, atol=0)
        for key, value in plain.state_dict().items():
            torch.testing.assert_close(masked.state_dict()[key], value, rtol=2 * U32, atol=0)

    @pytest.mark.parametrize("valid", [0, 1])
    def test_too_few_values_move_no_statistic(self, valid: int) -> None:
        """One value has a mean but no variance; none has neither. Both are known only to the data."""
        layer = nk.BatchNorm1d(3)
        before = state_of(layer)
        mask = torch.arange(4) < valid
        y = layer(torch.randn(4, 3), mask=mask)
        assert torch.equal(y, torch.zeros(4, 3))
        assert all(torch.equal(before[k], v) for k, v in layer.state_dict().items())

    def test_broadcasts(self) -> None:
        x = torch.randn(4, 3, 5, 6)
        row = torch.arange(6) < 4
        whole = row.expand(4, 5, 6)
        assert torch.equal(nk.BatchNorm2d(3)(x, mask=row), nk.BatchNorm2d(3)(x, mask=whole))

    @pytest.mark.parametrize(
        ("mask", "error", "message"),
        [
            (
                torch.ones(4, 3, dtype=torch.bool),
                ValueError,
                r"input without channels, \[4, 5\], got \[4, 3\]",
            ),
            (torch.ones(4, 3, 5, dtype=torch.bool), ValueError, r"got \[4, 3, 5\]"),
            (torch.ones(4, 5), TypeError, r"bool tensor.* got torch.float32"),
        ],
    )
    def test_wrong_mask(self, mask: Tensor, error: type[Exception], message: str) -> None:
        layer = nk.BatchNorm1d(3)
        before = state_of(layer)
        with pytest.raises(error, match=message):
            layer(torch.randn(4, 3, 5), mask=mask)
        assert all(torch.equal(before[k], v) for k, v in layer.state_dict().items())

    @pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
    def test_compiles(self, dynamic: bool) -> None:
        x, mask = padded()
        plain, other = nk.BatchNorm1d(3), nk.BatchNorm1d(3)
        compiled = torch.compile(other, fullgraph=True, backend="aot_eager", dynamic=dynamic)
        torch.testing.assert_close(compiled(x, mask=mask), plain(x, mask=mask), rtol=0, atol=0)


class TestResidual:
    @pytest.mark.parametrize("training", [True, False])
    def test_is_added_before_the_activation(self, training: bool) -> None:
        x, residual = torch.randn(4, 3, 5, 5), torch.randn(4, 3, 5, 5, requires_grad=True)
        fused, plain = nk.BatchNorm2d(3, activation="relu"), nk.BatchNorm2d(3)
        fused.train(training), plain.train(training)
        y, expected = fused(x, residual=residual), torch.relu(plain(x) + residual)
        assert torch.equal(y, expected)
        dy = torch.randn_like(y)
        assert torch.equal(*(torch.autograd.grad(v, residual, dy)[0] for v in (y, expected)))

    def test_wrong_shape(self) -> None:
        with pytest.raises(ValueError, match=r"residual must have the input's shape, \[4, 3\], got \[3\]"):
            nk.BatchNorm1d(3)(torch.randn(4, 3), residual=torch.randn(3))


class TestStatistics:
    def test_half_frozen_layer(self) -> None:
        """Tracking switched off after training: buffers stay, normalize in evaluation, and move no more."""
        ours, twin = nk.BatchNorm1d(3), nn.BatchNorm1d(3)
        x = torch.randn(8, 3)
        for layer in (ours, twin):
            layer(x)
            layer.track_running_stats = False
        before = state_of(ours)
        torch.testing.assert_close(ours(x + 1), twin(x + 1), rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(ours.eval()(x + 1), twin.eval()(x + 1), rtol=1e-6, atol=1e-6)
        assert all(torch.equal(before[k], v) for k, v in ours.state_dict().items())

    @pytest.mark.parametrize(
        "kept",
        [
            lambda value: torch.full((3, 2), value)[:, 0],
            lambda value: nn.Parameter(torch.full((3,), value), requires_grad=False),
            lambda value: torch.full((3,), value).as_subclass(Named),
        ],
        ids=["strided", "parameter", "subclass"],
    )
    def test_running_statistics_of_any_kind_move(self, kept: Callable[[float], Tensor]) -> None:
        x, mean, var = torch.randn(8, 3), torch.zeros(3), torch.ones(3)
        others = kept(0.0), kept(1.0)
        y = nk.functional.batch_norm(x, mean, var, training=True)
        assert torch.equal(nk.functional.batch_norm(x, *others, training=True), y)
        torch.testing.assert_close(others[0].as_subclass(Tensor), mean, rtol=U32, atol=0)
        torch.testing.assert_close(others[1].as_subclass(Tensor), var, rtol=U32, atol=0)

    def test_functional_cumulative_average_counts(self) -> None:
        mean, var, count = torch.zeros(3), torch.ones(3), torch.tensor(0)
        batches = [torch.randn(8, 3) for _ in range(4)]
        for batch in batches:
            nk.functional.batch_norm(
                batch, mean, var, training=True, momentum=None, num_batches_tracked=count
            )
        assert count == 4
        torch.testing.assert_close(mean, torch.stack([b.mean(0) for b in batches]).mean(0))
        torch.testing.assert_close(var, torch.stack([b.var(0) for b in batches]).mean(0))

    def test_functional_cumulative_average_needs_the_count(self) -> None:
        with pytest.raises(ValueError, match=r"momentum=None .* needs num_batches_tracked"):
            nk.functional.batch_norm(
                torch.randn(4, 3), torch.zeros(3), torch.ones(3), training=True, momentum=None
            )

    def test_large_mean_is_exact(self) -> None:
        """Where torch in channels_last is wrong by 5 deviations: mean 1e6, deviation 1."""
        x = torch.randn(32, 8, 28, 28, generator=torch.Generator().manual_seed(0)) + 1e6
        expected, cache = reference.batch_norm(x.double().numpy())
        for memory_format in (torch.contiguous_format, torch.channels_last):
            layer = nk.BatchNorm2d(8, affine=False, momentum=1.0)
            y = layer(x.contiguous(memory_format=memory_format))
            assert np.abs(y.numpy() - expected).max() <= 4 * U32 * np.abs(expected).max()
            np.testing.assert_allclose(layer.running_mean, cache.mean, rtol=U32)
            np.testing.assert_allclose(layer.running_var, cache.unbiased_var, rtol=4 * U32)


class TestArticles:
    """The worked example of article 004 and claim A4, through the layer."""

    x = torch.tensor([[0.23, 1.26, -2.41], [0.56, 0.75, 1.00]], dtype=torch.float64)

    def test_worked_example(self) -> None:
        """The layer normalizes by the biased variance and stores the unbiased one."""
        layer = nk.BatchNorm1d(3, affine=False, momentum=1.0, dtype=torch.float64)
        first = layer(self.x)[0]
        np.testing.assert_allclose(first, [-1, 1, -1], atol=2e-4)
        np.testing.assert_allclose(layer.running_mean, [0.395, 1.005, -0.705], rtol=1e-12)
        np.testing.assert_allclose(layer.running_var, [0.054, 0.130, 5.81], rtol=1e-2)
        unbiased = (self.x[0] - layer.running_mean) / (layer.running_var + layer.eps).sqrt()
        np.testing.assert_allclose(unbiased, [-0.71, 0.71, -0.71], atol=5e-3)

    def test_affine_parameters_can_restore_the_identity(self) -> None:
        layer = nk.BatchNorm1d(3, dtype=torch.float64)
        layer.weight.data.copy_((self.x.var(0, unbiased=False) + layer.eps).sqrt())
        layer.bias.data.copy_(self.x.mean(0))
        np.testing.assert_allclose(layer(self.x).detach(), self.x, rtol=1e-14)
