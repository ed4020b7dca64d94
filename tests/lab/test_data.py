"""Data: what comes in is split, labelled and fingerprinted the same way always; what is unfit is refused."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest

from normkit.errors import InputError
from normkit.lab.data import load


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "data.npz"


def samples(n: int = 40, features: int = 3) -> np.ndarray:
    return np.random.default_rng(1).normal(size=(n, features))


def labels(n: int = 40) -> np.ndarray:
    return np.arange(n) % 4


def refusal(path: Path | str) -> str:
    with pytest.raises(InputError) as error:
        load(str(path))
    message = str(error.value)
    assert "\n" not in message
    return message


def test_digits_are_images_of_raw_pixels_split_by_class() -> None:
    digits = load("digits")
    assert digits.x_train.shape[1:] == digits.x_val.shape[1:] == (1, 8, 8)
    assert digits.x_train.dtype == digits.x_val.dtype == np.float32
    assert digits.y_train.dtype == digits.y_val.dtype == np.int64
    assert len(digits.x_train) + len(digits.x_val) == 1797
    assert (digits.x_train.min(), digits.x_train.max()) == (0, 16)
    assert digits.classes == 10
    counts = np.bincount(digits.y_train) + np.bincount(digits.y_val)
    np.testing.assert_array_equal(np.bincount(digits.y_val), np.round(counts / 5))


def test_splits_share_no_sample_and_lose_none(file: Path) -> None:
    x = np.arange(80.0).reshape(40, 2)  # every sample is another
    np.savez(file, x=x, y=labels())
    data = load(str(file))
    both = np.concatenate([data.x_train, data.x_val])
    np.testing.assert_array_equal(both[np.argsort(both[:, 0])], x)
    for split, y in ((data.x_train, data.y_train), (data.x_val, data.y_val)):
        np.testing.assert_array_equal(y, split[:, 0] // 2 % 4)  # each sample kept its label


def test_fingerprint_follows_the_content(file: Path) -> None:
    def fingerprint(x: np.ndarray, y: np.ndarray) -> str:
        np.savez(file, x=x, y=y)
        return load(str(file)).fingerprint

    x = samples()
    first = fingerprint(x, labels())
    assert fingerprint(x.copy(), labels()) == first
    changed = x.copy()
    changed[7, 1] += 1
    assert fingerprint(changed, labels()) != first
    assert fingerprint(x, labels()[::-1]) != first
    assert fingerprint(x.reshape(40, 3, 1, 1), labels()) != first


def test_labels_become_ranks(file: Path) -> None:
    np.savez(file, x=samples(), y=np.array([-5, 7, 100, 2**40])[labels()])
    data = load(str(file))
    assert data.classes == 4
    assert set(data.y_train) == set(data.y_val) == {0, 1, 2, 3}


def test_two_samples_of_a_class_are_one_for_each_split(file: Path) -> None:
    np.savez(file, x=samples(4), y=[0, 0, 1, 1])
    data = load(str(file))
    assert sorted(data.y_train) == sorted(data.y_val) == [0, 1]


def test_unknown_name_gets_the_names_and_the_nearest() -> None:
    message = refusal("minst")
    assert "digits, mnist, fashion-mnist, cifar10, FILE.npz" in message
    assert "did you mean 'mnist'?" in message


def array_bytes(array: np.ndarray) -> bytes:
    with io.BytesIO() as buffer:
        np.save(buffer, array, allow_pickle=True)
        return buffer.getvalue()


def test_missing_file(file: Path) -> None:
    assert refusal(file) == f"{file}: no such file"


def test_folder_in_place_of_a_file(file: Path) -> None:
    file.mkdir()
    assert refusal(file) == f"{file}: no such file"


@pytest.mark.parametrize("content", [b"", b"not an archive", array_bytes(samples())])
def test_other_file(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    assert "not an .npz file, or a truncated one" in refusal(file)


def test_every_truncation_is_refused(file: Path) -> None:
    np.savez_compressed(file, x=samples(), y=labels())
    whole = file.read_bytes()
    for length in range(0, len(whole), 7):
        file.write_bytes(whole[:length])
        assert "truncated" in refusal(file)


def test_damage_is_refused(file: Path) -> None:
    """Any byte of the arrays may be wrong: their checksums tell."""
    np.savez_compressed(file, x=samples(), y=labels())
    whole = file.read_bytes()
    with zipfile.ZipFile(file) as archive:
        x, y = archive.infolist()
    for position in (
        *range(x.header_offset + 60, x.header_offset + x.compress_size, 5),
        *range(y.header_offset + 60, y.header_offset + y.compress_size, 5),
    ):
        file.write_bytes(whole[:position] + bytes([whole[position] ^ 0xFF]) + whole[position + 1 :])
        assert "damaged" in refusal(file)


def test_python_objects_are_not_unpickled(file: Path) -> None:
    np.savez(file, x=samples(), y=np.array([object()] * 40, dtype=object))
    assert "holds Python objects, which are not loaded" in refusal(file)


def test_header_that_promises_too_much(file: Path) -> None:
    header = array_bytes(samples()).replace(b"(40, 3), }      ", b"(400000000000, 3), }")
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("x.npy", header)
        archive.writestr("y.npy", array_bytes(labels()))
    assert "damaged" in refusal(file)


def test_missing_arrays(file: Path) -> None:
    np.savez(file, x=samples(), label=labels())
    assert refusal(file) == f"{file}: arrays 'x' and 'y' are needed, it holds x, label"


@pytest.mark.parametrize(
    ("x", "y", "words"),
    [
        (samples().astype(complex), labels(), "its dtype is complex128"),
        (samples().astype(str), labels(), "x must hold real numbers"),
        (samples()[:, 0], labels(), "its shape is (40,)"),
        (samples().reshape(40, 3, 1), labels(), "its shape is (40, 3, 1)"),
        (np.zeros((40, 0)), labels(), "its shape is (40, 0)"),
        (np.zeros((0, 3)), np.zeros(0, dtype=int), "its shape is (0, 3)"),
        (samples(), labels(39), "one label per sample, 40 in all; its shape is (39,)"),
        (samples(), labels()[:, None], "its shape is (40, 1)"),
        (samples(), labels().astype(float), "y must hold integers, its dtype is float64"),
        (samples(), np.full(40, 3), "at least 2 classes are needed, every label in y is 3"),
        (samples(), np.r_[labels(39), 9], "at least 2 samples, one for each split; class 9 has 1"),
    ],
)
def test_unfit_arrays(file: Path, x: np.ndarray, y: np.ndarray, words: str) -> None:
    np.savez(file, x=x, y=y)
    message = refusal(file)
    assert words in message
    assert message.startswith(f"{file}: ")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e39])  # the last is beyond float32
def test_values_that_are_not_finite(file: Path, bad: float) -> None:
    x = samples().reshape(10, 1, 4, 3)
    x[3, 0, 1, 2] = x[8, 0, 0, 0] = bad
    np.savez(file, x=x, y=labels(10))
    message = refusal(file)
    assert "2 of its 120 values are not" in message
    assert "the first at [3, 0, 1, 2]" in message
