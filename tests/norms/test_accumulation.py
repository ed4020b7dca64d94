"""The micro-batches of a step move running statistics as one batch."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from kinds import KINDS, U32, assert_same, batch, every_kind, network, state_of
from torch import nn
from torch.utils.checkpoint import checkpoint

import normkit as nk


class TestAccumulation:
    @pytest.mark.parametrize("momentum", [0.1, 1.0, None])
    @pytest.mark.parametrize("sizes", [(10,), (4, 6), (5, 1, 3, 1)])
    def test_is_one_batch_to_the_running_statistics(
        self, momentum: float | None, sizes: tuple[int, ...]
    ) -> None:
        """Micro-batches of several sizes; those of one sample have several positions."""
        x = torch.randn(10, 3, 7, generator=torch.Generator().manual_seed(0)) * 2 + 1e3
        x = x[: sum(sizes)]
        whole, parts = nk.BatchNorm1d(3, momentum=momentum), nk.BatchNorm1d(3, momentum=momentum)
        for step in range(2):
            whole(x)
            with nk.accumulate(parts):
                for piece in x.split(sizes):
                    parts(piece)
                assert parts.num_batches_tracked == step
        # Both are exact in float64 and rounded once.
        for key, value in whole.state_dict().items():
            torch.testing.assert_close(parts.state_dict()[key], value, rtol=2 * U32, atol=0)

    @pytest.mark.parametrize("masked", [False, True])
    @pytest.mark.parametrize("kind", sorted(KINDS.keys() - {"ghost"}))
    def test_is_one_batch_in_every_layer(self, kind: str, masked: bool) -> None:
        whole, parts = KINDS[kind](3), KINDS[kind](3)
        x, mask = batch(1), torch.rand(10, 4, generator=torch.Generator().manual_seed(0)) > 0.3
        whole(x, mask=mask if masked else None)
        with nk.accumulate(parts):
            for piece in (slice(0, 3), slice(3, 4), slice(4, 10), slice(10, 10)):
                parts(x[piece], mask=mask[piece] if masked else None)
        for key, value in whole.state_dict().items():
            torch.testing.assert_close(parts.state_dict()[key], value, rtol=2 * U32, atol=2 * U32)

    @every_kind
    @pytest.mark.parametrize("copied", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))])
    def test_copies_made_inside_go_on_as_usual(self, kind: str, copied: Any) -> None:
        """Such as that of an averaged model, made in the middle of a step."""
        layer, expected = KINDS[kind](3), KINDS[kind](3)
        with nk.accumulate(layer):
            layer(batch(0).requires_grad_())
            other = copied(layer)
            other(batch(1))
        expected(batch(1))
        other(batch(2)), expected(batch(2))
        assert_same(other, state_of(expected))

    def test_micro_batches_normalize_by_themselves(self) -> None:
        layer = nk.BatchNorm1d(3)
        with nk.accumulate(layer):
            for step in range(2):
                assert torch.equal(layer(batch(step)), nk.BatchNorm1d(3)(batch(step)))

    def test_with_masks(self) -> None:
        whole, parts = nk.BatchNorm1d(3), nk.BatchNorm1d(3)
        x, mask = torch.randn(6, 3, 5), torch.rand(6, 5) > 0.4
        whole(x, mask=mask)
        with nk.accumulate(parts):
            for i in range(0, 6, 2):
                parts(x[i : i + 2], mask=mask[i : i + 2])
            parts(x[:2], mask=torch.zeros(2, 5, dtype=torch.bool))
        for key, value in whole.state_dict().items():
            torch.testing.assert_close(parts.state_dict()[key], value, rtol=2 * U32, atol=2 * U32)

    @every_kind
    def test_error_changes_nothing(self, kind: str) -> None:
        model = network(kind)
        before = state_of(model)

        def stopped() -> None:
            with nk.accumulate(model):
                model(batch(0))
                with nk.domain("new"):
                    model(batch(1))
                raise RuntimeError("stop")

        with pytest.raises(RuntimeError, match="stop"):
            stopped()
        assert_same(model, before)
        model(batch(1))
        assert model[1].running_mean.any()

    def test_bad_micro_batches_are_left_out_and_counted(self) -> None:
        layer, twin = nk.BatchNorm1d(3, guard="nonfinite"), nk.BatchNorm1d(3)
        with nk.accumulate(layer):
            for x in (batch(0), batch(1) / 0, batch(2)):
                layer(x)
            assert layer.num_batches_skipped == 0
        twin(torch.cat([batch(0), batch(2)]))
        torch.testing.assert_close(layer.running_var, twin.running_var, rtol=2 * U32, atol=0)
        assert (layer.num_batches_tracked, layer.num_batches_skipped) == (1, 1)

    @pytest.mark.parametrize("reentrant", [False, True])
    def test_with_checkpoints(self, reentrant: bool) -> None:
        plain, other = network("renorm"), network("renorm")
        for model, run in ((plain, plain), (other, lambda x: checkpoint(other, x, use_reentrant=reentrant))):
            model.zero_grad()
            with nk.accumulate(model):
                for step in range(3):
                    run(batch(step).requires_grad_()).square().sum().backward()
        assert_same(other, state_of(plain))
        for a, b in zip(plain.parameters(), other.parameters(), strict=True):
            assert torch.equal(a.grad, b.grad)

    def test_ghosts_are_merged_too(self) -> None:
        layer, twin = KINDS["ghost"](3), nk.BatchNorm1d(3)
        with nk.accumulate(layer):
            layer(batch(0)), layer(batch(1))
        twin(torch.cat([batch(0), batch(1)]))
        torch.testing.assert_close(layer.running_var, twin.running_var, rtol=2 * U32, atol=0)
        assert layer.num_batches_tracked == 1

    def test_other_models_and_evaluation_go_on(self) -> None:
        inside, outside = nk.BatchNorm1d(3), nk.BatchNorm1d(3)
        with nk.accumulate(inside):
            outside(batch(0))
            inside.eval()(batch(0))
        assert outside.num_batches_tracked == 1
        assert inside.num_batches_tracked == 0

    def test_in_a_compiled_graph(self) -> None:
        torch._dynamo.reset()
        plain, other = nk.BatchNorm1d(3), nk.BatchNorm1d(3)
        compiled = torch.compile(other, fullgraph=True, backend="aot_eager")
        for layer, run in ((plain, plain), (other, compiled)):
            run(batch(0))
            with nk.accumulate(layer):
                run(batch(1)), run(batch(2))
            run(batch(3))
        for key, value in plain.state_dict().items():
            torch.testing.assert_close(other.state_dict()[key], value, rtol=1e-6, atol=1e-6)

    def test_refuses_layers_of_torch(self) -> None:
        model = nn.Sequential(nk.BatchNorm1d(3), nn.BatchNorm1d(3))
        with (
            pytest.raises(ValueError, match=r"but 1 is torch.*BatchNorm1d, which moves"),
            nk.accumulate(model),
        ):
            pass
        with nk.accumulate(model[0]):
            model[0](batch(0))

    def test_refuses_to_nest(self) -> None:
        model = nn.Sequential(nk.BatchNorm1d(3))
        with nk.accumulate(model):
            with pytest.raises(RuntimeError, match="accumulating already"), nk.accumulate(model):
                pass
            model(batch(0))
        assert model[0].num_batches_tracked == 1
