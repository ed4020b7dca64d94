"""Who makes evaluation differ from training: each norm alone, and the fewest that do it together."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import normkit as nk
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


def by_hand(model: nn.Module, layer: str, x: Tensor, some: Any = slice(None)) -> float:
    """The effect of one norm on samples, in float64, switched on the whole batch."""
    model = copy.deepcopy(model).double().eval()
    with torch.no_grad():
        base = model(x.double())
        model.get_submodule(layer).train()
        other = model(x.double())
    return float((other - base)[some].square().mean().sqrt() / (base - base.mean()).square().mean().sqrt())


def norms_of(model: nn.Module, **options: Any) -> dict[str, Norm]:
    return {norm.module: norm for norm in nk.diagnose(model, data(1), **options).readings.norms}


@pytest.mark.parametrize("frozen", [False, True])
def test_every_norm_is_switched(frozen: bool) -> None:
    """Of 20 norms, on every third sample or so: which these are, three times as many or all, changes the length of
    512 differences of 3 values by a share of about sqrt(2 / 512); three times that.
    """
    model = moved(deep(20), 7, 12).requires_grad_(not frozen)
    norms = norms_of(model)
    assert len(norms) == 20
    x = data(1)[0]
    some = [i * N // 170 for i in range(170)]
    for norm in norms.values():
        # float32 sums over 20 layers, at the size of the output; the effects that count are far above.
        assert norm.effect == pytest.approx(by_hand(model, norm.module, x, some), rel=1e-3, abs=1e-4)
        assert norm.effect == pytest.approx(by_hand(model, norm.module, x), rel=0.19, abs=1e-4)


def test_samples_in_the_order_of_classes() -> None:
    """On the first ones alone, effects are others."""
    model = deep(10)
    x = torch.cat([data(1)[0][: N // 2], data(1)[0][N // 2 :] + 3])
    whole = {norm: by_hand(model, norm, x) for norm in norms_of(model)}
    first = {norm: by_hand(model, norm, x, slice(N // 2)) for norm in whole}
    found = {norm.module: norm.effect for norm in nk.diagnose(model, [x]).readings.norms}
    assert found == {norm: pytest.approx(effect, rel=0.19) for norm, effect in whole.items()}
    assert first != {norm: pytest.approx(effect, rel=0.19) for norm, effect in whole.items()}


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


def test_without_gradients() -> None:
    model = Rounded(moved(deep(12), 4, by=-10.0))
    assert all(norm.effect is not None for norm in norms_of(model).values())
    assert _makers(model).modules == ("body.4.body.1",)


@pytest.mark.parametrize("norm", [nk.BatchNorm1d, nk.BatchRenorm1d, lambda c: nk.GhostBatchNorm1d(c, 64)])
def test_our_norms_too(norm: Any) -> None:
    model = moved(deep(4, norm=norm), 2)
    before = copy.deepcopy(model.state_dict())
    norms = norms_of(model)
    assert norms["2.body.1"].effect == pytest.approx(by_hand(model, "2.body.1", data(1)[0]), rel=1e-3)
    assert all(value.equal(before[key]) for key, value in model.state_dict().items())


class Recurrent(nn.Module):
    """Runs its norm at every step."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.cell, self.norm = nn.Linear(16, 16), nk.RecurrentBatchNorm(16, max_length=3)

    def forward(self, x: Tensor) -> Tensor:
        for step in range(3):
            x = x + self.norm(self.cell(x), step=step)
        return x


def test_a_norm_with_statistics_of_each_step() -> None:
    model = Recurrent()
    effect = norms_of(model)["norm"].effect
    assert effect == pytest.approx(by_hand(model, "norm", data(1)[0]), rel=1e-3)
    assert _makers(model).modules == ("norm",)


def test_where_the_modes_hardly_differ_nothing_is_looked_at() -> None:
    norms = norms_of(deep(4))
    assert all(norm.effect is None for norm in norms.values())


class Pair(nn.Module):
    """Takes two inputs, of which one is for all samples; and counts the passes."""

    def __init__(self, depth: int, *ill: int, by: float = 3.0, only: int | None = None) -> None:
        super().__init__()
        self.body, self.only, self.passes = moved(deep(depth), *ill, by=by), only, 0

    def forward(self, x: Tensor, shift: Tensor) -> Tensor:
        self.passes += 1
        if self.only not in (None, len(x)):
            raise ValueError("batches of another size")
        return self.body(x + shift)


@pytest.mark.parametrize("form", ["a pair", "a mapping", "for a function"])
def test_batches_of_several_tensors(form: str) -> None:
    model = Pair(12, 4, 7)
    x, shift = data(1)[0], torch.full((1, 16), 0.25)
    given = {
        "a pair": ((x, shift), torch.zeros(N)),
        "a mapping": {"x": x, "shift": shift, "names": ["a"] * N},
        "for a function": [x, {"of": shift}],
    }[form]
    forward = (lambda batch: model(batch[0], batch[1]["of"])) if form == "for a function" else None
    norms = nk.diagnose(model, [given], forward=forward).readings.norms
    some = [i * N // 256 for i in range(256)]
    for norm in norms:
        effect = by_hand(model.body, norm.module.removeprefix("body."), x + shift, some)
        assert norm.effect == pytest.approx(effect, rel=1e-3, abs=1e-4)


def test_what_it_takes() -> None:
    """Two passes anyway; one in evaluation mode and one in training mode; 13 copies, two in each; the first alone."""
    model = Pair(12, 7, by=-10.0)
    nk.diagnose(model, [((data(1)[0], torch.zeros(1)), None)])
    assert model.passes == 2 + 2 + 7 + 1


def test_a_model_that_takes_no_part_has_its_norms_switched_on_the_whole_batch() -> None:
    model = Pair(16, 4, 7, only=N)  # 17 copies, 170 samples each
    x = data(1)[0]
    norms = nk.diagnose(model, [((x, torch.zeros(1)), None)]).readings.norms
    assert len(norms) == 16
    for norm in norms:
        effect = by_hand(model.body, norm.module.removeprefix("body."), x)
        assert norm.effect == pytest.approx(effect, rel=1e-3, abs=1e-4)
