"""A set of running statistics for each domain."""

from __future__ import annotations

import copy
import pickle
import re

import pytest
import torch
from kinds import KINDS, U32, assert_same, batch, every_kind, network, state_of
from torch import nn

import normkit as nk


class TestDomains:
    @every_kind
    def test_each_has_statistics_of_its_own(self, kind: str) -> None:
        layer, alone = KINDS[kind](3), {name: KINDS[kind](3) for name in ("photo", "sketch", None)}
        for step in range(4):
            for i, name in enumerate(("photo", "sketch")):
                with nk.domain(name):
                    got = layer(batch(step + i))
                assert torch.equal(got, alone[name](batch(step + i)))
            assert torch.equal(layer(batch(9)), alone[None](batch(9)))
        assert layer.domains == ("photo", "sketch")
        layer.eval()
        for name in ("photo", "sketch"):
            with nk.domain(name):
                got = layer(batch(1))
            assert torch.equal(got, alone[name].eval()(batch(1)))
        assert torch.equal(layer(batch(1)), alone[None].eval()(batch(1)))

    @pytest.mark.parametrize("way", ["state_dict", "pickle", "deepcopy"])
    def test_are_part_of_the_state(self, way: str) -> None:
        model, other = network("batch"), network("batch")
        with nk.domain("photo"):
            model(batch(0))
        assert "1.running_mean@photo" in model.state_dict()
        if way == "state_dict":
            other.load_state_dict(model.state_dict())
        else:
            other = pickle.loads(pickle.dumps(model)) if way == "pickle" else copy.deepcopy(model)
        assert_same(other, state_of(model))
        for module in (model, other):
            with nk.domain("photo"):
                module(batch(1))
        assert_same(other, state_of(model))
        with nk.domain("photo"):
            assert torch.equal(other.eval()(batch(2)), model.eval()(batch(2)))

    def test_without_one_the_state_is_torchs(self) -> None:
        layer = nk.BatchNorm1d(3)
        layer(batch(0))
        assert list(layer.state_dict()) == list(nn.BatchNorm1d(3).state_dict())

    @pytest.mark.parametrize("frozen", [False, True])
    def test_unknown_in_evaluation(self, frozen: bool) -> None:
        layer = nk.BatchNorm1d(3)
        for name in ("photo", "sketch"):
            with nk.domain(name):
                layer(batch(0))
        layer = layer.freeze() if frozen else layer.eval()
        message = "no running statistics of domain 'scetch': this layer has those of 'photo', 'sketch'; train"
        with pytest.raises(ValueError, match=message), nk.domain("scetch"):
            layer(batch(0))
        assert layer.domains == ("photo", "sketch")
        with pytest.raises(ValueError, match="those of no domain"), nk.domain("photo"):
            nk.BatchNorm1d(3).eval()(batch(0))

    def test_a_forward_that_raises_makes_none(self) -> None:
        layer = nk.BatchNorm1d(3)
        with pytest.raises(ValueError, match="more than 1 value"), nk.domain("photo"):
            layer(torch.ones(1, 3))
        assert layer.domains == ()

    def test_nest_and_end(self) -> None:
        layer = nk.BatchNorm1d(3)
        with nk.domain("outer"):
            with nk.domain("inner"):
                layer(batch(0))
            with pytest.raises(KeyError), nk.domain("lost"):
                raise KeyError
            layer(batch(1))
        layer(batch(2))
        assert layer.domains == ("inner", "outer")
        assert layer.num_batches_tracked == 1

    def test_accumulate_domain_by_domain(self) -> None:
        layer, photo, plain = (nk.BatchNorm1d(3) for _ in range(3))
        with nk.accumulate(layer):
            for step in range(4):
                if step % 2:
                    with nk.domain("photo"):
                        layer(batch(step))
                else:
                    layer(batch(step))
        photo(torch.cat([batch(1), batch(3)])), plain(torch.cat([batch(0), batch(2)]))
        torch.testing.assert_close(
            getattr(layer, "running_var@photo"), photo.running_var, rtol=2 * U32, atol=0
        )
        torch.testing.assert_close(layer.running_var, plain.running_var, rtol=2 * U32, atol=0)

    def test_in_a_compiled_graph(self) -> None:
        torch._dynamo.reset()
        plain, other = nk.BatchNorm1d(3), nk.BatchNorm1d(3)
        compiled = torch.compile(other, fullgraph=True, backend="aot_eager")
        for run in (plain, compiled):
            for name in ("photo", "sketch", "photo"):
                with nk.domain(name):
                    run(batch(1))
            run(batch(2))
        for key, value in plain.state_dict().items():
            torch.testing.assert_close(other.state_dict()[key], value, rtol=1e-6, atol=1e-6)

    def test_move_with_the_layer_and_reset(self) -> None:
        layer = nk.BatchNorm1d(3, guard="nonfinite")
        with nk.domain("photo"):
            layer(batch(0))
        assert layer.double().state_dict()["running_mean@photo"].dtype == torch.float64
        layer.num_batches_skipped += 1
        layer.reset_running_stats()
        fresh = nk.BatchNorm1d(3)
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            assert torch.equal(getattr(layer, f"{name}@photo").float(), getattr(fresh, name).float())
        assert layer.num_batches_skipped == 0

    @pytest.mark.parametrize("name", ["", "a.b"])
    def test_names(self, name: str) -> None:
        with (
            pytest.raises(ValueError, match=re.escape(f"not empty and has no dot, got {name!r}")),
            nk.domain(name),
        ):
            pass
