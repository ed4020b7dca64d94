"""Which statistics normalize, by a layer's switches; frozen layers."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from kinds import KINDS, U32, assert_same, batch, every_kind, state_of

import normkit as nk
from normkit import reference


class TestSwitches:
    def test_evaluation_by_the_batch(self) -> None:
        layer = nk.BatchNorm1d(3, evaluation_statistics="batch")
        layer(batch(0))
        before = state_of(layer)
        assert torch.equal(layer.eval()(batch(1)), nk.BatchNorm1d(3)(batch(1)))
        assert_same(layer, before)

    def test_training_by_running_statistics(self) -> None:
        """They normalize as they were before the batch, which then moves them as in batch norm."""
        layer, twin = nk.BatchNorm1d(3, training_statistics="running"), nk.BatchNorm1d(3)
        for step in range(3):
            expected = copy.deepcopy(twin).eval()(batch(step))
            twin(batch(step))
            torch.testing.assert_close(layer(batch(step)), expected, rtol=4 * U32, atol=4 * U32)
            assert_same(layer, twin.state_dict())

    def test_training_by_running_statistics_takes_one_value(self) -> None:
        """Which moves nothing, for it has no variance."""
        layer = nk.BatchNorm1d(3, training_statistics="running")
        before = state_of(layer)
        torch.testing.assert_close(layer(torch.ones(1, 3)), torch.ones(1, 3), rtol=1e-5, atol=0)
        assert_same(layer, before)

    def test_no_update(self) -> None:
        layer = nk.BatchNorm1d(3, update_statistics=False)
        before = state_of(layer)
        assert torch.equal(layer(batch(1)), nk.BatchNorm1d(3)(batch(1)))
        assert_same(layer, before)

    @pytest.mark.parametrize("masked", [False, True])
    def test_blend_is_the_specification(self, masked: bool) -> None:
        layer = nk.BatchNorm1d(3, evaluation_statistics="blend", prior=5)
        x = torch.randn(6, 3, 4, generator=torch.Generator().manual_seed(0)) * 3 - 1
        for step in range(2):
            layer(x + step)
        mask = torch.arange(4) < torch.tensor([4, 0, 2, 1, 4, 3])[:, None] if masked else None
        x.requires_grad_()
        dy = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
        y = layer.eval()(x, mask=mask)
        y.backward(dy)
        arrays = [t.detach().double().numpy() for t in (x, layer.running_mean, layer.running_var)]
        valid = None if mask is None else mask.numpy()
        weight, bias = (p.detach().numpy() for p in (layer.weight, layer.bias))
        expected, cache = reference.adaptive_batch_norm(*arrays, 5, weight, bias, mask=valid)
        gradients = reference.backward(dy.double().numpy(), cache)
        # A few roundings of float32 at values below 10; running statistics are float32 in both.
        for got, wanted in zip((y, x.grad, layer.weight.grad), (expected, *gradients), strict=False):
            np.testing.assert_allclose(got.detach().numpy(), wanted, rtol=0, atol=40 * U32 * 10)

    def test_blend_with_much_prior_is_evaluation(self) -> None:
        layer, twin = nk.BatchNorm1d(3, evaluation_statistics="blend", prior=1e12), nk.BatchNorm1d(3)
        layer(batch(0)), twin(batch(0))
        torch.testing.assert_close(layer.eval()(batch(1)), twin.eval()(batch(1)), rtol=1e-6, atol=1e-6)

    def test_repr_names_what_is_not_the_default(self) -> None:
        layer = nk.BatchNorm1d(3, evaluation_statistics="blend", prior=4, activation="relu")
        shown = "evaluation_statistics='blend', prior=4, activation='relu')"
        assert repr(layer).endswith(shown)
        assert repr(layer.freeze()).endswith("prior=4, frozen=True, activation='relu')")

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"training_statistics": "runing"}, "unknown training_statistics 'runing': .*mean 'running'"),
            ({"evaluation_statistics": "blnd"}, "unknown evaluation_statistics 'blnd'.*mean 'blend'"),
            ({"guard": "inf"}, "unknown guard 'inf'"),
            ({"prior": 0.0}, "prior counts samples and must be positive, got 0.0"),
            (
                {"training_statistics": "running", "track_running_stats": False},
                "training_statistics='running' needs running statistics, got track_running_stats=False",
            ),
            (
                {"guard": "nonfinite", "track_running_stats": False},
                "guard='nonfinite' needs running statistics",
            ),
        ],
    )
    def test_misuse(self, options: dict[str, object], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            nk.BatchNorm1d(3, **options)


class TestFreezing:
    @every_kind
    def test_uses_and_keeps_running_statistics_in_both_modes(self, kind: str) -> None:
        layer = KINDS[kind](3)
        layer(batch(0))
        keys, expected = list(layer.state_dict()), copy.deepcopy(layer).eval()(batch(1))
        assert layer.freeze() is layer
        before = state_of(layer)
        for module in (layer, layer.train(), layer.eval(), copy.deepcopy(layer).train()):
            torch.testing.assert_close(module(batch(1)), expected, rtol=4 * U32, atol=4 * U32)
        assert_same(layer, before)
        assert list(layer.state_dict()) == keys
        assert "frozen=True" in repr(layer)
        layer.unfreeze().train()(batch(1))
        assert not torch.equal(layer.running_mean, before["running_mean"])
        assert "frozen" not in repr(layer)

    def test_affine_parameters_learn_on(self) -> None:
        layer = nk.BatchNorm1d(3).freeze()
        layer(batch(0)).square().sum().backward()
        assert layer.weight.grad.abs().sum() > 0

    def test_adapts_no_more(self) -> None:
        """Frozen statistics are not blended with those at hand."""
        layer, twin = nk.AdaptiveBatchNorm1d(3, prior=1.0), nk.BatchNorm1d(3)
        layer(batch(0)), twin(batch(0))
        expected = twin.eval()(batch(1))
        assert not torch.equal(layer.eval()(batch(1)), expected)
        assert torch.equal(layer.freeze()(batch(1)), expected)

    def test_several_passes_before_a_backward_pass(self) -> None:
        layer = KINDS["renorm"](3).freeze()
        x = batch(0).requires_grad_()
        (layer(x) + layer(x * 2)).sum().backward()
        assert x.grad is not None

    def test_needs_running_statistics(self) -> None:
        with pytest.raises(ValueError, match=r"freeze needs .* track_running_stats=False"):
            nk.BatchNorm1d(3, track_running_stats=False).freeze()
