"""`convert` makes norms what they are asked to be, as near as can be to what they were."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from networks import NETWORKS, batch, lived, network
from torch import Tensor, nn

import normkit as nk
from normkit.errors import InputError
from normkit.surgery.targets import BATCH, CHANNELS, MIXED, ROWS, ChannelRMSNorm

KINDS = {
    "batch": nk.BatchNorm2d, "sync": nk.SyncBatchNorm, "ghost": nk.GhostBatchNorm2d, "renorm": nk.BatchRenorm2d,
    "adaptive": nk.AdaptiveBatchNorm2d, "switch": nk.SwitchNorm2d, "batch_instance": nk.BatchInstanceNorm2d,
    "group": nk.GroupNorm, "layer": nk.GroupNorm, "instance": nk.InstanceNorm2d, "rms": ChannelRMSNorm,
    "virtual": nk.VirtualBatchNorm2d, "frn": nk.FilterResponseNorm,
}  # fmt: skip


def options(to: str) -> dict[str, Any]:
    return {"ghost_size": 2} if to == "ghost" else {}


def values(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def convolutional(norm: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return lived(nn.Sequential(nn.Conv2d(3, 8, 3), norm, nn.ReLU(), nn.Conv2d(8, 2, 1))).double()


def test_every_kind_is_tried() -> None:
    assert set(KINDS) == set(CHANNELS)


@pytest.mark.parametrize("to", CHANNELS)
@pytest.mark.parametrize("fitted", [False, True])
def test_every_kind(to: str, fitted: bool) -> None:
    model = convolutional(nn.BatchNorm2d(8, eps=1e-4)).train()
    layer, weight, bias = model[1], model[1].weight, model[1].bias
    x = values(6, 3, 8, 8)
    if to == "virtual" and not fitted:
        with pytest.raises(InputError, match="virtual batch norm needs a reference batch: pass batches"):
            nk.convert(model, to)
        return
    outcome = nk.convert(model, to, [x] if fitted else None, **options(to))
    assert list(outcome.done) == ["1"]
    assert model[1] is layer
    assert type(layer) is KINDS[to]
    assert layer.eps == 1e-4
    assert layer.weight is weight
    assert to == "rms" or layer.bias is bias
    assert ("1" in outcome.errors) == fitted
    assert all(t.dtype == torch.float64 for t in layer.state_dict().values() if t.is_floating_point())
    model(x).sum().backward()
    assert weight.grad is not None
    assert model.eval()(x).isfinite().all()


@pytest.mark.parametrize("to", sorted({*BATCH, *MIXED}))
def test_running_statistics_go_along(to: str) -> None:
    model = convolutional(nn.BatchNorm2d(8))
    old, x = copy.deepcopy(model), values(6, 3, 8, 8)
    outcome = nk.convert(model, to, [x], **options(to))
    assert torch.equal(model[1].running_var, old[1].running_var)
    if to in BATCH:
        assert outcome.errors == {"1": 0.0}
        torch.testing.assert_close(model.eval()(x), old.eval()(x))


@pytest.mark.parametrize(
    "source", [nn.BatchNorm2d(8), nn.GroupNorm(4, 8), nn.InstanceNorm2d(8, affine=True)], ids=str
)
@pytest.mark.parametrize("to", ["group", "layer", "instance", "rms", "batch"])
def test_no_other_affine_map_is_nearer(source: nn.Module, to: str) -> None:
    """The error is that of the layers' outputs, and any other weight or bias makes it larger."""
    model = convolutional(copy.deepcopy(source)).eval()
    old, batches = copy.deepcopy(model), [values(6, 3, 8, 8, seed=seed) for seed in range(3)]
    regrouped = {"num_groups": 2} if to == "group" and isinstance(source, nn.GroupNorm) else {}
    outcome = nk.convert(model, to, iter(batches), **regrouped)
    inputs = torch.cat([old[0](x) for x in batches])
    expected = old[1](inputs)

    def error() -> float:
        return (
            float((model[1](inputs) - expected).detach().square().sum() / expected.detach().square().sum())
            ** 0.5
        )

    reached = error()
    # Where nothing is left but rounding, the error is the root of a few units.
    assert abs(outcome.errors["1"] - reached) <= 1e-7 + 1e-7 * reached
    for parameter in model[1].parameters():
        for delta in (-1e-2, 1e-2):
            parameter.data += delta
            assert error() > reached
            parameter.data -= delta


def test_population_statistics_of_the_batches() -> None:
    model = convolutional(nn.GroupNorm(4, 8)).eval()
    batches = [values(4, 3, 8, 8, seed=seed) * 3 + seed for seed in range(3)]
    nk.convert(model, "batch", batches)
    inputs = torch.cat([model[0](x) for x in batches]).transpose(0, 1).flatten(1).detach()
    torch.testing.assert_close(model[1].running_mean, inputs.mean(1))
    torch.testing.assert_close(model[1].running_var, inputs.var(1))


@pytest.mark.parametrize("to", ROWS)
def test_norms_of_rows(to: str) -> None:
    model = network("vit")
    outcome = nk.convert(model, to, [batch("vit"), batch("vit", 1)])
    assert set(outcome.done) == {"norm1", "norm2"}
    assert type(model.norm1) is {"layer": nk.LayerNorm, "rms": nk.RMSNorm, "dynamic_tanh": nk.DynamicTanh}[to]
    same = {"layer": "norm1", "rms": "norm2"}.get(to)
    assert same is None or outcome.errors[same] <= 1e-7  # the root of a few units
    assert model(batch("vit")).isfinite().all()
    assert nk.convert(model, "batch").done == {}


@pytest.mark.parametrize("name", [name for name in NETWORKS if name != "vit"])
@pytest.mark.parametrize("to", ["group", "switch"])
def test_networks(name: str, to: str) -> None:
    model, x = network(name), batch(name)
    outcome = nk.convert(model, to, [x])
    assert outcome.left == (
        {"bottom.1": outcome.left["bottom.1"]} if name == "unet" else {}  # a group norm
    )
    assert all(0 < error < 1 for error in outcome.errors.values())
    assert model.train()(x).isfinite().all()


@pytest.mark.parametrize(
    ("norm", "to", "x", "why"),
    [
        (nn.BatchNorm1d(8), "instance", values(4, 8), "instance norm has one value per group here"),
        (nn.BatchNorm1d(8), "instance", None, "may have, for (N, C), one value per group here"),
        (nn.BatchNorm2d(8), "instance", values(4, 8, 1, 1), "instance norm has one value per group here"),
        (nn.BatchNorm2d(8), "batch_instance", values(4, 8, 1, 1), "batch_instance norm has one value per group here"),
        (nn.BatchNorm1d(1), "group", values(4, 1), "group norm has one value per group here"),
        (nn.BatchNorm1d(1), "layer", values(4, 1), "layer norm has one value per group here"),
        (nn.BatchNorm1d(1), "rms", values(4, 1), "rms norm has one value per group here"),
        (nn.LayerNorm(1), "rms", values(4, 1), "rms norm has one value per group here"),
        (nn.GroupNorm(2, 8), "batch", None, "how many axes its input has is not known: pass batches"),
        (nn.GroupNorm(2, 8), "switch", values(4, 8, 3, 3), "no running statistics, of which the new norm takes a part"),
        (nn.LayerNorm(8), "group", None, "it normalizes the last axes"),
        (nn.LazyBatchNorm2d(), "group", None, "it must know its channels"),
        (nk.freeze(nn.BatchNorm2d(8)), "group", None, "it is frozen: nk.unfreeze(model) first"),
        (nk.BatchNorm1d(8, update_statistics=False), "group", None, "its switches or its domains have no place"),
        (type("Own", (nn.BatchNorm1d,), {"forward": lambda self, x: x})(8), "group", None, "a forward of its own"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_what_makes_no_sense_is_left(norm: nn.Module, to: str, x: Tensor | None, why: str) -> None:
    model, kind = nn.Sequential(norm if x is None else norm.double()), type(norm)
    outcome = nk.convert(model, to, None if x is None else [x])
    assert why in outcome.left["0"]
    assert outcome.done == {}
    assert type(model[0]) is kind


def test_what_is_learned_stays_what_is_learned() -> None:
    x = torch.randn(4, 8, 5, 5, generator=torch.Generator().manual_seed(0))
    for norm, names in (
        (nn.BatchNorm2d(8, affine=False), []),
        (nn.BatchNorm2d(8, bias=False), ["weight"]),
        (nn.BatchNorm2d(8), ["weight", "bias"]),
    ):
        for batches, expected in ((None, names), ([x], ["weight", "bias"])):  # a fit needs both
            model = nn.Sequential(copy.deepcopy(norm))
            nk.convert(model, "group", batches)
            assert [name for name, _ in model[0].named_parameters()] == expected


def test_groups_that_are_asked_for() -> None:
    model = nn.Sequential(nn.BatchNorm2d(12), nn.BatchNorm2d(64), nn.BatchNorm2d(7))
    outcome = nk.convert(model, "group", num_groups=8)
    assert [m.num_groups for m in model] == [6, 8, 1]
    told = [what.partition("True, bias=True)")[2] for what in outcome.done.values()]
    assert told == [", for 8 groups of two or more do not divide its channels" * n for n in (1, 0, 1)]
    for wrong in (0, 2.5, "8", True * 0):
        with pytest.raises(InputError, match="num_groups must be a whole number from 1 on"):
            nk.convert(model, "group", num_groups=wrong)


def test_group_norms_stay_unless_others_are_asked_for() -> None:
    model = nn.Sequential(nn.GroupNorm(2, 8), nn.BatchNorm2d(8))
    left = {"0": "it is a group norm already, of 2 groups"}
    assert nk.convert(model, "group").left == left
    assert type(model[0]) is nn.GroupNorm
    assert nk.convert(model, "group", num_groups=2).left == left
    assert [m.num_groups for m in model] == [2, 2]
    assert nk.convert(model, "group", num_groups=4).left == {}
    assert [m.num_groups for m in model] == [4, 4]


def test_virtual_batch_norm_refers_to_the_first_batch() -> None:
    """And is fitted: where each sample counts but a little beside the reference, it is what batch norm was."""
    layer = nn.Sequential(nn.Conv2d(3, 8, 1), lived(nn.BatchNorm2d(8))).double().eval()
    old, batches = copy.deepcopy(layer), [values(64, 3, 5, 5), values(2, 3, 5, 5)]
    outcome = nk.convert(layer, "virtual", batches)
    reference = old[0](batches[0])
    torch.testing.assert_close(layer[1].reference_mean, reference.mean((0, 2, 3)))
    torch.testing.assert_close(layer[1].reference_var, reference.var((0, 2, 3), unbiased=False))
    assert layer[1].reference_size == 64
    x = values(6, 3, 5, 5)
    gap = (layer(x) - old(x)).square().mean().sqrt() / old(x).square().mean().sqrt()
    assert outcome.errors["1"] < 0.05  # a sample counts for 1 / 65 of its statistics
    assert gap < 0.05


@pytest.mark.parametrize("activation", [None, "relu"])
def test_filter_response_norm_has_a_threshold_for_a_relu(activation: str | None) -> None:
    model = nn.Sequential(nk.BatchNorm2d(8, activation=activation)).double()
    nk.convert(model, "frn", [values(6, 8, 5, 5)])
    assert isinstance(model[0], nk.FilterResponseNorm)
    assert (model[0].threshold is not None) == (activation == "relu")
    x = values(3, 8, 5, 5)
    weight, bias = (p.view(-1, 1, 1) for p in (model[0].weight, model[0].bias))
    y = weight * x / (x.square().mean((2, 3), keepdim=True) + model[0].eps).sqrt() + bias
    torch.testing.assert_close(model(x), y if activation is None else y.relu())
    silu = nn.Sequential(nk.BatchNorm2d(8, activation="silu"))
    assert "silu is none" in nk.convert(silu, "frn").left["0"]
    flat = nn.Sequential(nn.BatchNorm1d(8))
    assert "one value per group" in nk.convert(flat, "frn", [torch.ones(4, 8)]).left["0"]
    assert nk.convert(flat, "frn", [torch.ones(4, 8)], learn_eps=True).left == {}


def test_a_model_without_norms_is_told() -> None:
    told = "0 changed, 0 left: the model has no norm that is known"
    assert repr(nk.convert(nn.Linear(2, 2), "group")).endswith(told)


@pytest.mark.parametrize("to", ["group", "rms", "instance"])
def test_activations_stay_and_are_not_fitted(to: str) -> None:
    active, plain = (convolutional(nk.BatchNorm2d(8, activation=name)) for name in ("silu", None))
    x, y = values(6, 3, 8, 8), values(2, 8, 4, 4)
    assert nk.convert(active, to, [x]).errors == nk.convert(plain, to, [x]).errors
    torch.testing.assert_close(active[1](y), nn.functional.silu(plain[1](y)))


def test_residuals_have_no_place_in_other_norms() -> None:
    model = network("resnet")
    nk.accelerate(model, batch("resnet"))
    for batches in (None, [batch("resnet")]):
        left = nk.convert(copy.deepcopy(model), "group", batches).left
        assert set(left) == {"layer1.0.bn2", "layer1.1.bn2", "layer2.0.bn2"}
        assert set(left.values()) == {
            "it is called with a residual, which the new norm does not take: convert before nk.accelerate, "
            "which fuses sums"
        }


def test_shared_layers_hooks_and_flags_stay() -> None:
    shared = nn.BatchNorm2d(3)
    model = nn.Sequential(shared, nn.Conv2d(3, 3, 1), shared).train()
    shared.eval()
    shared.weight.requires_grad_(requires_grad=False)
    seen: list[Tensor] = []
    shared.register_forward_hook(lambda module, args, y: seen.append(y))
    x = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    nk.convert(model, "instance", [x])
    assert seen == []  # surgery itself is not seen
    assert model[0] is model[2] is shared
    model(x)
    assert len(seen) == 2
    assert not shared.training
    assert not shared.weight.requires_grad
    assert shared.bias.requires_grad


def test_parameters_of_two_layers() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3), nn.BatchNorm2d(3))
    model[1].weight = model[0].weight
    x = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    assert "another layer's too" in nk.convert(model, "group", [x]).left["0"]
    assert nk.convert(model, "group").left == {}


def test_batches_of_every_structure() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(4)

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return self.norm(x + y)

    x = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    expected = nk.convert(Two(), "group", [((x, x), "labels")]).errors
    assert nk.convert(Two(), "group", ({"x": x, "y": x} for _ in range(1))).errors == expected
    model = Two()
    assert nk.convert(model, "group", [x], forward=lambda batch: model(batch, batch)).errors == expected


def test_a_failure_leaves_the_model_as_it_was() -> None:
    model = convolutional(nn.BatchNorm2d(8)).train()
    state = copy.deepcopy(model.state_dict())
    x = values(6, 3, 8, 8)
    for batches, error in (
        ([], InputError),
        ([x, values(6, 5, 8, 8)], RuntimeError),
        ([x, None], InputError),
    ):
        with pytest.raises(error):
            nk.convert(model, "group", batches)
        assert type(model[1]) is nn.BatchNorm2d
        assert model.training
        assert not model[1]._forward_pre_hooks
        assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    with pytest.raises(
        TypeError, match=r"group norm got an unexpected keyword argument 'groups': choose from num_groups$"
    ):
        nk.convert(model, "group", groups=3)
    with pytest.raises(InputError, match="unknown norm None: choose from batch"):
        nk.convert(model, None)
    with pytest.raises(InputError, match=r"unknown norm 'bacth': choose from batch, .*did you mean 'batch'"):
        nk.convert(model, "bacth")
    with pytest.raises(InputError, match="pass ghost_size="):
        nk.convert(model, "ghost")
    assert type(model[1]) is nn.BatchNorm2d


def test_a_layer_that_no_batch_reaches() -> None:
    model = nn.ModuleDict({"used": nn.BatchNorm1d(3), "unused": nn.BatchNorm1d(3)})
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    outcome = nk.convert(model, "group", [x], forward=model["used"])
    assert outcome.left == {"unused": "no batch reached it"}


def test_dynamic_tanh_follows_norms_of_rows_alone() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.LayerNorm(4))
    outcome = nk.convert(model, "dynamic_tanh")
    assert isinstance(model[2], nk.DynamicTanh)
    assert "follows layer and RMS norms alone" in outcome.left["1"]
