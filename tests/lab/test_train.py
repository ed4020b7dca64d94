"""Training: equal settings give equal bits, however often interrupted; runs of one seed are pairs."""

from __future__ import annotations

import dataclasses
import sqlite3
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from normkit.errors import InputError
from normkit.lab.data import Dataset, load
from normkit.lab.models import NORMS, build
from normkit.lab.records import Epoch, Measurement, Run, Settings
from normkit.lab.scaling import scale
from normkit.lab.store import Store
from normkit.lab.train import train

SETTINGS = Settings(
    data="digits",
    data_fingerprint="",  # of the data set at hand: see `of`
    model="mlp",
    norm="batch",
    placement="pre",
    input_scaling="minmax",
    batch_size=64,
    lr=1e-2,
    optimizer="adam",
    dropout=0.0,
    weight_decay=0.0,
    epochs=2,
    seed=0,
    device="cpu",
    threads=1,
    versions="",
)


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return scale("minmax", load("digits"))


def of(dataset: Dataset, **changes: str | int | float) -> Settings:
    return dataclasses.replace(SETTINGS, data_fingerprint=dataset.fingerprint, **changes)


def results(run: Run) -> tuple[str, list[Measurement], list[int]]:
    """What must be equal to the bit; seconds are not."""
    measured = [measurement for epoch in run.epochs for measurement in epoch.measurements]
    return run.status, measured, [epoch.steps for epoch in run.epochs]


def digests(out: Path) -> list[tuple[str, int, str]]:
    """The sha256 of model, optimizer and generators, of every epoch that was recorded by itself, from the file."""
    database = sqlite3.connect(out / "runs.sqlite")
    try:
        return database.execute("SELECT run, number, state FROM epochs ORDER BY run, number").fetchall()
    finally:
        database.close()


def interrupt_after(number: int) -> Callable[[Settings, Epoch], None]:
    def on_epoch(_: Settings, epoch: Epoch) -> None:
        if epoch.number == number:
            raise KeyboardInterrupt

    return on_epoch


def test_first_steps_against_a_plain_loop(digits: Dataset, tmp_path: Path) -> None:
    """The same network, data order and optimizer, written down as in torch's tutorials."""
    settings = of(digits, epochs=1, lr=0.1, optimizer="sgd", weight_decay=1e-3)
    with Store(tmp_path) as store:
        run = train(settings, digits, store)
    weights, order = (int(seed) for seed in np.random.SeedSequence(0).generate_state(2))
    torch.manual_seed(weights)
    net = build("mlp", norm="batch", placement="pre", input_shape=(1, 8, 8), classes=10)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3)
    x, y = torch.from_numpy(digits.x_train), torch.from_numpy(digits.y_train)
    for batch in torch.randperm(1438, generator=torch.Generator().manual_seed(order)).split(64):
        net.train()
        loss = F.cross_entropy(net(x[batch]), y[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    net.eval()
    logits = net(torch.from_numpy(digits.x_val))
    last = run.epochs[-1].measurements[-1]
    assert last.val_loss == pytest.approx(
        F.cross_entropy(logits, torch.from_numpy(digits.y_val)).item(), 1e-6
    )
    assert last.val_accuracy == np.mean(logits.argmax(1).numpy() == digits.y_val)


def test_measurements_before_the_first_step_and_after_every_quarter(digits: Dataset, tmp_path: Path) -> None:
    told: list[Epoch] = []
    with Store(tmp_path) as store:
        run = train(of(digits), digits, store, lambda settings, epoch: told.append(epoch))
    assert told == list(run.epochs)
    assert [[m.step for m in epoch.measurements] for epoch in run.epochs] == [
        [0, 5, 11, 17, 23],  # 1438 samples in batches of 64
        [28, 34, 40, 46],
    ]
    assert [epoch.steps for epoch in run.epochs] == [23, 23]
    assert all(epoch.seconds > 0 for epoch in run.epochs)
    first, *_, last = (m for epoch in run.epochs for m in epoch.measurements)
    assert first.val_loss == pytest.approx(np.log(10), rel=0.2)  # no wiser than chance
    assert last.val_accuracy > 0.85


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize(
    ("model", "norm"),
    [
        ("mlp", "batch"),
        ("cnn", "group"),
        ("sigmoid", "rms"),
        ("mlp", "renorm"),  # a schedule that counts steps
        ("sigmoid", "virtual"),  # a reference from before the first step
        ("mlp", "weight_norm"),  # first values from samples
        ("sigmoid", "spectral_norm"),  # vectors that move with every use
        ("lstm", "recurrent"),  # statistics for each step
    ],
)
def test_interrupted_runs_end_in_the_same_bits(
    model: str, norm: str, optimizer: str, digits: Dataset, tmp_path: Path
) -> None:
    settings = of(digits, model=model, norm=norm, optimizer=optimizer, dropout=0.3, epochs=4, batch_size=256)
    settings = dataclasses.replace(settings, threads=2 if (model, optimizer) == ("cnn", "adam") else 1)
    with Store(tmp_path / "whole", every=0) as store:
        expected = train(settings, digits, store)
    for number in (1, 3):
        with Store(tmp_path / "parts", every=0) as store, pytest.raises(KeyboardInterrupt):
            train(settings, digits, store, interrupt_after(number))
        torch.rand(7)  # whatever the process does in between
    resumed: list[int] = []
    with Store(tmp_path / "parts", every=0) as store:
        run = train(settings, digits, store, lambda settings, epoch: resumed.append(epoch.number))
    assert resumed == [4]
    assert results(run) == results(expected)
    assert digests(tmp_path / "parts") == digests(tmp_path / "whole")


def test_short_epochs_are_recorded_together(digits: Dataset, tmp_path: Path) -> None:
    """What is waiting to be recorded is lost with an interrupt, and trained again to the same bits."""
    settings = of(digits, dropout=0.3, epochs=4, batch_size=256)
    with Store(tmp_path / "whole", every=0) as store:
        expected = train(settings, digits, store)
    never = 3600.0
    with Store(tmp_path / "parts", every=0) as store, pytest.raises(KeyboardInterrupt):
        train(settings, digits, store, interrupt_after(1))
    with Store(tmp_path / "parts", every=never) as store, pytest.raises(KeyboardInterrupt):
        train(settings, digits, store, interrupt_after(3))
    told: list[int] = []
    with Store(tmp_path / "parts", every=never) as store:
        run = train(settings, digits, store, lambda settings, epoch: told.append(epoch.number))
    assert told == [2, 3, 4]
    assert results(run) == results(expected)
    whole, parts = digests(tmp_path / "whole"), digests(tmp_path / "parts")
    assert [state for _, _, state in parts] == [whole[0][2], "", "", whole[3][2]]
    assert not [*(tmp_path / "parts" / "states").iterdir()]


def test_a_run_whose_state_is_lost_begins_again_to_the_same_result(digits: Dataset, tmp_path: Path) -> None:
    with Store(tmp_path / "whole") as store:
        expected = train(of(digits), digits, store)
    with Store(tmp_path / "parts", every=0) as store, pytest.raises(KeyboardInterrupt):
        train(of(digits), digits, store, interrupt_after(1))
    for path in (tmp_path / "parts" / "states").iterdir():
        path.unlink()
    with Store(tmp_path / "parts") as store, pytest.warns(UserWarning, match="begins again"):
        assert results(train(of(digits), digits, store)) == results(expected)


def test_a_finished_run_is_not_trained_again(digits: Dataset, tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        first = train(of(digits), digits, store)
        assert train(of(digits), digits, store, interrupt_after(1)) == first


def test_the_seed_decides_and_nothing_around_it(digits: Dataset, tmp_path: Path) -> None:
    settings = of(digits, dropout=0.2, epochs=1)
    with Store(tmp_path / "a") as store:
        first = train(settings, digits, store)
        other = train(dataclasses.replace(settings, seed=1), digits, store)
    torch.manual_seed(99)
    with Store(tmp_path / "b") as store:
        assert results(train(settings, digits, store)) == results(first)
    assert results(other) != results(first)


def test_the_caller_s_generator_and_threads_are_as_before(digits: Dataset, tmp_path: Path) -> None:
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    with Store(tmp_path) as store:
        train(of(digits, epochs=1, threads=threads + 1), digits, store)
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), state)


def test_one_seed_gives_every_norm_the_same_data_order(digits: Dataset, tmp_path: Path) -> None:
    """Seen from outside: after an epoch the generator of the order stands at the same point."""
    orders = {}
    with Store(tmp_path, every=0) as store:
        for norm in NORMS:
            model = "lstm" if norm == "recurrent" else "cnn"
            settings = of(digits, norm=norm, model=model, batch_size=1000, dropout=0.1)
            with pytest.raises(KeyboardInterrupt):
                train(settings, digits, store, interrupt_after(1))
            state = store.state(settings)
            assert state is not None
            orders[norm] = state["generator.order"].numpy().tobytes()
    assert len(set(orders.values())) == 1


def small(samples: int, values: float = 1.0) -> Dataset:
    """A data set of two well separated classes."""
    random = np.random.default_rng(0)
    y = np.arange(samples) % 2
    x = (random.normal(0, 0.3, (samples, 4)) + 2 * y[:, None]).astype(np.float32) * np.float32(values)
    return Dataset("small", x, y, x[:8], y[:8], 2, f"small {samples} {values}", "minmax")


@pytest.mark.parametrize(
    ("samples", "batch_size", "steps"), [(33, 16, 2), (34, 16, 3), (32, 16, 2), (33, 33, 1), (5, 1, 5)]
)
def test_a_last_batch_of_one_sample_is_left_out(
    samples: int, batch_size: int, steps: int, tmp_path: Path
) -> None:
    data = small(samples)
    norms = ["none", "layer"] if batch_size == 1 else ["none", "layer", "batch"]
    with Store(tmp_path) as store:
        for norm in norms:
            run = train(of(data, norm=norm, batch_size=batch_size, epochs=1), data, store)
            assert run.status == "finished"
            assert [epoch.steps for epoch in run.epochs] == [steps]
            assert run.epochs[0].measurements[-1].step == steps


def test_a_loss_that_is_not_finite_is_recorded_as_divergence(tmp_path: Path) -> None:
    data = small(64, values=1e3)
    settings = of(data, norm="none", optimizer="sgd", lr=1e30, batch_size=4, epochs=5)
    with Store(tmp_path) as store:
        run = train(settings, data, store)
        assert run.status == "diverged"
        (epoch,) = run.epochs
        assert epoch.diverged
        assert epoch.steps < 4  # it ends at the step itself, not with the quarter of 4 steps
        (measured,) = epoch.measurements  # before the first step, the only one that could be taken
        assert np.isfinite(dataclasses.astuple(measured)).all()
        assert train(settings, data, store, interrupt_after(1)) == run


def test_a_validation_loss_that_is_not_finite_is_divergence_too(tmp_path: Path) -> None:
    data = small(64)
    far = np.full((512, 4), 3e38, np.float32)  # half of the labels are wrong, by as much
    data = dataclasses.replace(data, x_val=far, y_val=np.arange(512) % 2)
    with Store(tmp_path) as store:
        run = train(of(data, norm="none", batch_size=4, epochs=5), data, store)
    assert run.status == "diverged"
    assert [epoch.steps for epoch in run.epochs] == [4]  # as far as the first measurement while training
    assert run.epochs[0].measurements == ()


def test_weights_that_overflow_at_the_very_end_are_divergence(tmp_path: Path) -> None:
    """One step with a finite loss, and weights of no use after it: the measurement tells."""
    data = small(16, values=1e3)
    settings = of(data, norm="none", optimizer="sgd", lr=1e38, batch_size=16, epochs=1)
    with Store(tmp_path) as store:
        run = train(settings, data, store)
    assert run.status == "diverged"
    assert [epoch.steps for epoch in run.epochs] == [1]
    assert [m.step for m in run.epochs[0].measurements] == [0]


def test_losses_are_means_over_both_splits(tmp_path: Path) -> None:
    """More samples than one evaluation batch, and as many of training as of validation."""
    random = np.random.default_rng(0)
    x = random.normal(size=(5000, 4)).astype(np.float32)
    y = random.integers(0, 2, 5000)
    data = Dataset("noise", x[:3000], y[:3000], x[3000:], y[3000:], 2, "noise", "minmax")
    with Store(tmp_path) as store:
        run = train(of(data, epochs=1, batch_size=3000, norm="none", lr=1e-9), data, store)
    measured = run.epochs[0].measurements[0]
    torch.manual_seed(int(np.random.SeedSequence(0).generate_state(2)[0]))
    net = build("mlp", norm="none", placement="pre", input_shape=(4,), classes=2)
    loss = nn.CrossEntropyLoss()(net(torch.from_numpy(x[3000:])), torch.from_numpy(y[3000:])).item()
    assert measured.val_loss == pytest.approx(loss, rel=1e-6)
    part = torch.randperm(3000, generator=torch.Generator().manual_seed(0))[:2000]
    loss = nn.CrossEntropyLoss()(net(torch.from_numpy(x)[part]), torch.from_numpy(y)[part]).item()
    assert measured.train_loss == pytest.approx(loss, rel=1e-6)
    assert run.parameters == sum(parameter.numel() for parameter in net.parameters())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"batch_size": 0}, r"batch size must be 2 to 1438, .* got 0"),
        ({"batch_size": 1}, r"batch size must be 2 to 1438, .* for norm 'batch'; got 1"),
        ({"batch_size": 1439}, r"got 1439"),
        ({"norm": "ghost", "batch_size": 17}, r"norm 'ghost' takes 16 samples .* a batch of 17"),
        ({"norm": "none", "batch_size": 0}, r"batch size must be 1 to 1438"),
        ({"optimizer": "adm"}, r"unknown optimizer 'adm': .* did you mean 'adam'"),
        ({"norm": "bach"}, r"unknown norm 'bach': .* did you mean 'batch'"),
        ({"model": "mpl"}, r"unknown model 'mpl'"),
        ({"norm": "instance"}, r"norm 'instance' needs more than one value per channel"),
        ({"epochs": 0}, r"epochs must be 1 or more, got 0"),
        ({"threads": 0}, r"threads must be 1 or more, got 0"),
        ({"seed": -1}, r"seed must be 0 or more, got -1"),
        ({"lr": 0.0}, r"learning rate must be above 0 and finite, got 0"),
        ({"lr": float("nan")}, r"learning rate must be above 0 and finite, got nan"),
        ({"lr": float("inf")}, r"learning rate must be above 0 and finite, got inf"),
        ({"weight_decay": -1.0}, r"weight decay must be 0 or more and finite, got -1"),
        ({"dropout": 1.5}, r"dropout must be 0 or more and below 1, got 1.5"),
        ({"device": "gpu"}, r"device 'gpu' is not available"),
        ({"device": "meta"}, r"device 'meta' is not available"),
        ({"data_fingerprint": "other"}, r"its content has changed"),
        ({"input_scaling": "standard"}, r"scaled by 'standard', the data given is digits scaled by 'minmax'"),
    ],
)
def test_settings_that_make_no_sense(
    changes: dict[str, str | int | float], words: str, digits: Dataset, tmp_path: Path
) -> None:
    with Store(tmp_path) as store:
        with pytest.raises(InputError, match=words) as error:
            train(dataclasses.replace(of(digits), **changes), digits, store)
        assert store.runs() == []
    assert "\n" not in str(error.value)


def test_cuda_where_there_is_none(digits: Dataset, tmp_path: Path) -> None:
    absent = f"cuda:{torch.cuda.device_count()}"  # one more than there are
    with Store(tmp_path) as store, pytest.raises(InputError, match=f"device '{absent}' is not available"):
        train(of(digits, device=absent), digits, store)
