"""Data: a name or a file in; a training and a validation split out, with a fingerprint of both."""

from __future__ import annotations

import hashlib
import socket
import warnings
import zipfile
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any
from zlib import error as ZlibError

import numpy as np
from numpy.typing import NDArray

from normkit.errors import InputError, optional, unknown

# name: (name on OpenML, shape of an image). Each keeps its official test split as the last rows.
_OPENML = {
    "mnist": ("mnist_784", (1, 28, 28)),
    "fashion-mnist": ("Fashion-MNIST", (1, 28, 28)),
    "cifar10": ("CIFAR_10", (3, 32, 32)),
}
_OPENML_TEST_ROWS = 10_000
_OPENML_TIMEOUT = 30.0  # seconds without an answer; scikit-learn itself would wait for ever

NAMES = ("digits", *_OPENML)


@dataclass(frozen=True)
class Dataset:
    """Samples as float32, `(N, F)` or `(N, C, H, W)`, and labels as int64 from 0 to `classes - 1`."""

    name: str
    x_train: NDArray[np.float32]
    y_train: NDArray[np.int64]
    x_val: NDArray[np.float32]
    y_val: NDArray[np.int64]
    classes: int
    fingerprint: str  # sha256 of the unscaled arrays, split by split
    scaling: str = "none"  # what has been applied to the samples since they were loaded


def load(name: str, *, home: Path | None = None) -> Dataset:
    """Load a data set by one of `NAMES`, or an `.npz` file with arrays `x` and `y` by its path.

    Pixels come as stored (digits 0 to 16, the others 0 to 255). `mnist`, `fashion-mnist` and
    `cifar10` are downloaded from OpenML once and cached in `home` (scikit-learn's data folder unless
    given); their official test images are the validation split. `digits` and files are split 80/20,
    class by class, always the same way.

    Raises:
        InputError: an unknown name, no network, or a file that is missing, damaged or unfit.
    """
    if name == "digits":
        digits = optional("sklearn.datasets", "lab").load_digits()
        x, y = digits.images[:, None], digits.target
        return _dataset(name, x, y, _held_out(name, y))
    if name in _OPENML:
        x, y = _fetch(name, home)
        return _dataset(name, x, y, np.arange(len(y)) >= len(y) - _OPENML_TEST_ROWS)
    if name.lower().endswith(".npz"):
        x, y = _read_npz(Path(name))
        return _dataset(name, x, y, _held_out(name, y))
    if Path(name).suffix or Path(name).exists():
        raise InputError(f"{name}: files are read as .npz alone; write one with np.savez(path, x=x, y=y)")
    raise unknown("data set", name, [*NAMES, "FILE.npz"])


def _dataset(name: str, x: NDArray[Any], y: NDArray[Any], held: NDArray[np.bool_]) -> Dataset:
    """Split by the mask `held`, and rename the labels to 0, 1, ... in their sorted order."""
    x = x.astype(np.float32, copy=False)
    labels, y = np.unique(y, return_inverse=True)
    arrays = (x[~held], y[~held].astype(np.int64), x[held], y[held].astype(np.int64))
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(repr(array.shape).encode())
        digest.update(array.data)
    return Dataset(name, *arrays, classes=len(labels), fingerprint=digest.hexdigest())


def _held_out(name: str, y: NDArray[Any]) -> NDArray[np.bool_]:
    """Mask of the validation fifth of each class: the same for every run, so that seeds share the split."""
    order = np.random.default_rng(0).permutation(len(y))
    held = np.zeros(len(y), dtype=bool)
    for label in np.unique(y):
        members = order[y[order] == label]
        if len(members) < 2:
            raise InputError(
                f"{name}: every class needs at least 2 samples, one for each split; class {label} has 1"
            )
        held[members[: max(1, round(len(members) / 5))]] = True
    return held


def _fetch(name: str, home: Path | None) -> tuple[NDArray[Any], NDArray[Any]]:
    """Samples `(N, C, H, W)` and labels from OpenML, or from the cache of an earlier download."""
    datasets = optional("sklearn.datasets", "lab")
    openml_name, shape = _OPENML[name]
    try:
        with _timeout(_OPENML_TIMEOUT), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a retry is not the reader's business, a failure is raised
            x, y = datasets.fetch_openml(
                openml_name,
                version=1,
                data_home=home,
                as_frame=False,
                parser="liac-arff",  # the one that does not need pandas
                n_retries=1,
                delay=0.1,
                return_X_y=True,
            )
    except (OSError, HTTPException) as failure:
        raise InputError(
            f"{name} comes from openml.org, and that failed ({_one_line(failure)}): "
            "check the network, or use --data digits, which needs none"
        ) from failure
    except (ValueError, LookupError, EOFError, ZlibError) as damage:
        cache = Path(datasets.get_data_home(home)) / "openml"
        raise InputError(
            f"{name}: the download is damaged ({_one_line(damage)}): delete {cache} and try again, "
            "or use --data digits"
        ) from damage
    if x.shape[1] != np.prod(shape) or len(x) <= _OPENML_TEST_ROWS:
        raise InputError(
            f"{name}: over {_OPENML_TEST_ROWS} rows of {np.prod(shape)} pixels are expected, got {x.shape}"
        )
    _check_finite(name, x)
    return x.reshape(-1, *shape), y.astype(str)


@contextmanager
def _timeout(seconds: float) -> Generator[None]:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _read_npz(path: Path) -> tuple[NDArray[Any], NDArray[Any]]:
    """The arrays `x` (float32) and `y` (integers) of a file, once nothing is wrong with them."""
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            arrays = {key: file[key] for key in ("x", "y") if key in file.files}
            keys = file.files
    except Exception as damage:  # a damaged archive can raise whatever zip, zlib and npy readers know
        raise InputError(_unreadable(path, damage)) from damage
    if len(arrays) < 2:
        raise InputError(f"{path}: arrays 'x' and 'y' are needed, it holds {', '.join(keys) or 'none'}")
    x, y = arrays["x"], arrays["y"]
    _check_samples(path, x)
    _check_labels(path, y, len(x))
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and is reported as such
        x = x.astype(np.float32)
    _check_finite(str(path), x)
    return x, y


def _unreadable(path: Path, damage: Exception) -> str:
    if isinstance(damage, OSError):
        return f"{path}: cannot be read ({damage.strerror or damage})"
    if not zipfile.is_zipfile(path):
        return f"{path}: not an .npz file, or a truncated one; write it with np.savez(path, x=x, y=y)"
    if "Object arrays" in str(damage):
        return f"{path}: holds Python objects, which are not loaded; save x and y as plain numeric arrays"
    return f"{path}: damaged ({_one_line(damage)})"


def _check_samples(path: Path, x: NDArray[Any]) -> None:
    if x.dtype.kind not in "biuf":
        raise InputError(f"{path}: x must hold real numbers, its dtype is {x.dtype}")
    if x.ndim not in (2, 4) or x.size == 0:
        raise InputError(
            f"{path}: x must be (samples, features) or (samples, channels, height, width), "
            f"none of them 0; its shape is {x.shape}; x[:, None] gives images without channels theirs"
        )


def _check_labels(path: Path, y: NDArray[Any], samples: int) -> None:
    if y.dtype.kind not in "biu":
        raise InputError(
            f"{path}: y must hold integers, its dtype is {y.dtype}: np.unique(y, return_inverse=True)[1] gives them"
        )
    if y.shape != (samples,):
        raise InputError(
            f"{path}: y must have one label per sample, {samples} in all; its shape is {y.shape}"
        )
    if len(np.unique(y)) < 2:
        raise InputError(f"{path}: at least 2 classes are needed, every label in y is {y[0]}")


def _check_finite(where: str, x: NDArray[Any]) -> None:
    bad = np.argwhere(~np.isfinite(x))
    if len(bad):
        first = ", ".join(map(str, bad[0]))
        raise InputError(
            f"{where}: x must be finite in float32, {len(bad)} of its {x.size} values are not, "
            f"the first at [{first}]"
        )


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
