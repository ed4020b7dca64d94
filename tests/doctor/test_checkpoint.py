"""Weights in files: every format round trips, and nothing that could run code is loaded."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from torch import nn

from normkit.doctor.checkpoint import check_output, read_weights, write_weights
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
