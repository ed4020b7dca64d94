"""What entropy minimization forgets is noticed, as far as predictions show it; what it gains is not taken back.

Predictions without labels show a fall to few classes, and sure ones that change. They do not show a slow loss among
those that were never sure: on the table below, 289 rows of two classes in noise, one run lost 6.6 points (LOG.md).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import pytest
import torch
from sklearn.datasets import load_breast_cancer, load_digits
from torch import Tensor, nn

import normkit as nk
from normkit.errors import InputError
from normkit.surgery import entropy

Task = tuple[nn.Module, dict[str, Tensor], Tensor]  # a trained network, inputs by their shift, labels


def trained(net: nn.Module, x: Tensor, y: Tensor, epochs: int) -> nn.Module:
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    for _ in range(epochs):
        for rows in torch.randperm(len(x)).split(60):
            if len(rows) >= 4:
                optimizer.zero_grad()
                nn.functional.cross_entropy(net(x[rows]), y[rows]).backward()
                optimizer.step()
    optimizer.zero_grad()
    return net.eval()


def noisy(x: Tensor, deviation: float) -> Tensor:
    return x + deviation * torch.randn_like(x)


def digits() -> tuple[Tensor, Tensor]:
    x, y = load_digits(return_X_y=True)
    order = torch.randperm(len(x))
    return (torch.from_numpy(x).float() / 16)[order], torch.from_numpy(y)[order]


def perceptron() -> Task:
    x, y = digits()
    hidden = [
        nn.Linear(64, 64),
        nn.BatchNorm1d(64),
        nn.ReLU(),
        nn.Linear(64, 64),
        nn.BatchNorm1d(64),
        nn.ReLU(),
    ]
    net = trained(nn.Sequential(*hidden, nn.Linear(64, 10)), x[:1200], y[:1200], 12)
    x, y = x[1200:], y[1200:]
    return net, {"dim": noisy(0.4 * x + 0.5, 0.1), "noise": noisy(x, 0.35), "same": x}, y


def convolutions() -> Task:
    x, y = digits()
    x = x.view(-1, 1, 8, 8)
    layers: list[nn.Module] = []
    for inputs, outputs, stride in ((1, 16, 1), (16, 32, 2), (32, 32, 2)):
        layers += [nn.Conv2d(inputs, outputs, 3, stride, 1), nn.BatchNorm2d(outputs), nn.ReLU()]
    net = trained(nn.Sequential(*layers, nn.Flatten(), nn.Linear(128, 10)), x[:1200], y[:1200], 8)
    x, y = x[1200:], y[1200:]
    blurred = 1.5 * nn.functional.avg_pool2d(x, 3, 1, 1)
    return net, {"dim": noisy(0.3 * x + 0.6, 0.05), "noise": noisy(x, 0.4), "blur": blurred}, y


def gratings() -> Task:
    def made(count: int) -> tuple[Tensor, Tensor]:
        y = torch.randint(0, 6, (count,))
        angle, phase, frequency = y * torch.pi / 6, torch.rand(count) * 6.28, 1 + 0.5 * torch.rand(count)
        rows, columns = torch.meshgrid(torch.arange(12.0), torch.arange(12.0), indexing="ij")
        along = columns * angle.cos().view(-1, 1, 1) + rows * angle.sin().view(-1, 1, 1)
        waves = torch.sin(frequency.view(-1, 1, 1) * along + phase.view(-1, 1, 1))
        return noisy(waves, 0.3)[:, None], y

    first = [nn.Conv2d(1, 12, 5, padding=2), nn.BatchNorm2d(12), nn.ReLU(), nn.MaxPool2d(2)]
    then = [nn.Conv2d(12, 24, 3, padding=1), nn.BatchNorm2d(24), nn.ReLU(), nn.AdaptiveAvgPool2d(1)]
    net = trained(nn.Sequential(*first, *then, nn.Flatten(), nn.Linear(24, 6)), *made(1500), 8)
    x, y = made(600)
    return net, {"contrast": 0.3 * x + 1, "noise": noisy(x, 0.9), "sharp": x.sign()}, y


def table() -> Task:
    x, y = load_breast_cancer(return_X_y=True)
    x, y = torch.from_numpy(x).float(), torch.from_numpy(y)
    order = torch.randperm(len(x))
    x, y = ((x - x.mean(0)) / x.std(0))[order], y[order]
    hidden = [
        nn.Linear(30, 32),
        nn.BatchNorm1d(32),
        nn.ReLU(),
        nn.Linear(32, 32),
        nn.BatchNorm1d(32),
        nn.ReLU(),
    ]
    net = trained(nn.Sequential(*hidden, nn.Linear(32, 2)), x[:280], y[:280], 15)
    x, y = x[280:], y[280:]
    return net, {"scale": 0.5 * x + 1, "noise": noisy(x, 1.5), "same": x}, y


@torch.no_grad()
def accuracy(net: nn.Module, x: Tensor, y: Tensor) -> float:
    return (net(x).argmax(1) == y).double().mean().item()


@pytest.mark.slow
@pytest.mark.parametrize("make", [perceptron, convolutions, gratings])
def test_forgetting_is_noticed(make: Callable[[], Task]) -> None:
    """Accuracy beside that of adapted statistics alone; on 289 to 600 samples it is known to 2 points or so."""
    torch.manual_seed(0)
    net, shifts, y = make()
    stopped: list[float] = []
    for x in shifts.values():
        batches = [*x.split(20)[:-1]] * 3
        alone = copy.deepcopy(net)
        nk.adapt(alone, batches)
        for lr in (0.01, 0.1, 0.3):
            one = copy.deepcopy(net)
            try:
                nk.adapt(one, batches, minimize_entropy=True, lr=lr)
            except InputError:
                stopped.append(lr)
            else:
                assert accuracy(one, x, y) > accuracy(alone, x, y) - 0.05
    assert 0 < len(stopped) < 7  # of the nine runs
    assert 0.01 not in stopped


def diversity(p: Tensor) -> float:
    """Entropy of the mean prediction."""
    return torch.special.entr(p.mean(0)).sum().item()


@torch.no_grad()
def likened(net: nn.Module, alone: nn.Module, x: Tensor) -> tuple[float, float]:
    """Beside adapted statistics alone: diversity, and the share of the sure predictions whose class is the same."""
    p, q = (of(x).double().softmax(1) for of in (alone, net))
    sure = p.max(1).values > entropy.SURE
    return diversity(q) / diversity(p), (q.argmax(1) == p.argmax(1))[sure].double().mean().item()


# The watch is over the last ten batches of 20 or so, this over all samples and the last weights: a share of 0.9 of 200
# has a deviation of 0.02.
CLOSE = 3 * 0.02


@pytest.fixture
def one_thread() -> Iterator[None]:
    """These networks are too small for several, which would wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("make", [perceptron, table])
def test_what_is_promised_holds(make: Callable[[], Task], monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs that nobody watches and that fall to few classes are stopped; those that pass keep classes and sure ones."""
    torch.manual_seed(0)
    net, shifts, _ = make()
    fell = passed = 0
    for x in shifts.values():
        batches = [*x.split(20)[:-1]] * 3
        alone = copy.deepcopy(net)
        nk.adapt(alone, batches)
        for lr in (0.01, 0.1, 1.0):
            with monkeypatch.context() as nobody:
                nobody.setattr(entropy, "LIVELY", 0.0)
                nobody.setattr(entropy, "FAITHFUL", 0.0)
                unwatched = copy.deepcopy(net)
                nk.adapt(unwatched, batches, minimize_entropy=True, lr=lr)
            falls = likened(unwatched, alone, x)[0] < entropy.LIVELY - CLOSE
            one = copy.deepcopy(net)
            try:
                nk.adapt(one, batches, minimize_entropy=True, lr=lr)
            except InputError:
                fell += falls
                assert all(map(torch.equal, one.state_dict().values(), net.state_dict().values()))
            else:
                assert not falls
                lively, faithful = likened(one, alone, x)
                assert lively >= entropy.LIVELY - CLOSE
                assert faithful >= entropy.FAITHFUL - CLOSE
                passed += 1
    assert fell  # where it ends at such rates hangs on rounding, but not every run recovers
    assert passed >= 3  # those of 0.01
