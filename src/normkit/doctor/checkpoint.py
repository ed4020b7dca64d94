"""Weights in files: read so that no code of the file can run, written beside and never over what was read."""

from __future__ import annotations

import os
import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.utils import consume_prefix_in_state_dict_if_present

from normkit.errors import InputError, optional

_SAFE, _PICKLED = (".safetensors",), (".pt", ".pth", ".ckpt", ".bin")
SUFFIXES = _SAFE + _PICKLED
_PLACES = ("state_dict", "model_state_dict", "model")  # where training loops keep it, among other things


def is_checkpoint(target: str) -> bool:
    """Whether a target names a file of weights.

    >>> is_checkpoint("runs/last.pt"), is_checkpoint("net.py:net")
    (True, False)
    """
    return target.endswith(SUFFIXES)


def read_weights(path: Path) -> dict[str, Tensor]:
    """The state_dict in a file, on the CPU.

    `.safetensors` cannot carry code; `.pt`, `.pth`, `.ckpt` and `.bin` are read with `weights_only=True`, and not at
    all where that refuses them. The state_dict may be an entry of the file, `state_dict`, `model_state_dict` or
    `model`; the prefix `module.` of DataParallel and DistributedDataParallel is left out.

    Raises:
        InputError: no such file; another suffix; a file that is damaged, needs code, or holds no state_dict.
    """
    if not path.is_file():
        raise InputError(f"{path}: there is no such file")
    found = _read(path)
    for place in _PLACES:
        if isinstance(found, Mapping) and isinstance(found.get(place), Mapping):
            found = found[place]
            break
    if not isinstance(found, Mapping) or not any(isinstance(value, Tensor) for value in found.values()):
        raise InputError(
            f"{path} must hold a state_dict, got {type(found).__name__}: save model.state_dict()"
        )
    state = {str(key): value for key, value in found.items() if isinstance(value, Tensor)}
    consume_prefix_in_state_dict_if_present(state, "module.")
    return state


def _read(path: Path) -> Any:
    if path.suffix in _SAFE:
        files = optional("safetensors.torch", "lab")
        try:
            return files.load_file(path)
        except Exception as error:  # safetensors' own error has no stable place
            raise InputError(f"{path} cannot be read as safetensors: {_first_line(error)}") from error
    _check_suffix(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what it refuses anyway
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{path} is damaged or holds more than weights, and is not loaded, for it could run code: save "
            "model.state_dict()"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise InputError(f"{path} cannot be read: {_first_line(error)}") from error


def write_weights(state: Mapping[str, Tensor], path: Path) -> None:
    """Write a state_dict, in the format of the suffix; the file is there whole, or is as it was.

    Raises:
        InputError: another suffix; a folder that is not there or cannot be written.
    """
    _check_suffix(path)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        if path.suffix in _SAFE:
            # Without what tensors share, which safetensors refuses.
            own = {key: value.detach().clone().contiguous() for key, value in state.items()}
            optional("safetensors.torch", "lab").save_file(own, part)
        else:
            torch.save(dict(state), part)
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
