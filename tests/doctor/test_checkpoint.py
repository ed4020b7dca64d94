"""Weights in files: every format round trips, and nothing that could run code is loaded."""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from normkit.doctor.checkpoint import check_output, read_checkpoint, read_weights, write_weights
from normkit.errors import InputError


@pytest.mark.parametrize("name", ["a.safetensors", "a.pt", "a.pth"])
def test_there_and_back(name: str, tmp_path: Path) -> None:
    layer = nn.BatchNorm1d(3).bfloat16()
    layer.bias = layer.weight  # shared, and a view
    state = {**layer.state_dict(), "view": torch.arange(12.0).view(3, 4).T}
    write_weights(state, tmp_path / name)
    found = read_weights(tmp_path / name)
    assert sorted(found) == sorted(state)
    for key, value in state.items():
        torch.testing.assert_close(found[key], value, rtol=0, atol=0)
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("place", ["state_dict", "model_state_dict", "model"])
def test_where_training_loops_keep_it(place: str, tmp_path: Path) -> None:
    state = {f"module.{key}": value for key, value in nn.Linear(2, 2).state_dict().items()}
    torch.save({"epoch": 3, "optimizer": {"lr": 0.1}, place: state}, tmp_path / "a.pt")
    assert list(read_weights(tmp_path / "a.pt")) == ["weight", "bias"]


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("place", [(), ("state_dict",), ("model",), ("model", "state_dict")])
def test_what_else_a_file_holds_is_kept(place: tuple[str, ...], prefix: str, tmp_path: Path) -> None:
    layer = nn.BatchNorm1d(2)
    inner: Any = {**{prefix + key: value for key, value in layer.state_dict().items()}, "version": 7}
    for key in reversed(place):
        inner = {"epoch": 3, "optimizer": {"state": {0: torch.ones(2)}}, key: inner}
    torch.save(inner, tmp_path / "a.pt")
    checkpoint = read_checkpoint(tmp_path / "a.pt")
    assert sorted(checkpoint.weights) == sorted(layer.state_dict())
    assert checkpoint.others == (["epoch", "optimizer"] if place else [])
    new = {**checkpoint.weights, "running_mean": torch.tensor([5.0, 6.0])}
    write_weights(new, tmp_path / "b.pt", checkpoint)
    before, after = (torch.load(tmp_path / name, weights_only=True) for name in ("a.pt", "b.pt"))
    for key in place:
        assert list(after) == list(before)
        assert after["epoch"] == 3
        assert after["optimizer"]["state"][0].equal(torch.ones(2))
        before, after = before[key], after[key]
    assert list(after) == list(before)
    assert after["version"] == 7
    for key, value in before.items():
        if key == f"{prefix}running_mean":
            assert after[key].tolist() == [5, 6]
        elif key != "version":
            assert after[key].equal(value)


def test_metadata_and_names_are_kept_in_safetensors(tmp_path: Path) -> None:
    state = {f"module.{key}": value for key, value in nn.Linear(2, 2).state_dict().items()}
    save_file(state, tmp_path / "a.safetensors", {"format": "pt", "epoch": "3"})
    checkpoint = read_checkpoint(tmp_path / "a.safetensors")
    assert sorted(checkpoint.weights) == ["bias", "weight"]
    write_weights(checkpoint.weights, tmp_path / "b.safetensors", checkpoint)
    again = read_checkpoint(tmp_path / "b.safetensors")
    assert again.metadata == {"format": "pt", "epoch": "3"}
    assert sorted(again.content) == ["module.bias", "module.weight"]


class Fires:
    """What a pickle can do when it is loaded."""

    def __reduce__(self) -> object:
        return Path.touch, (Path("fired"),)


def test_code_is_refused_and_does_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for content in (Fires(), nn.Linear(2, 2), {"state_dict": nn.Linear(2, 2).state_dict(), "x": Fires()}):
        torch.save(content, "a.pt")
        with pytest.raises(
            InputError, match=r"^a\.pt is damaged or holds more than weights, and is not loaded"
        ):
            read_weights(Path("a.pt"))
    Path("a.pt").write_bytes(pickle.dumps(Fires()))
    with pytest.raises(InputError, match="not loaded"):
        read_weights(Path("a.pt"))
    assert not Path("fired").exists()


@pytest.mark.parametrize("name", ["a.safetensors", "a.pt"])
@pytest.mark.parametrize("kept", [0, 1, 100])
def test_damaged_files(name: str, kept: int, tmp_path: Path) -> None:
    write_weights(nn.Linear(2, 2).state_dict(), tmp_path / name)
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[:kept])
    with pytest.raises(InputError, match=rf"{name} (cannot be read|is damaged)") as caught:
        read_weights(tmp_path / name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content", [b"", b"e", b"PK\x03\x04", b"\x80\x02", b'{"a": 1}', bytes(range(256)) * 9]
)
def test_what_is_no_checkpoint_is_said_in_words(content: bytes, tmp_path: Path) -> None:
    """Whatever torch raises on it: EOFError, KeyError: 101, a page about zip archives."""
    (tmp_path / "a.pt").write_bytes(content)
    with pytest.raises(InputError) as caught:
        read_weights(tmp_path / "a.pt")
    assert re.fullmatch(
        r".*a\.pt (cannot be read: it is empty, damaged, cut off, or was not written by torch\.save|is damaged or "
        r"holds more than weights, and is not loaded, for it could run code: save model\.state_dict\(\))",
        str(caught.value),
    )


def test_other_contents(tmp_path: Path) -> None:
    for content in ([torch.zeros(2)], {"epoch": 3}, torch.zeros(2)):
        torch.save(content, tmp_path / "a.pt")
        with pytest.raises(InputError, match=r"must hold a state_dict, got .*: save model\.state_dict\(\)"):
            read_weights(tmp_path / "a.pt")
    with pytest.raises(InputError, match="there is no such file"):
        read_weights(tmp_path / "b.pt")


def test_outputs(tmp_path: Path) -> None:
    (tmp_path / "a.pt").touch()
    (tmp_path / "link.pt").symlink_to(tmp_path / "a.pt")
    check_output(tmp_path / "b.pt", tmp_path / "a.pt", None)
    with pytest.raises(InputError, match="is read, and is not written over"):
        check_output(tmp_path / "link.pt", tmp_path / "a.pt")
    with pytest.raises(InputError, match=r"a checkpoint ends in \.safetensors, \.pt"):
        check_output(tmp_path / "b.json")
    with pytest.raises(InputError, match="cannot be written"):
        write_weights({}, tmp_path / "absent" / "b.pt")
