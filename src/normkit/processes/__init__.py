"""Statistics shared by processes: each brings its moments, and all hold the same merged ones, to the bit.

`share` is the way in: a norm asks it, once per forward pass, for its part in a group. `merge` is what is
computed, `line` how the processes make sure that they compute the same thing, `board` how they find out what
went wrong.
"""

from __future__ import annotations

import itertools
from typing import Any, Literal, TypeAlias

import torch
import torch.distributed as dist
from torch import Tensor

from normkit.processes.line import Call, Layer, line_of
from normkit.processes.merge import Share
from normkit.processes.packing import Packed
from normkit.processes.runs import gather_runs

__all__ = ["NOBODY", "Group", "Layer", "Share"]
__all__ += [
    "check_group",
    "evaluates",
    "exchange",
    "name_of",
    "new_layer",
    "packed",
    "runs_of_all",
    "several",
]
__all__ += ["share", "summed", "total", "unpacked"]

NOBODY = Layer(0, "a function")  # who calls without being a layer
_made = itertools.count(1)

Group: TypeAlias = "dist.ProcessGroup | Literal['world'] | None"


def check_group(group: object) -> None:
    """A process group, "world" for all processes there are at the time of a forward pass, or None.

    Raises:
        TypeError: anything else.
    """
    if group is None or group == "world":
        return
    if not dist.is_available() or not isinstance(group, dist.ProcessGroup):
        raise TypeError(
            f"process_group must be a torch.distributed.ProcessGroup, 'world' or None, got {group!r}: "
            "make one with torch.distributed.new_group(ranks) in every process"
        )


def name_of(group: dist.ProcessGroup | Literal["world"]) -> str:
    """For a repr."""
    return group if isinstance(group, str) else group.group_name


def new_layer(title: str) -> Layer:
    """The identity of a layer that was just made."""
    return Layer(next(_made), title)


def packed(group: Group) -> object:
    """A group as a copy or a pickle of a layer can hold it."""
    return Packed(group) if group is not None and not isinstance(group, str) else group


def unpacked(group: Any) -> Group:
    """What `packed` was given; None where there is no such group in this process."""
    return group.group if isinstance(group, Packed) else group


def several(group: Group) -> bool:
    """Whether there is anybody to share with: a group of more than this process."""
    if group is None or not dist.is_available() or not dist.is_initialized():
        return False
    return _members(group).size() > 1


def share(group: Group, layer: Layer, values: int) -> Share:
    """The part of this process in a forward pass of a layer, in a group of several.

    Args:
        group: whose statistics are merged.
        layer: how the layer is known.
        values: how many positions per channel this process has, padding included.
    """
    return Share(line_of(_members(group)), layer, values)


def runs_of_all(
    group: Group, layer: Layer, mean: Tensor, var: Tensor, counts: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The statistics of the sub-batches of all processes, from those of this one; see `runs`."""
    return gather_runs(line_of(_members(group)), layer, mean, var, counts)


def total(group: Group, layer: Layer, number: int | Tensor, device: torch.device) -> int:
    """The sum of a number over all processes of a group of several, in an exchange of its own."""
    kept = torch.float32 if device.type == "mps" else torch.float64
    own = torch.full((1, 1), float(number), dtype=kept, device=device)
    numbers, _, _ = runs_of_all(group, layer, own, own, torch.ones(1, dtype=torch.int64, device=device))
    return int(numbers.sum())


def summed(group: Group, layer: Layer, gradient: Tensor) -> Tensor:
    """The sum of a gradient (C) over all processes of a group of several, in a backward pass of theirs."""
    wide = gradient if gradient.device.type == "mps" else gradient.double()
    return line_of(_members(group)).sum(Call("backward", layer, len(wide)), wide).clone()


def evaluates(group: Group, layer: Layer) -> None:
    """Tell the group that a layer does without it: evaluation is local, and others may wait in training.

    Raises:
        ProcessError: another process has waited for this one, and given up.
    """
    if not torch.compiler.is_compiling() and several(group):
        line_of(_members(group)).evaluates(layer)


def exchange(group: Group, value: Any) -> list[Any]:
    """What each process of the group brings, a value that can be pickled, in the order of ranks."""
    members = _members(group)
    values: list[Any] = [None] * members.size()
    dist.all_gather_object(values, value, group=members)
    return values


def _members(group: Group) -> dist.ProcessGroup:
    members = dist.group.WORLD if group == "world" else group
    assert members is not None
    assert not isinstance(members, str)
    return members
