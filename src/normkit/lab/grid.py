"""What to compare: the question's settings and their defaults, which the command line shares."""

from __future__ import annotations

import math
import shlex
from dataclasses import dataclass, fields
from pathlib import Path

from normkit.errors import InputError

OUT = Path("runs/compare")


@dataclass(frozen=True)
class Grid:
    """One run per norm, learning rate and seed; everything else is the same for all.

    Raises:
        InputError: a number outside its range.
    """

    data: str = "digits"
    model: str = "cnn"
    norms: tuple[str, ...] = ()  # empty: the usual ones, `models.USUAL`, that the model can take
    placement: str = "pre"
    input_scaling: str = "standard"
    batch_size: int = 64
    lr: tuple[float, ...] = (0.003,)  # for each norm on digits the best of 0.001, 0.003 and 0.01
    optimizer: str = "adam"
    dropout: float = 0.0
    weight_decay: float = 0.0
    epochs: int = 8
    seeds: int = 8
    target: float | None = None  # validation accuracy; None: computed, see `comparison.summarize`
    device: str = "cpu"
    threads: int = 1

    def __post_init__(self) -> None:
        for name in ("batch_size", "epochs", "seeds", "threads"):
            if getattr(self, name) < 1:
                raise InputError(f"{_option(name)} must be 1 or more, got {getattr(self, name)}")
        if not self.lr:
            raise InputError("--lr needs one learning rate or several, got none")
        for lr in self.lr:
            if not 0 < lr < math.inf:
                raise InputError(f"--lr must be above 0 and finite, got {lr:g}")
        if not 0 <= self.dropout < 1:
            raise InputError(f"--dropout must be 0 or more and below 1, got {self.dropout:g}")
        if not 0 <= self.weight_decay < math.inf:
            raise InputError(f"--weight-decay must be 0 or more and finite, got {self.weight_decay:g}")
        if self.target is not None and not 0 < self.target <= 1:
            raise InputError(f"--target must be above 0 and at most 1, got {self.target:g}")

    def command(self, out: Path = OUT, processes: int = 1) -> str:
        """The command line that asks this question again, every option spelled out."""
        words = ["normkit", "compare"]
        if processes > 1:
            words = ["torchrun", "--nproc-per-node", str(processes), "-m", *words]
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, tuple):
                value = ",".join(map(str, value))
            if value not in (None, ""):
                words += [_option(field.name), str(value)]
        return shlex.join([*words, "--out", str(out)])


def _option(field: str) -> str:
    return "--" + field.replace("_", "-")
