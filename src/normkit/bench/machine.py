"""The machine and the software that a measurement ran on."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch

import normkit as nk
from normkit.environment import cpu

_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30}


@dataclass(frozen=True)
class Machine:
    """What the figures depend on besides the code."""

    normkit: str
    torch: str
    cpu: str
    threads: int
    last_level_cache: int | None  # bytes; None where the system does not say

    @classmethod
    def here(cls, threads: int) -> Machine:
        """The machine that runs, with so many threads of torch."""
        return cls(nk.__version__, torch.__version__, cpu(), threads, last_level_cache())

    def __str__(self) -> str:
        cache = "unknown" if self.last_level_cache is None else f"{self.last_level_cache / 2**20:.0f} MiB"
        return (
            f"normkit {self.normkit}, torch {self.torch}, {self.threads} threads; {self.cpu}, "
            f"last-level cache {cache}"
        )


def last_level_cache(caches: Path = _CACHES) -> int | None:
    """Bytes of the highest cache that the first core sees: by the kernel, else by the C library.

    The kernel is asked first: in a virtual machine the C library, which reads the processor's own
    description, can name the cache of the whole socket.
    """
    found: list[tuple[int, int]] = []
    for index in sorted(caches.glob("index*")):
        size = (index / "size").read_text().strip()
        number = int(size[:-1]) * _UNITS[size[-1]] if size[-1] in _UNITS else int(size)
        found.append((int((index / "level").read_text()), number))
    if found:
        return max(found)[1]
    for level in (4, 3, 2):
        name = f"SC_LEVEL{level}_CACHE_SIZE"
        size = os.sysconf(name) if name in os.sysconf_names else 0
        if size > 0:
            return size
    return None
