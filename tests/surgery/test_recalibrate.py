"""Recalibrated statistics are those of all the data, by NumPy in float64; nothing else of the model changes."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import normkit as nk

SHAPES = {"1d": (4,), "2d": (4, 3, 3), "3d": (4, 2, 2, 2)}
LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    f"{origin}-{size}": (
        lambda module=module, size=size: getattr(module, f"BatchNorm{size}")(4),
        SHAPES[size],
    )
    for origin, module in (("torch", nn), ("ours", nk))
    for size in SHAPES
}
LAYERS |= {
    "torch-sync": (lambda: nn.SyncBatchNorm(4), SHAPES["2d"]),
    "torch-cumulative": (lambda: nn.BatchNorm2d(4, momentum=None), SHAPES["2d"]),
    "ghost": (lambda: nk.GhostBatchNorm2d(4, 2), SHAPES["2d"]),
    "renorm": (lambda: nk.BatchRenorm2d(4), SHAPES["2d"]),
    "switch": (lambda: nk.SwitchNorm2d(4), SHAPES["2d"]),
    "batch_instance": (lambda: nk.BatchInstanceNorm2d(4), SHAPES["2d"]),
}
every_layer = pytest.mark.parametrize("name", LAYERS)
# Two roundings of float64 per merge of a handful of batches, beside sums of a few hundred values of size 10.
CLOSE = {"rtol": 1e-13, "atol": 1e-12}


def data(shape: tuple[int, ...], sizes: tuple[int, ...] = (5, 2, 9)) -> list[Tensor]:
    """Batches of several sizes that differ in mean and deviation."""
    generator = torch.Generator().manual_seed(0)
    draw = (torch.randn(n, *shape, generator=generator, dtype=torch.float64) for n in sizes)
    return [x * (1 + i) + 5 * i for i, x in enumerate(draw)]


def population(x: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Mean and unbiased variance per channel."""
    rows = np.moveaxis(x.numpy(), 1, 0).reshape(x.shape[1], -1)
    return rows.mean(1), rows.var(1, ddof=1)


def assert_statistics(layer: nn.Module, mean: np.ndarray, var: np.ndarray) -> None:
    np.testing.assert_allclose(layer.running_mean.numpy(), mean, **CLOSE)
    np.testing.assert_allclose(layer.running_var.numpy(), var, **CLOSE)


@every_layer
@pytest.mark.parametrize("mode", [True, False])
def test_exact(name: str, mode: bool) -> None:
    make, shape = LAYERS[name]
    layer, batches = make().double().train(mode), data(shape)
    kind, momentum, told = type(layer), layer.momentum, repr(layer)
    result = nk.recalibrate(layer, batches)
    assert_statistics(layer, *population(torch.cat(batches)))
    assert layer.num_batches_tracked == (0 if name == "renorm" else 3)
    assert (type(layer), layer.momentum, layer.training, repr(layer)) == (kind, momentum, mode, told)
    (row,) = result.rows
    assert row.values == 16 * int(np.prod(shape[1:]))
    assert result.batches == 3


def network() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5),
        nn.Conv2d(4, 3, 1), nk.BatchNorm2d(3, activation="relu"), nn.Flatten(), nn.Linear(27, 2),
    ).double()  # fmt: skip


def test_a_network_has_its_norms_alone_in_training() -> None:
    """Each layer's input, gathered while batch norms normalize by the batch and dropout does nothing."""
    net, batches = network(), data((2, 5, 5))
    replay = copy.deepcopy(net).eval()
    seen: dict[int, list[Tensor]] = {1: [], 5: []}
    for index, inputs in seen.items():
        replay[index].train().register_forward_pre_hook(
            lambda _, args, inputs=inputs: inputs.append(args[0].detach())
        )
    for x in batches:
        replay(x)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    nk.recalibrate(net.train(), batches)
    for index, inputs in seen.items():
        assert_statistics(net[index], *population(torch.cat(inputs)))
    for key, value in net.state_dict().items():
        assert torch.equal(value, before[key]) == (key[0] not in "15" or "weight" in key or "bias" in key), (
            key
        )
    assert all(module.training for module in net.modules())


def test_masked_positions_do_not_count() -> None:
    layer, (x,) = nk.BatchNorm1d(4).double(), data((4, 6), sizes=(5,))
    mask = torch.rand(5, 6, generator=torch.Generator().manual_seed(1)) < 0.6
    nk.recalibrate(layer, [{"input": x, "mask": mask, "label": 3}])
    assert_statistics(layer, *population(x.transpose(1, 2)[mask]))


def test_each_time_step_has_its_own() -> None:
    layer, (x,) = nk.RecurrentBatchNorm(4, max_length=2).double(), data((3, 4), sizes=(8,))
    result = nk.recalibrate(layer, [x], forward=lambda x: [layer(x[:, t], step=t) for t in range(3)])
    for step, seen in enumerate((x[:, 0], torch.cat([x[:, 1], x[:, 2]]))):  # later steps are the last one
        mean, var = population(seen)
        np.testing.assert_allclose(layer.running_mean[step].numpy(), mean, **CLOSE)
        np.testing.assert_allclose(layer.running_var[step].numpy(), var, **CLOSE)
    assert [row.name for row in result.rows] == ["RecurrentBatchNorm[0]", "RecurrentBatchNorm[1]"]


def test_a_domain_has_its_own() -> None:
    net = nn.Sequential(nk.BatchNorm1d(4), nn.BatchNorm1d(4)).double()
    with nk.domain("night"):
        net(torch.randn(8, 4, dtype=torch.float64))
        result = nk.recalibrate(net, batches := data((4,)))
    mean, _ = population(torch.cat(batches))
    np.testing.assert_allclose(net[0].get_buffer("running_mean@night").numpy(), mean, **CLOSE)
    assert not net[0].running_mean.any()
    assert result.left == {"1": "no statistics of domain 'night'"}


@pytest.mark.parametrize("name", ["torch-2d", "ours-2d"])
def test_the_averages_are_what_training_stores(name: str) -> None:
    """torch's layer, from its start, with the same momentum."""
    make, shape = LAYERS[name]
    batches = data(shape)
    for estimator, momentum in (("cumulative", None), ("exponential", 0.3)):
        layer, peer = make().double(), nn.BatchNorm2d(4, momentum=momentum).double()
        layer.momentum = 0.3
        layer.running_mean.fill_(7)
        nk.recalibrate(layer, batches, estimator=estimator)
        for x in batches:
            peer(x)
        assert_statistics(layer, peer.running_mean.numpy(), peer.running_var.numpy())


def test_one_batch_is_drawn_for_all_layers() -> None:
    net, batches = network(), data((2, 5, 5), sizes=(6, 6, 6, 6))
    drawn = set()
    for seed in range(20):
        nk.recalibrate(net, batches, estimator="random", generator=torch.Generator().manual_seed(seed))
        state = {k: v.clone() for k, v in net.state_dict().items() if "running" in k}
        (match,) = (i for i, x in enumerate(batches) if nk.recalibrate(net, [x]) and _same(net, state))
        drawn.add(match)
    assert drawn == {0, 1, 2, 3}  # 20 draws miss one of four with a chance of 1.3%; the seeds are fixed


def _same(net: nn.Module, state: dict[str, Tensor]) -> bool:
    return all(torch.allclose(net.state_dict()[key], value) for key, value in state.items())


def test_enough_is_enough() -> None:
    """What is left out moves the statistics by no more than the tolerance says, in nearly every shuffle."""
    generator = torch.Generator().manual_seed(0)
    tolerance, batches = 0.1, torch.randn(400, 32, 8, generator=generator, dtype=torch.float64).exp().unbind()
    mean, var = population(torch.cat(batches))
    gaps = []
    for _ in range(20):
        order = torch.randperm(len(batches), generator=generator)
        layer = nn.BatchNorm1d(8).double()
        drawn = iter([batches[i] for i in order])
        result = nk.recalibrate(layer, drawn, tolerance=tolerance, until="enough")
        assert 5 <= result.batches < 100  # the loader is asked for no more
        assert len(list(drawn)) == len(batches) - result.batches
        assert result.enough_after == result.batches - 2 or result.batches == 5
        shift = (layer.running_mean.numpy() - mean) / var**0.5
        stretch = (var / layer.running_var.numpy()) ** 0.5 - 1
        gaps.append(float(np.sqrt((shift**2 + stretch**2).mean())))
    # Root mean squares over 8 channels scatter about the tolerance: three times it would be beyond chance. Values are
    # lognormal, so that a variance is that of few outliers, and the worst case there is in practice.
    assert max(gaps) <= 3 * tolerance
    assert float(np.mean(gaps)) <= tolerance * 1.5
    one = nk.recalibrate(nn.BatchNorm1d(8).double(), batches[:4], tolerance=tolerance, until="enough")
    assert one.batches == 4


def test_undo_is_exact() -> None:
    net, batches = network(), data((2, 5, 5))
    before = copy.deepcopy(net.state_dict())
    with nk.recalibrate(net, batches):
        assert net[1].num_batches_tracked == 3
    torch.testing.assert_close(dict(net.state_dict()), dict(before), rtol=0, atol=0)
    result = nk.recalibrate(net, batches)
    result.undo()
    torch.testing.assert_close(dict(net.state_dict()), dict(before), rtol=0, atol=0)


def test_a_compiled_model() -> None:
    """Compiled code passes by hooks that were not there when it was compiled."""
    net, batches = network().eval(), data((2, 5, 5))
    compiled = torch.compile(net, backend="eager")
    compiled(batches[0])
    plain = copy.deepcopy(net)
    nk.recalibrate(compiled, batches)
    nk.recalibrate(plain, batches)
    torch.testing.assert_close(dict(net.state_dict()), dict(plain.state_dict()), rtol=0, atol=0)


def test_what_is_left_alone_and_why() -> None:
    class Net(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return self[0](x)

    net = Net(*(nn.BatchNorm1d(4).double() for _ in range(3)), nn.BatchNorm1d(4, track_running_stats=False))
    nk.freeze(net[1])
    result = nk.recalibrate(net, data((4,)))
    assert result.left == {"1": "frozen", "3": "no running statistics", "2": "not reached"}
    assert "frozen" in repr(result)
    assert net[1].num_batches_tracked == 0
    assert nk.unfreeze(net)[1].training


def test_half_precision_buffers() -> None:
    layer, batches = nn.BatchNorm1d(4).bfloat16(), [x.bfloat16() for x in data((4,))]
    nk.recalibrate(layer, batches)
    mean, var = population(torch.cat(batches).double())
    np.testing.assert_allclose(layer.running_mean.double().numpy(), mean, rtol=2**-8)  # one rounding
    np.testing.assert_allclose(layer.running_var.double().numpy(), var, rtol=2**-8)
