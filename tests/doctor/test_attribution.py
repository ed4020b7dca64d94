"""Who makes evaluation differ from training: estimates against switching, and the fewest norms that do it together."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import normkit as nk
from normkit.doctor.attribution import estimates
from normkit.doctor.readings import Norm

N = 512


class Plus(nn.Module):
    """A shortcut, so that what differs in one layer stays small behind it."""

    def __init__(self, norm: Any, activation: type[nn.Module]) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(16, 16, bias=False), norm(16), activation())

    def forward(self, x: Tensor) -> Tensor:
        return x + 0.5 * self.body(x)


def deep(depth: int, activation: type[nn.Module] = nn.ReLU, norm: Any = nn.BatchNorm1d) -> nn.Sequential:
    """Norms at 0.body.1, 1.body.1, ...; their statistics are those of normal data."""
    torch.manual_seed(0)
    model = nn.Sequential(*(Plus(norm, activation) for _ in range(depth)), nn.Linear(16, 3))
    for part in model[:-1]:
        part.body[1].momentum = None
    for x in data(8):
        model(x)
    return model


def data(count: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(N, 16, generator=generator) for _ in range(count)]


def moved(model: nn.Sequential, *layers: int, by: float = 3.0) -> nn.Sequential:
    for layer in layers:
        norm = model[layer].body[1]
        norm.running_mean += by * norm.running_var.sqrt()
    return model


def by_hand(model: nn.Module, layer: str, x: Tensor) -> float:
    """The effect of one norm, in float64."""
    model = copy.deepcopy(model).double().eval()
    with torch.no_grad():
        base = model(x.double())
        model.get_submodule(layer).train()
        other = model(x.double())
    return float((other - base).square().mean().sqrt() / (base - base.mean()).square().mean().sqrt())


def norms_of(model: nn.Module, **options: Any) -> dict[str, Norm]:
    return {norm.module: norm for norm in nk.diagnose(model, data(1), **options).readings.norms}


def test_an_estimate_is_the_effect_where_the_model_is_linear() -> None:
    """Signs of 512 samples and 3 outputs: the mean square of the products is off by a share of sqrt(2 / 512), its root
    by half of that, 3%; four times that.
    """
    model = moved(deep(4, nn.Identity), 0, 1, 2, 3).eval()
    (x,) = data(1)
    with torch.no_grad():
        base = model(x).double()
    scale = float((base - base.mean()).square().mean().sqrt())
    layers = {f"{i}.body.1": model[i].body[1] for i in range(4)}
    before = copy.deepcopy(model.state_dict())
    output, lengths = estimates(layers, lambda: model(x))
    assert output.equal(base.float())
    found = {name: length / scale for name, length in lengths.items()}
    assert found == {name: pytest.approx(by_hand(model, name, x), rel=0.125) for name in layers}
    assert all(value.equal(before[key]) for key, value in model.state_dict().items())
    assert not any(module.training or module._forward_hooks for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("frozen", [False, True])
def test_all_norms_have_an_effect_and_the_largest_are_measured(frozen: bool) -> None:
    model = moved(deep(20), 7).requires_grad_(not frozen)
    norms = norms_of(model)
    assert len(norms) == 20
    assert all(norm.effect is not None for norm in norms.values())
    measured = [norm for norm in norms.values() if norm.switched]
    assert len(measured) == 8
    for norm in measured:
        # float32 sums over 20 layers, at the size of the output; the effects that count are far above.
        assert norm.effect == pytest.approx(by_hand(model, norm.module, data(1)[0]), rel=1e-3, abs=1e-4)
    assert norms["7.body.1"].switched


def test_one_of_thirty_is_found() -> None:
    makers = _makers(moved(deep(30), 15, by=-10.0))
    assert makers.modules == ("15.body.1",)
    assert makers.among == 30
    assert makers.left < 0.1
    assert makers.alone == pytest.approx(1 - makers.left)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Of models this small, threads would wait for each other most of the time."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Branches(nn.Module):
    """Twelve that add up, of which each norm makes its own part."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.parts = nn.ModuleList(
            nn.Sequential(nn.Linear(16, 4), nn.BatchNorm1d(4, momentum=None), nn.Tanh()) for _ in range(12)
        )
        self.head = nn.Linear(48, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.cat([part(x) for part in self.parts], 1))


def test_the_fewest_that_make_it_together() -> None:
    model = Branches()
    for x in data(8):
        model(x)
    ill = {2, 3, 7, 9}
    for i in ill:
        model.parts[i][1].running_mean += 2
    makers = _makers(model)
    assert {int(name.split(".")[1]) for name in makers.modules} == ill
    assert makers.left <= 0.1
    assert makers.alone < 0.9
    (finding,) = (f for f in nk.diagnose(model, data(1)).findings if f.code == "NK601")
    assert finding.module == makers.modules[0]
    assert f"({len(makers.modules)} of 12 norms)" in finding.message


def _makers(model: nn.Module) -> Any:
    run = nk.diagnose(model, data(1)).readings.run
    assert run is not None
    assert run.gap is not None
    assert run.gap.makers is not None
    return run.gap.makers


class Rounded(nn.Module):
    """Gives no gradients."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


def test_without_gradients_those_furthest_from_the_data_are_measured() -> None:
    model = Rounded(moved(deep(12), 4, by=-10.0))
    norms = norms_of(model)
    assert sum(norm.effect is not None for norm in norms.values()) == 8
    assert norms["body.4.body.1"].switched
    assert _makers(model).modules == ("body.4.body.1",)


@pytest.mark.parametrize("norm", [nk.BatchNorm1d, nk.BatchRenorm1d, lambda c: nk.GhostBatchNorm1d(c, 64)])
def test_our_norms_too(norm: Any) -> None:
    model = moved(deep(4, norm=norm), 2)
    before = copy.deepcopy(model.state_dict())
    norms = norms_of(model)
    assert norms["2.body.1"].effect == pytest.approx(by_hand(model, "2.body.1", data(1)[0]), rel=1e-3)
    assert all(value.equal(before[key]) for key, value in model.state_dict().items())


def test_where_the_modes_hardly_differ_nothing_is_looked_at() -> None:
    norms = norms_of(deep(4))
    assert all(norm.effect is None for norm in norms.values())
