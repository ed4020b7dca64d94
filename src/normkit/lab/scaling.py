"""Input scaling, fitted on the training split alone: the validation split must not leak into it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from normkit.errors import InputError, unknown
from normkit.lab.data import Dataset

SCALINGS = ("none", "minmax", "standard", "log")


def scale(name: str, dataset: Dataset) -> Dataset:
    """Scale both splits by what the training split shows, per feature or, for images, per channel.

    ========== ===============================================================
    `none`     x
    `minmax`   (x - min) / (max - min): the training split spans 0 to 1
    `standard` (x - mean) / deviation (biased): zero mean, unit deviation
    `log`      log(1 + x), for data without negative values
    ========== ===============================================================

    A feature that never varies in the training split is shifted and not divided, so it stays finite.

    Raises:
        InputError: an unknown name, data that has been scaled before, or negative values under `log`.
    """
    if name not in SCALINGS:
        raise unknown("input scaling", name, SCALINGS)
    if dataset.scaling != "none":
        raise InputError(
            f"data is scaled once: {dataset.name} has been scaled by {dataset.scaling!r} already"
        )
    if name == "none":
        return dataset
    if name == "log":
        _check_not_negative(dataset)
        x_train, x_val = np.log1p(dataset.x_train), np.log1p(dataset.x_val)
    else:
        shift, span = _minmax(dataset.x_train) if name == "minmax" else _standard(dataset.x_train)
        x_train, x_val = ((x - shift) / span for x in (dataset.x_train, dataset.x_val))
    return replace(dataset, x_train=x_train.astype(np.float32), x_val=x_val.astype(np.float32), scaling=name)


def _minmax(x: NDArray[np.float32]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    low = x.min(_shared(x), keepdims=True).astype(np.float64)
    span = x.max(_shared(x), keepdims=True) - low
    return low, np.where(span > 0, span, 1.0)


def _standard(x: NDArray[np.float32]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    mean = x.mean(_shared(x), keepdims=True, dtype=np.float64)
    deviation = np.sqrt(np.square(x - mean).mean(_shared(x), keepdims=True))
    varies = x.max(_shared(x), keepdims=True) > x.min(_shared(x), keepdims=True)  # exact, a deviation is not
    return mean, np.where(varies, deviation, 1.0)


def _shared(x: NDArray[np.float32]) -> tuple[int, ...]:
    """The axes over which samples share a statistic: all but the feature's or the channel's."""
    return (0, *range(2, x.ndim))


def _check_not_negative(dataset: Dataset) -> None:
    low = min(dataset.x_train.min(), dataset.x_val.min())
    if low < 0:
        raise InputError(
            f"input scaling 'log' needs values of 0 or more, the least of {dataset.name} is {low:g}: "
            "use 'minmax' or 'standard'"
        )
