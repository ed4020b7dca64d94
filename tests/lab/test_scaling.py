"""Input scaling against scikit-learn's scalers, and that the validation split never enters a fit."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from sklearn.preprocessing import MinMaxScaler, StandardScaler

from normkit.errors import InputError
from normkit.lab.data import Dataset
from normkit.lab.scaling import SCALINGS, scale


def dataset(x_train: np.ndarray, x_val: np.ndarray) -> Dataset:
    x_train, x_val = x_train.astype(np.float32), x_val.astype(np.float32)
    y_train, y_val = np.zeros(len(x_train), np.int64), np.zeros(len(x_val), np.int64)
    return Dataset("made", x_train, y_train, x_val, y_val, 2, "fingerprint")


@pytest.fixture
def flat() -> Dataset:
    random = np.random.default_rng(0)
    spread = np.array([1.0, 10.0, 1e-3, 5.0])
    return dataset(random.normal(3, spread, (50, 4)), random.normal(9, spread, (20, 4)))


@pytest.fixture
def images() -> Dataset:
    random = np.random.default_rng(1)
    spread = np.array([1.0, 40.0, 7.0]).reshape(3, 1, 1)
    return dataset(random.normal(3, spread, (50, 3, 5, 4)), random.normal(9, spread, (20, 3, 5, 4)))


def by_channel(x: np.ndarray) -> np.ndarray:
    """(N, C, H, W) as rows of channels, which is how scikit-learn's scalers want them."""
    return np.moveaxis(x, 1, -1).reshape(-1, x.shape[1])


@pytest.mark.parametrize(("name", "scaler"), [("minmax", MinMaxScaler()), ("standard", StandardScaler())])
@pytest.mark.parametrize("kind", ["flat", "images"])
def test_agrees_with_scikit_learn(
    name: str, scaler: MinMaxScaler, kind: str, request: pytest.FixtureRequest
) -> None:
    data: Dataset = request.getfixturevalue(kind)
    rows = by_channel if kind == "images" else np.asarray
    scaler.fit(rows(data.x_train).astype(np.float64))
    scaled = scale(name, data)
    for before, after in ((data.x_train, scaled.x_train), (data.x_val, scaled.x_val)):
        assert after.dtype == np.float32
        assert after.shape == before.shape
        expected = scaler.transform(rows(before).astype(np.float64))
        np.testing.assert_allclose(rows(after), expected, rtol=1e-7, atol=1e-7)  # one rounding to float32
    assert scaled.scaling == name


@pytest.mark.parametrize("name", SCALINGS)
def test_fit_ignores_the_validation_split(name: str, images: Dataset) -> None:
    images = replace(images, x_train=np.abs(images.x_train), x_val=np.abs(images.x_val))
    other = replace(images, x_val=images.x_val * 1000)
    np.testing.assert_array_equal(scale(name, images).x_train, scale(name, other).x_train)


def test_none_changes_nothing(flat: Dataset) -> None:
    assert scale("none", flat) is flat


def test_log_is_log1p(flat: Dataset) -> None:
    data = replace(flat, x_train=np.abs(flat.x_train), x_val=np.abs(flat.x_val))
    np.testing.assert_allclose(np.expm1(scale("log", data).x_val), data.x_val, rtol=1e-5)
    # 1e-5: expm1 magnifies float32's 6e-8 by the largest value, below 60


def test_log_of_negative_values_names_the_least(flat: Dataset) -> None:
    data = replace(flat, x_train=np.abs(flat.x_train), x_val=np.abs(flat.x_val))
    data.x_val[3, 2] = -2.5  # in the validation split alone
    with pytest.raises(InputError, match=r"values of 0 or more, the least of made is -2\.5: use 'minmax'"):
        scale("log", data)


@pytest.mark.parametrize("name", ["minmax", "standard"])
@pytest.mark.parametrize("value", [0.0, 0.1, 1e6 + 1 / 3, 3e38])
def test_a_feature_that_never_varies_stays_finite(name: str, value: float) -> None:
    x_train, x_val = np.full((1001, 2), value), np.full((7, 2), value)
    x_val[0] = value * 0.5 + 1
    scaled = scale(name, dataset(x_train, x_val))
    # zero up to the float64 mean's own rounding, which no division has magnified
    np.testing.assert_allclose(scaled.x_train, 0, atol=1e-12 * max(value, 1))
    assert np.isfinite(scaled.x_val).all()
    assert np.abs(scaled.x_val[0]).min() > 0.4


def test_scaling_twice_is_refused(flat: Dataset) -> None:
    with pytest.raises(InputError, match="scaled once: made has been scaled by 'minmax' already"):
        scale("standard", scale("minmax", flat))


def test_unknown_scaling(flat: Dataset) -> None:
    with pytest.raises(InputError, match=r"unknown input scaling 'minmx': .* did you mean 'minmax'"):
        scale("minmx", flat)
