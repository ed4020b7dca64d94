"""What the probe reads, against NumPy; that memory does not grow; that a model which raises is as it was."""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Iterator

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import normkit as nk
from normkit.doctor.graph import recorded, trace
from normkit.doctor.sketch import Sketch
from normkit.errors import InputError


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 5, 3, bias=False), nn.BatchNorm2d(5), nn.ReLU(), nn.Flatten(), nn.Linear(180, 2)
    )


def images(count: int, offset: float = 0.0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(6, 3, 8, 8, generator=generator) + offset for _ in range(count)]


@pytest.mark.parametrize("offset", [0.0, 1e3])
def test_moments_are_those_of_all_batches_together(offset: float) -> None:
    model, batches = net(), images(5, offset)
    with torch.no_grad():
        came_in = torch.cat([model[0](x) for x in batches]).double().numpy()
        went_out = np.concatenate(
            [F.batch_norm(model[0](x), None, None, training=True).double().numpy() for x in batches]
        )
    traffic = nk.diagnose(model, batches).readings.norms[0].traffic
    assert traffic is not None
    # float32 moments of each sample: 36 values, each rounded at the size of the largest.
    scale = np.abs(came_in).max()
    np.testing.assert_allclose(traffic.input.mean, came_in.mean((0, 2, 3)), atol=4 * 2**-24 * scale)
    np.testing.assert_allclose(
        traffic.input.var(unbiased=False), came_in.var((0, 2, 3)), rtol=2**-16 * max(1, scale)
    )
    np.testing.assert_allclose(traffic.high, went_out.max((0, 2, 3)), rtol=1e-3 if offset else 1e-5)
    np.testing.assert_allclose(traffic.input.count, 6 * 36 * 5)
    np.testing.assert_allclose(
        traffic.output_evaluated.mean, came_in.mean((0, 2, 3)) / np.sqrt(1 + 1e-5), atol=4 * 2**-24 * scale
    )


def test_effective_samples_of_positions_that_repeat_are_the_samples() -> None:
    """Each image is one value everywhere: 36 positions are worth one."""
    generator = torch.Generator().manual_seed(2)
    batches = [torch.randn(64, 5, 1, 1, generator=generator).expand(64, 5, 6, 6) for _ in range(8)]
    norm = nn.Sequential(nn.BatchNorm2d(5))
    repeated = nk.diagnose(norm, batches).readings.norms[0].traffic
    alone = (
        nk.diagnose(norm, [torch.randn(64, 5, 6, 6, generator=generator) for _ in range(8)])
        .readings.norms[0]
        .traffic
    )
    assert repeated is not None
    assert alone is not None
    assert repeated.effective == pytest.approx(64, rel=0.02)
    # A chi-square of 8 * 63 degrees of freedom, the median of five: a tenth is three of its deviations.
    assert alone.effective == pytest.approx(64 * 36, rel=0.15)


def test_gradients_are_those_at_the_outputs_of_norms() -> None:
    """Against autograd in float64, where the output is kept; behind an activation that works in place too."""
    model = net()
    model[2] = nn.ReLU(inplace=True)
    batches = [
        (x, torch.randint(2, (6,), generator=torch.Generator().manual_seed(i)))
        for i, x in enumerate(images(3))
    ]
    exact = copy.deepcopy(model).double()
    expected = []
    for x, y in batches:
        middle = exact[:2](x.double()).detach().requires_grad_()
        F.cross_entropy(exact[3:](middle.relu()), y).backward()
        assert middle.grad is not None
        expected.append(float(middle.grad.norm()))
    traffic = nk.diagnose(model, batches, F.cross_entropy).readings.norms[0].traffic
    assert traffic is not None
    assert traffic.gradient == pytest.approx(
        sum(expected) / 3, rel=1e-4
    )  # of sums of 180 products in float32
    alone = nk.diagnose(model, batches).readings.norms[0].traffic
    assert alone is not None
    assert alone.gradient is None


@pytest.mark.parametrize(
    ("shifts", "order", "words"),
    [
        ([0, 1, 2, 3, 4, 5, 6, 7], 0.083, "they are sorted, or drift"),
        ([0, 3, 0, 3, 0, 3, 0, 3], 1.75, "two kinds take turns"),
        ([0, 3, 3, 0, 3, 3, 0, 0], None, "times that of batches drawn alike"),
    ],
)
def test_steps_between_batches(shifts: list[float], order: float | None, words: str) -> None:
    generator = torch.Generator().manual_seed(6)
    batches = [torch.randn(512, 5, generator=generator) + shift for shift in shifts]
    diagnosis = nk.diagnose(nn.Sequential(nn.BatchNorm1d(5)), batches)
    traffic = diagnosis.readings.norms[0].traffic
    assert traffic is not None
    x = torch.stack(batches).double().numpy()
    means, spread = x.mean(1), np.mean(x.var(1, ddof=1), 0)
    steps = np.sqrt(np.median((np.diff(means, axis=0) ** 2).mean(0) / spread))
    apart = np.sqrt(np.median(means.var(0, ddof=1) / spread))
    assert (traffic.drift, traffic.apart) == pytest.approx((steps, apart), rel=1e-3)
    if order is not None:  # of the shifts alone; the means' own noise is a hundredth of them
        assert traffic.order == pytest.approx(order, rel=0.05)
    (finding,) = (f for f in diagnosis.findings if f.code == "NK402")
    assert words in finding.message


def test_batches_are_not_kept() -> None:
    seen: list[weakref.ref[Tensor]] = []
    alive: list[int] = []

    def batches() -> Iterator[Tensor]:
        for i in range(12):
            x = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(i))
            seen.append(weakref.ref(x))
            yield x
            del x
            gc.collect()
            alive.append(sum(reference() is not None for reference in seen))

    nk.diagnose(net(), batches())
    assert max(alive[1:]) <= 2  # the first, for attribution, and the one that is still in the loop


def test_a_model_that_raises_is_as_it_was() -> None:
    class Failing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.calls = net(), 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            if self.calls == 4:
                raise KeyError("the fourth")
            return self.body(x)

    model = Failing()
    model.body[0].weight.grad = torch.ones_like(model.body[0].weight)
    before, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    with pytest.raises(InputError, match="the model fails on batch 2: KeyError: 'the fourth'"):
        nk.diagnose(model, images(3), lambda output, target: output.sum())
    assert all(value.equal(before[key]) for key, value in model.state_dict().items())
    assert model.body[0].weight.grad.eq(1).all()
    assert model.training
    assert torch.get_rng_state().equal(random)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_frozen_norm_remembers_its_mode() -> None:
    model = nk.freeze(net())
    nk.diagnose(model, images(2))
    nk.unfreeze(model)
    assert model[1].training


class Branches(nn.Module):
    """Functions, methods, operators, and a module called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm(self.conv(x)))
        y = y + self.norm(self.conv(x)).sigmoid()
        return self.head(y.mean((2, 3)).reshape(-1, 4))


def test_a_recorded_graph_is_the_traced_one() -> None:
    model = Branches()
    traced = trace(model)
    with recorded(model) as graph_of:
        graph = graph_of(model(torch.randn(2, 3, 4, 4)))
    assert traced is not None
    assert [(n.kind, n.module, n.inputs) for n in graph.nodes] == [
        (n.kind, n.module, n.inputs) for n in traced.nodes
    ]
    assert graph.outputs == traced.outputs


def test_sketched_quantiles_are_within_two_hundredths() -> None:
    generator = torch.Generator().manual_seed(4)
    values = torch.cat(
        [torch.randn(5000, generator=generator), 1e3 * torch.rand(5000, generator=generator), torch.zeros(99)]
    )
    sketch = Sketch()
    for part in values[torch.randperm(len(values), generator=generator)].split(700):
        sketch.add(part)
    sketch.add(torch.tensor([float("nan"), float("inf")]))
    assert sketch.total == len(values)
    ordered = values.sort().values
    for q in (0.01, 0.2, 0.5, 0.9, 0.999):
        exact = float(ordered[max(1, int(np.ceil(q * len(values)))) - 1])
        assert abs(sketch.quantile(q) - exact) <= 0.021 * abs(exact) + 1e-6  # and a bin's rounding
