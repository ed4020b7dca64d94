"""Where statistics come from, and when running ones move."""

from __future__ import annotations

import copy
import pickle
import re
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import normkit as nk
from normkit import reference
from normkit.norms.tracking import Tracked

U32 = 2.0**-24
KINDS: dict[str, Callable[..., Tracked]] = {
    "batch": nk.BatchNorm1d,
    "ghost": lambda *a, **k: nk.GhostBatchNorm1d(*a, ghost_size=4, **k),
    "renorm": lambda *a, **k: nk.BatchRenorm1d(*a, warmup=0, r_steps=4, d_steps=4, **k),
    "running": lambda *a, **k: nk.BatchNorm1d(*a, training_statistics="running", **k),
    "guarded": lambda *a, **k: nk.BatchNorm1d(*a, guard="nonfinite", **k),
    "cumulative": lambda *a, **k: nk.BatchNorm1d(*a, momentum=None, **k),
}
every_kind = pytest.mark.parametrize("kind", KINDS)


def batch(seed: int, size: int = 10) -> Tensor:
    return torch.randn(size, 3, generator=torch.Generator().manual_seed(seed)) * (seed + 1) + seed


def state_of(module: nn.Module) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in module.state_dict().items()}


def assert_same(module: nn.Module, before: dict[str, Tensor]) -> None:
    after = module.state_dict()
    assert list(after) == list(before)
    for key, value in after.items():
        assert torch.equal(value, before[key]), key


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
        assert layer.num_batches_tracked > before["num_batches_tracked"]
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


def network(kind: str) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 3), KINDS[kind](3), nn.Tanh(), KINDS[kind](3))


def train(model: nn.Module, run: Callable[[Tensor], Tensor]) -> list[Tensor]:
    """Three steps; the gradients of the last one."""
    for step in range(3):
        model.zero_grad()
        x = batch(step).requires_grad_()
        run(x).square().sum().backward()
    return [x.grad, *(p.grad for p in model.parameters())]


class TestCheckpoints:
    @every_kind
    @pytest.mark.parametrize("reentrant", [False, True])
    def test_one_step_updates_once(self, kind: str, reentrant: bool) -> None:
        """To the bit: the recomputation normalizes as the first pass did, whatever that has changed."""
        plain, other = network(kind), network(kind)
        expected = train(plain, plain)
        got = train(other, lambda x: checkpoint(other, x, use_reentrant=reentrant))
        assert_same(other, state_of(plain))
        assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))

    @every_kind
    def test_nested(self, kind: str) -> None:
        plain, other = network(kind), network(kind)

        def inner(x: Tensor) -> Tensor:
            return checkpoint(other[2:], checkpoint(other[:2], x, use_reentrant=False), use_reentrant=False)

        expected = train(plain, plain)
        got = train(other, lambda x: checkpoint(inner, x, use_reentrant=False))
        assert_same(other, state_of(plain))
        assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))

    @pytest.mark.parametrize("reentrant", [False, True])
    @pytest.mark.parametrize("kind", ["batch", "ghost", "renorm"])
    def test_around_a_compiled_layer(self, kind: str, reentrant: bool) -> None:
        """Its graph, traced outside, asks when it runs."""
        torch._dynamo.reset()
        plain, other = KINDS[kind](3), KINDS[kind](3)
        compiled = torch.compile(other, fullgraph=True, backend="aot_eager")
        expected = train(plain, plain)
        got = train(other, lambda x: checkpoint(compiled, x, use_reentrant=reentrant))
        for key, value in other.state_dict().items():
            torch.testing.assert_close(value, plain.state_dict()[key], rtol=1e-6, atol=1e-6)
        for a, b in zip(got, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)

    @pytest.mark.parametrize("kind", ["batch", "renorm", "running"])
    def test_inside_a_compiled_function(self, kind: str) -> None:
        torch._dynamo.reset()
        plain, other = KINDS[kind](3), KINDS[kind](3)
        backend = "inductor" if kind == "renorm" else "aot_eager"
        compiled = torch.compile(
            lambda x: checkpoint(other, x, use_reentrant=False), fullgraph=True, backend=backend
        )
        expected, got = train(plain, plain), train(other, compiled)
        for key, value in other.state_dict().items():
            torch.testing.assert_close(value, plain.state_dict()[key], rtol=1e-6, atol=1e-6)
        for a, b in zip(got, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)

    def test_instance_norm(self) -> None:
        plain, other = (nk.InstanceNorm1d(3, track_running_stats=True) for _ in range(2))
        x = torch.randn(4, 3, 5, requires_grad=True)
        plain(x)
        checkpoint(other, x, use_reentrant=False).sum().backward()
        assert_same(other, state_of(plain))

    def test_a_pass_between_backward_passes_moves(self) -> None:
        """Only what runs inside a backward pass is a recomputation."""
        layer = nk.BatchNorm1d(3)
        x = batch(0).requires_grad_()
        y = layer(x)
        y.sum().backward(retain_graph=True)
        layer(x)
        y.sum().backward()
        assert layer.num_batches_tracked == 2

    def test_double_backward_moves_once(self) -> None:
        layer = nk.BatchNorm1d(3)
        x = batch(0).requires_grad_()
        (dx,) = torch.autograd.grad(layer(x).sin().sum(), x, create_graph=True)
        dx.square().sum().backward()
        assert layer.num_batches_tracked == 1


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
        assert model[1].num_batches_tracked > 0

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
