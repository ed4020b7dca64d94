"""Layers that may take their training statistics over the batches of several processes."""

from __future__ import annotations

from typing import Any

import torch

from normkit import processes


class Sharing(torch.nn.Module):
    """A layer with a process group, which other processes know by its identity."""

    process_group: processes.Group = None
    identity = processes.NOBODY

    def _share_with(self, group: processes.Group, features: int) -> None:
        """Take part in a group, under a name that it has in every process."""
        processes.check_group(group)
        self.process_group = group
        self.identity = processes.new_layer(f"{type(self).__name__}({features})")

    def _sharing(self, *, measures: bool) -> processes.Group:
        """The group of this forward pass; where it measures no batch, the others are told that it does without."""
        if self.process_group is None or (measures and self.training):
            return self.process_group
        processes.evaluates(self.process_group, self.identity)
        return None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "process_group": processes.packed(self.process_group)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__({**state, "process_group": processes.unpacked(state.get("process_group"))})

    def _repr_group(self) -> str:
        """What the group adds to a repr."""
        group = self.process_group
        return "" if group is None else f", process_group={processes.name_of(group)!r}"
