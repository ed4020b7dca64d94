"""Adapted statistics are the blend of the paper; what adapts helps on real data, and what collapses is taken back."""

from __future__ import annotations

import copy
import functools

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

import normkit as nk
from normkit.errors import InputError
from normkit.surgery.entropy import EntropyDescent

SHAPES = {"1d": (4,), "2d": (4, 3, 3), "3d": (4, 2, 2, 2)}


def data(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def bits(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_same(model: nn.Module, before: dict[str, Tensor]) -> None:
    torch.testing.assert_close(dict(model.state_dict()), before, rtol=0, atol=0)


@pytest.mark.parametrize("size", SHAPES)
@pytest.mark.parametrize("module", [nn, nk], ids=["torch", "ours"])
@pytest.mark.parametrize("prior", [0, 5, float("inf")])
def test_the_blend(module: object, size: str, prior: float) -> None:
    layer = getattr(module, f"BatchNorm{size}")(4).double()
    layer.running_mean.copy_(torch.arange(4))
    layer.running_var.copy_(torch.arange(4) + 1)
    batches = [data(n, *SHAPES[size], seed=n) * n for n in (3, 8)]
    result = nk.adapt(layer, batches, prior)
    rows = np.moveaxis(torch.cat(batches).numpy(), 1, 0).reshape(4, -1)
    new = 1 if prior == 0 else 11 / (11 + prior)
    mean = (1 - new) * np.arange(4) + new * rows.mean(1)
    var = (1 - new) * (np.arange(4) + 1) + new * rows.var(1)
    # Some roundings of float64.
    np.testing.assert_allclose(layer.running_mean, mean, rtol=1e-13, atol=1e-13)
    np.testing.assert_allclose(layer.running_var, var, rtol=1e-13)
    assert layer.num_batches_tracked == 0
    assert layer.training
    assert result.rows[0].share == pytest.approx(new)


def networks(norm: type[nn.Module], **options: object) -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(2, 4, 3),
        norm(4, **options),
        nn.ReLU(),
        nn.Conv2d(4, 3, 1),
        norm(3, **options),
        nn.Dropout(),
    )
    return net.double()


def test_one_batch_is_normalized_as_by_adaptive_batch_norm() -> None:
    """Which blends in each layer, so that deeper ones see what came out of the blend before."""
    x, plain, adaptive = (
        data(5, 2, 6, 6) * 3 + 1,
        networks(nn.BatchNorm2d),
        networks(nk.AdaptiveBatchNorm2d, prior=7),
    )
    nk.adapt(plain, [x], prior=7)
    torch.testing.assert_close(plain.eval()(x), adaptive.eval()(x), rtol=1e-12, atol=1e-12)


def test_a_single_sample() -> None:
    x, net = data(1, 4), nn.BatchNorm1d(4).double()
    nk.adapt(net, [x], prior=3)
    torch.testing.assert_close(net.running_mean, x[0] / 4)
    torch.testing.assert_close(net.running_var, torch.full((4,), 0.75, dtype=torch.float64))


def test_samples_that_are_all_padding_do_not_count() -> None:
    x, mask = data(5, 4, 3), torch.ones(5, 3, dtype=torch.bool)
    mask[2] = False
    mask[3, 1:] = False
    layer = nk.BatchNorm1d(4).double()
    (row,) = nk.adapt(layer, [{"input": x, "mask": mask}], prior=4).rows
    assert (row.samples, row.share) == (4, 0.5)
    torch.testing.assert_close(layer.running_mean, x.transpose(1, 2)[mask].mean(0) / 2)


def test_undo_is_exact() -> None:
    net = networks(nn.BatchNorm2d).train()
    before = bits(net)
    with nk.adapt(net, [data(5, 2, 6, 6)]) as result:
        assert "their share" in repr(result)
    assert_same(net, before)
    nk.adapt(net, [data(5, 2, 6, 6)], minimize_entropy=True, lr=0.1).undo()
    assert_same(net, before)


@functools.cache
def digits() -> tuple[nn.Sequential, Tensor, Tensor]:
    """A small network that has learned clean digits, and noisy, dim digits with their labels."""
    torch.manual_seed(0)
    x, y = load_digits(return_X_y=True)
    x, y = torch.from_numpy(x).float() / 16, torch.from_numpy(y)
    order = torch.randperm(len(x))
    x, y = x[order], y[order]
    net = nn.Sequential(
        nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 64), nk.BatchNorm1d(64)
    )
    net.extend([nn.ReLU(), nn.Linear(64, 10)])
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    for _ in range(10):
        for rows, labels in zip(x[:1200].split(60), y[:1200].split(60), strict=True):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(rows), labels).backward()
            optimizer.step()
    optimizer.zero_grad()
    shifted = 0.4 * x[1200:] + 0.5 + 0.1 * torch.randn(len(x) - 1200, 64)
    return net.eval(), shifted, y[1200:]


@torch.no_grad()
def accuracy(net: nn.Module, x: Tensor, y: Tensor) -> float:
    return (net(x).argmax(1) == y).double().mean().item()


def test_it_helps_on_shifted_digits() -> None:
    """The figures are of one run of fixed seeds; the differences are many times the 1.5 points of 597 samples."""
    net, x, y = digits()
    net = copy.deepcopy(net)
    before = accuracy(net, x, y)
    nk.adapt(net, x.split(60), prior=16)
    statistics = accuracy(net, x, y)
    assert statistics > before + 0.2
    found = nk.adapt(net, x.split(60), prior=float("inf"), minimize_entropy=True)
    assert accuracy(net, x, y) > statistics - 0.02
    first, *later = found.entropies
    assert first[0] == first[1]  # the first step comes after the first batch
    assert all(now < before for before, now in later[3:])


def test_entropy_moves_weights_and_biases_of_the_norms_alone() -> None:
    net, x, _ = digits()
    net = copy.deepcopy(net)
    net[1].weight.requires_grad_(False)
    net[3].weight.grad = torch.ones_like(net[3].weight)
    before = bits(net)
    nk.adapt(net, x.split(200), prior=float("inf"), minimize_entropy=True)
    moved = {name for name, value in net.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {"1.weight", "1.bias", "4.weight", "4.bias"}
    assert not net[1].weight.requires_grad
    assert net[1].weight.grad is None
    assert net[3].weight.grad.eq(1).all()


def test_the_first_step_is_adam_on_the_entropy() -> None:
    """By hand: a gradient from torch's own entropy, and a step of torch's Adam."""
    net, peer, batch = copy.deepcopy(digits()[0]), copy.deepcopy(digits()[0]), digits()[1][:50]
    nk.adapt(net, [batch], prior=float("inf"), minimize_entropy=True, lr=0.01)
    affine = [peer[1].weight, peer[1].bias, peer[4].weight, peer[4].bias]
    torch.distributions.Categorical(logits=peer(batch)).entropy().mean().backward()
    torch.optim.Adam(affine, lr=0.01).step()
    for ours, theirs in zip([net[1].weight, net[1].bias, net[4].weight, net[4].bias], affine, strict=True):
        # Adam's first step is lr times the gradient's sign but where that is of the size of its eps, 1e-8.
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("lr", [0.1, 0.3, 1.0])
def test_collapsing_predictions_are_taken_back(lr: float) -> None:
    """Rates at which the network forgets, on small batches: it would end at 74%, 25% and 21%, from 86%."""
    net, x, _ = digits()
    net = copy.deepcopy(net)
    before = bits(net)
    reason = r"predictions must stay (diverse|what the model was sure of), but by batch \d+ .* smaller lr"
    with pytest.raises(InputError, match=reason):
        nk.adapt(net, x.split(20) * 3, minimize_entropy=True, lr=lr)
    assert_same(net, before)
    assert not net.training


@pytest.mark.parametrize(("share", "forgotten"), [(0.05, False), (0.2, True)])
def test_classes_that_are_swapped_are_no_less_diverse(share: float, forgotten: bool) -> None:
    """Of 100 samples, the first ones are of the next class after some batches: as many are of each class as before."""
    parameter = nn.Parameter(torch.ones(()))
    descent = EntropyDescent([parameter], lr=1e-6)
    classes = torch.arange(100) % 10
    swapped = torch.where(torch.arange(100) < 100 * share, (classes + 1) % 10, classes)
    sure, others = (8 * nn.functional.one_hot(c, 10).float() for c in (classes, swapped))

    def steps(now: Tensor, count: int) -> None:
        for _ in range(count):
            descent.reference = sure
            descent.step(lambda: now * parameter)

    steps(sure, 5)
    if not forgotten:
        steps(others, 50)
        return
    with pytest.raises(
        InputError, match=r"what the model was sure of, but by batch (\d+) \d+% of these are other ones"
    ):
        steps(others, 50)
    assert 7 <= len(descent.entropies) < 15  # not by one batch, and soon


def test_what_does_not_collapse_passes() -> None:
    net, x, y = digits()
    net = copy.deepcopy(net)
    nk.adapt(net, x.split(20) * 3, minimize_entropy=True, lr=0.03)
    assert accuracy(net, x, y) > 0.8


def test_constant_data_are_refused() -> None:
    net = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 4))
    before = bits(net)
    with pytest.raises(InputError, match="data must vary, but 0 would lose 100% of its channels"):
        nk.adapt(net, [torch.ones(8, 4)], prior=0)
    assert_same(net, before)
    nk.adapt(net, [torch.ones(8, 4)], prior=16)  # which holds it


@pytest.mark.parametrize(
    ("batches", "options", "message"),
    [
        ([], {}, "one batch or more, got none"),
        ([torch.full((8, 4), torch.inf)], {}, "batch 1 brings 0 some that are not"),
        ([torch.randn(8, 4), "text"], {}, "got a str: give forward="),
        ([torch.randn(8, 4)], {"prior": -1}, "prior counts samples and must be 0 or more, got -1"),
        ([torch.randn(8, 4)], {"minimize_entropy": True, "lr": 0.0}, "lr must be positive"),
        (
            [torch.randn(8, 4)],
            {"minimize_entropy": True, "forward": lambda batch: {"logits": batch}},
            r"entropy is of logits \(N, classes, \*\), but the model gives a dict",
        ),
    ],
)
def test_the_model_is_as_it_was(batches: object, options: dict[str, object], message: str) -> None:
    net = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 3)).train()
    before = bits(net)
    with pytest.raises(InputError, match=message):
        nk.adapt(net, batches, **options)
    assert_same(net, before)
    assert net[0].training
    assert not net[0]._forward_pre_hooks
