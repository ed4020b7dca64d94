"""A subject that does not fit is refused in one line that says what is missing; one that fits is measured."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from made_results import one_thread

from normkit.errors import InputError
from normkit.lab.studies import find
from normkit.lab.studies.study import Subject

FITTING = """
from torch import nn

def net():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 10))

def plain():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))

def narrow():
    return nn.Sequential(nn.Flatten(), nn.Linear(63, 16), nn.BatchNorm1d(16), nn.Linear(16, 10))

def other():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.BatchNorm1d(16), nn.Linear(16, 7))
"""
OF_MODELS = ("train-inference-gap", "inference-estimators")
OF_IMAGES = ("small-batch-norms", "cost-of-training", "ghost-size")


@pytest.fixture
def nets(tmp_path: Path) -> Path:
    path = tmp_path / "nets_of_a_user.py"
    path.write_text(FITTING)
    return path


def table(path: Path, samples: int, features: int = 5) -> str:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(samples, features)), np.arange(samples) % 2
    name = path / f"table{samples}.npz"
    np.savez(name, x=x, y=y)
    return str(name)


@pytest.mark.parametrize("name", OF_MODELS)
def test_networks_that_do_not_fit(name: str, nets: Path) -> None:
    study = find(name)
    study.check(Subject(model=f"{nets}:net"))
    for which, missing in (
        ("plain", "must have norms"),
        ("narrow", "does not take the samples of digits"),
        ("other", r"must give \(N, 10\), a score for each class of digits, got \[2, 7\]"),
    ):
        with pytest.raises(InputError, match=missing) as refusal:
            study.check(Subject(model=f"{nets}:{which}"))
        assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("name", OF_IMAGES)
def test_studies_of_images_refuse_tables(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=rf"{name} needs images.*table1000.npz are \[5\]"):
        find(name).check(Subject(data=table(tmp_path, 1000)))


@pytest.mark.parametrize("name", ["train-inference-gap", "rescue", "input-scaling", "without-gamma-beta"])
def test_too_few_samples_are_refused_and_tables_taken(name: str, tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=rf"{name} needs 6[04] training samples or more, .*table50.npz has 40"
    ):
        find(name).check(Subject(data=table(tmp_path, 50)))
    find(name).check(Subject(data=table(tmp_path, 1000)))


def test_a_network_of_the_user_is_measured(nets: Path) -> None:
    study = find("train-inference-gap")
    trial = next(t for t in study.trials("quick") if t.levels == {"batch": 64, "momentum": 0.003})
    with one_thread():
        measured = study.measure(trial, Subject(model=f"{nets}:net"))
    assert float(str(measured["running loss"])) > float(str(measured["exact loss"]))
