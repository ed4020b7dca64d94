"""Batches whose statistics are not finite leave the running ones as they were."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from kinds import KINDS, batch, state_of
from torch import nn

import normkit as nk


class TestGuard:
    @pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e30])
    @pytest.mark.parametrize("layout", ["compiled", "composed"])
    def test_leaves_everything_and_counts(self, bad: float, layout: str) -> None:
        """1e30 is finite, but its square is not where float32 buffers keep it."""
        layer = nk.BatchNorm1d(3, guard="nonfinite")
        layer(batch(0))
        if layout == "composed":  # what is not contiguous is moved by torch operations
            layer.running_mean = torch.stack([layer.running_mean] * 2, -1)[:, 0]
        before = state_of(layer)
        x = batch(1)
        x[2, 1] = bad
        layer(x)
        for key, value in layer.state_dict().items():
            assert torch.equal(value, before[key]) or key == "num_batches_skipped"
        assert layer.num_batches_skipped == 1
        layer(batch(2))
        assert layer.num_batches_skipped == 1
        assert layer.num_batches_tracked == 2

    def test_good_batches_move_as_without_it(self) -> None:
        guarded, plain = nk.BatchNorm1d(3, guard="nonfinite"), nk.BatchNorm1d(3)
        for step in range(3):
            assert torch.equal(guarded(batch(step)), plain(batch(step)))
        assert all(torch.equal(guarded.state_dict()[k], v) for k, v in plain.state_dict().items())

    def test_only_the_bad_sub_batch_is_left_out(self) -> None:
        layer = nk.GhostBatchNorm1d(3, 5, guard="nonfinite")
        x = batch(1)
        x[7] = float("nan")
        layer(x)
        twin = nk.BatchNorm1d(3)
        twin(x[:5])
        assert torch.equal(layer.running_mean, twin.running_mean)
        assert (layer.num_batches_tracked, layer.num_batches_skipped) == (1, 1)

    def test_state_dicts_of_layers_without_it(self) -> None:
        guarded, plain = nk.BatchNorm1d(3, guard="nonfinite"), nn.BatchNorm1d(3)
        assert "num_batches_skipped" in guarded.state_dict()
        assert "num_batches_skipped" not in nk.BatchNorm1d(3).state_dict()
        plain(batch(0))
        guarded.load_state_dict(plain.state_dict())
        assert torch.equal(guarded.running_mean, plain.running_mean)

    def test_in_a_compiled_graph(self) -> None:
        torch._dynamo.reset()
        layer = nk.BatchNorm1d(3, guard="nonfinite")
        compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
        compiled(batch(0)), compiled(batch(1) / 0)
        assert (layer.num_batches_tracked, layer.num_batches_skipped) == (1, 1)
        assert layer.running_mean.isfinite().all()

    @pytest.mark.parametrize("gathered", [False, True])
    @pytest.mark.parametrize("kind", sorted(KINDS.keys() - {"guarded", "ghost"}))
    def test_in_every_layer(self, kind: str, gathered: bool) -> None:
        """It leaves out what is bad, in a domain too, and counts it once for the layer."""
        guarded, plain = KINDS[kind](3, guard="nonfinite"), KINDS[kind](3)
        x = batch(1)
        x[2, 1, 0] = float("inf")
        with nk.domain("photo"):
            plain(batch(0)), guarded(batch(0))
            with nk.accumulate(guarded) if gathered else nullcontext():
                guarded(x)
        assert guarded.num_batches_skipped.sum() == 1
        for key, value in plain.state_dict().items():
            assert torch.equal(guarded.state_dict()[key], value), key
