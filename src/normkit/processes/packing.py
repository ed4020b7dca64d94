"""Process groups in copies and pickles of layers, where torch's groups cannot go themselves."""

from __future__ import annotations

import warnings
from typing import Any

import torch.distributed as dist


class Packed:
    """A group on its way into a copy, which shares it, or into a pickle, which takes its name along."""

    def __init__(self, group: dist.ProcessGroup | None) -> None:
        self.group = group

    def __deepcopy__(self, memo: object) -> Packed:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        assert self.group is not None
        return _named, (self.group.group_name,)


def _named(name: str) -> Packed:
    try:
        resolve: Any = dist.distributed_c10d._resolve_process_group  # pyright: ignore
        return Packed(resolve(name))
    except (AttributeError, RuntimeError, ValueError):
        warnings.warn(f"there is no process group {name!r} here: layers that had it are local", stacklevel=2)
        return Packed(None)
