"""How a call of the channel family is cut: tiles, programs, launches. All that a compiled kernel depends on is here.

A tile is J neighbours in memory times LANES pieces over the threads times a short RUN in the registers of each. J is
256, 64 or 16, the widest that a channel's positions (contiguous) or the channels (channels last) fill. LANES follows
from the threads and from 16 bytes a thread at once. Threads and elements are one of `SIZES`, of which the largest is
what registers hold without spilling; backward, channels last, whose numbers for J sets take registers too, it is the
one before. So for each dtype, layout and set of options there are at most 3 x 3
tiles, one launch or two, whatever the shapes; Triton itself compiles once more for sizes that are 1, and for those
that 16 divides. Nothing is tuned by trial.

How many programs share a set depends on shapes alone, unless the whole call runs on the device at once, which depends
on its number of processors. So results are the same in every run on one kind of device.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, lru_cache

import torch
from torch import Tensor
from triton.runtime.interpreter import InterpretedFunction

from normkit.kernels.triton.channel_kernels import forward_kernel

INTERPRETED = isinstance(forward_kernel, InterpretedFunction)

_WARP = 32
SIZES = ((4, 2048), (8, 8192), (16, 16384))  # warps and elements of a tile
_STREAMED = SIZES[1]  # where a set passes through
PROGRAMS = 1024  # that a call is cut into where sets pass through: some for each processor of any device
_LEAST_STEPS = 2  # of tiles, that are worth a program then
_CACHED = 16 << 20  # bytes that surely stay in the L2 from one stage to the next
_INTERPRETED_PROCESSORS = 16  # of the device that the interpreter stands for


@dataclass(frozen=True)
class Plan:
    """One cut. `one_tile`: a program's part is one tile; `barrier`: programs that share a set meet in one launch."""

    channels_last: bool
    warps: int
    run: int
    lanes: int
    j: int
    size: int  # samples that share statistics
    runs: int  # of samples, of which the last may be smaller
    spatial: int
    chunks: int  # pieces of one sample's channel
    blocks: int
    splits: int
    per_split: int  # pieces
    one_tile: bool
    barrier: bool

    @property
    def together(self) -> bool:
        """Whether both stages are one launch."""
        return self.splits == 1 or self.barrier


def plan(x: Tensor, size: int, backward: bool = False) -> Plan:
    """The cut of x (N, C, *), `size` samples sharing statistics."""
    N, C = x.shape[0], x.shape[1]
    spatial = x[0, 0].numel()
    cut = sizes(is_channels_last(x), backward)
    return _plan(
        N, C, spatial, min(size, N), is_channels_last(x), x.element_size(), _processors(x.device), cut
    )


def sizes(channels_last: bool, backward: bool) -> tuple[tuple[int, int], ...]:
    """Those of `SIZES` that registers hold."""
    return SIZES[:-1] if backward and channels_last else SIZES


def is_channels_last(x: Tensor) -> bool:
    """Whether a position's channels are neighbours in memory; (N, C) is so in both layouts."""
    return x.dim() == 2 or not x.is_contiguous() or x[0, 0].numel() == 1


@lru_cache(4096)  # of shapes, which may be new in every call
def _plan(
    N: int,
    C: int,
    spatial: int,
    size: int,
    channels_last: bool,
    bytes_each: int,
    processors: int,
    sizes: tuple[tuple[int, int], ...] = SIZES,
) -> Plan:
    extent = C if channels_last else spatial
    j = 256 if extent > 64 and not channels_last else 64 if extent > 16 else 16
    chunks = spatial if channels_last else -(-spatial // j)
    runs = -(-N // size)
    blocks = runs * (-(-C // j) if channels_last else C)
    pieces = size * chunks

    def cut(warps_and_elements: tuple[int, int], programs: int, barrier: bool) -> Plan:
        """In tiles of this size, so many programs sharing a set at most."""
        warps, elements = warps_and_elements
        tile = elements // j
        lanes = warps * _WARP * (16 // bytes_each) // j
        per_split = tile * -(-pieces // (tile * programs))
        splits = -(-pieces // per_split)
        return Plan(
            channels_last, warps, tile // lanes, lanes, j, size, runs, spatial, chunks, blocks, splits, per_split,
            one_tile=per_split == tile, barrier=barrier and splits > 1,
        )  # fmt: skip

    for tile in sizes:
        if pieces * j <= tile[1]:  # a set is one tile: nobody to wait for
            return cut(tile, 1, False)
    at_once = processors // blocks
    if at_once > 1:
        chosen = cut(sizes[-1], at_once, True)
        if chosen.one_tile or N * C * spatial * bytes_each <= _CACHED:
            return chosen
    steps = -(-pieces * j // _STREAMED[1])
    return cut(_STREAMED, max(1, min(-(-PROGRAMS // blocks), steps // _LEAST_STEPS)), False)


@cache
def _processors(device: torch.device) -> int:
    if INTERPRETED:
        return _INTERPRETED_PROCESSORS
    return torch.cuda.get_device_properties(device).multi_processor_count
