"""Weights in files: read so that no code of the file can run, written beside and never over what was read."""

from __future__ import annotations

import os
import pickle
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from normkit.errors import InputError, optional

_SAFE, _PICKLED = (".safetensors",), (".pt", ".pth", ".ckpt", ".bin")
SUFFIXES = _SAFE + _PICKLED
_WRAPPED = "module."
_PLACES = ("state_dict", "model_state_dict", "model")  # where training loops keep it, among other things


def is_checkpoint(target: str) -> bool:
    """Whether a target names a file of weights.

    >>> is_checkpoint("runs/last.pt"), is_checkpoint("net.py:net")
    (True, False)
    """
    return target.endswith(SUFFIXES)


@dataclass(frozen=True)
class Checkpoint:
    """A file of weights, and what else is in it.

    Attributes:
        weights: the state_dict, by the names that the model has; on the CPU.
        content: all of the file.
        place: the keys of the state_dict in it, one within the other; none where the file is a state_dict.
        prefix: what stands before each name in the file.
        metadata: of `.safetensors`.
    """

    weights: dict[str, Tensor]
    content: Any
    place: tuple[str, ...] = ()
    prefix: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict[str, str])

    @property
    def others(self) -> list[str]:
        """What the file has beside the state_dict."""
        return [str(key) for key in self.content if key != self.place[0]] if self.place else []

    def replaced(self, state: Mapping[str, Tensor]) -> Any:
        """All of the file, with other weights at their place and under the names that they have there."""
        new = {self.prefix + key: value for key, value in state.items()}
        *_, inner = contents = [self.content]
        for key in self.place:
            inner = inner[key]
            contents.append(inner)
        changed: Any = {key: new.get(str(key), value) for key, value in inner.items()}
        for key, outer in zip(reversed(self.place), reversed(contents[:-1]), strict=True):
            changed = {**outer, key: changed}
        return changed


def keeps_others(path: Path) -> bool:
    """Whether a file of this name can hold more than tensors."""
    return path.suffix not in _SAFE


def read_weights(path: Path) -> dict[str, Tensor]:
    """The state_dict in a file; see `read_checkpoint`."""
    return read_checkpoint(path).weights


def read_checkpoint(path: Path) -> Checkpoint:
    """What is in a file, on the CPU.

    `.safetensors` cannot carry code; `.pt`, `.pth`, `.ckpt` and `.bin` are read with `weights_only=True`, and not at
    all where that refuses them. The state_dict may be an entry of the file, `state_dict`, `model_state_dict` or
    `model`; the prefix `module.` of DataParallel and DistributedDataParallel is left out of its names.

    Raises:
        InputError: no such file; another suffix; a file that is damaged, needs code, or holds no state_dict.
    """
    if not path.is_file():
        raise InputError(f"{path}: there is no such file")
    _check_suffix(path)
    content, metadata = _read_safe(path) if path.suffix in _SAFE else (_read_pickled(path), {})
    place: list[str] = []
    found: Any = content
    while isinstance(found, Mapping):
        key = next((key for key in _PLACES if isinstance(found.get(key), Mapping)), None)
        if key is None:
            break
        place.append(key)
        found = found[key]
    if not isinstance(found, Mapping) or not any(isinstance(value, Tensor) for value in found.values()):
        raise InputError(
            f"{path} must hold a state_dict, got {type(found).__name__}: save model.state_dict()"
        )
    tensors = {str(key): value for key, value in found.items() if isinstance(value, Tensor)}
    prefix = _WRAPPED if all(key.startswith(_WRAPPED) for key in tensors) else ""
    weights = {key.removeprefix(prefix): value for key, value in tensors.items()}
    return Checkpoint(weights, content, tuple(place), prefix, metadata)


def _read_safe(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    files = optional("safetensors", "lab")
    try:
        with files.safe_open(path, "pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except Exception as error:  # safetensors' own error has no stable place
        raise InputError(f"{path} cannot be read as safetensors: {_first_line(error)}") from error


def _read_pickled(path: Path) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what it refuses anyway
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{path} is damaged or holds more than weights, and is not loaded, for it could run code: save "
            "model.state_dict()"
        ) from error
    except OSError as error:
        raise InputError(f"{path} cannot be read: {_first_line(error)}") from error
    except (
        Exception
    ) as error:  # what a damaged file raises in torch is of any type, and its message of any kind
        raise InputError(
            f"{path} cannot be read: it is empty, damaged, cut off, or was not written by torch.save"
        ) from error


def write_weights(state: Mapping[str, Tensor], path: Path, like: Checkpoint | None = None) -> None:
    """Write a state_dict, in the format of the suffix; the file is there whole, or is as it was.

    Args:
        state: by the names that the model has.
        path: of `.safetensors`, `.pt` and their like.
        like: the checkpoint that it replaces: what else that holds is written too, but to `.safetensors`, which is of
            tensors alone.

    Raises:
        InputError: another suffix; a folder that is not there or cannot be written.
    """
    _check_suffix(path)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        if path.suffix in _SAFE:
            # Without what tensors share, which safetensors refuses.
            prefix, metadata = ("", {}) if like is None else (like.prefix, dict(like.metadata))
            own = {prefix + key: value.detach().clone().contiguous() for key, value in state.items()}
            optional("safetensors.torch", "lab").save_file(own, part, metadata or None)
        else:
            torch.save(dict(state) if like is None else like.replaced(state), part)
        part.replace(path)
    except (OSError, RuntimeError) as error:
        raise InputError(f"{path} cannot be written: {_first_line(error)}") from error
    finally:
        part.unlink(missing_ok=True)


def check_output(path: Path, *inputs: Path | None) -> None:
    """Refuse an output of another suffix, and one that is an input too.

    Raises:
        InputError: it is one of those.
    """
    _check_suffix(path)
    if any(other is not None and path.resolve() == other.resolve() for other in inputs):
        raise InputError(f"{path} is read, and is not written over: name another file")


def _check_suffix(path: Path) -> None:
    if path.suffix not in SUFFIXES:
        raise InputError(f"a checkpoint ends in {', '.join(SUFFIXES)}, got {path}")


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
