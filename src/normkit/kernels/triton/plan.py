"""How a call of the channel family is cut: tiles, programs, launches. All that a compiled kernel depends on is here.

A tile is J neighbours in memory times LANES pieces over the threads times a short RUN in the registers of each. J is
at most what a channel's positions (contiguous) or the channels (channels last) fill. LANES follows from the threads
and from 16 bytes a thread at once. A program either holds its part of a set in registers, as one of `sizes`, or
passes through it by tiles. The largest that is held is 128 KiB, of the 256 KiB of registers of a processor: 132
processors hold 17 MB of x, or 8.6 MB of x and as much of dy.

So for each dtype and set of options there are three widths J in each layout, times six parts that are held, alone or
around a barrier, and ways to pass through (alone, around a barrier, in two sweeps), whatever the shapes; Triton itself
compiles once more for sizes that are 1, and for those that 16 divides. Nothing is tuned by trial.

How many programs share a set depends on shapes alone, unless the whole call runs on the device at once, which depends
on its number of processors. So results are the same in every run on one kind of device.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, lru_cache

import torch
from torch import Tensor

from normkit.kernels.triton.held import INTERPRETED as INTERPRETED

_WARP = 32
_HELD = (
    128 << 10
)  # bytes that a program holds, in 8 warps of 255 registers a thread: what compiles without spills
_SMALL = (4, 2048, 1)  # warps, elements of a tile, tiles
_WHOLE = (8, 8192, 1)
_FORWARD = (_SMALL, _WHOLE, *((8, 8192, tiles) for tiles in (2, 4, 6, 8)))
_BACKWARD = (_SMALL, *((8, 4096, tiles) for tiles in (1, 2, 4, 6, 8)))  # of x, and as many of dy
_STREAMED = (
    4,
    4096,
)  # warps and elements of a tile where a set passes through: several programs to a processor
_ALONE = 16384  # elements of a set that one program is done with before it could hear of others
PROGRAMS = 1024  # that a call is cut into where sets pass through: some for each processor of any device
_LEAST_STEPS = 2  # of tiles, that are worth a program then
_CACHED = 16 << 20  # bytes that surely stay in the L2 from one stage to the next
_INTERPRETED_PROCESSORS = 16  # of the device that the interpreter stands for


@dataclass(frozen=True)
class Plan:
    """One cut. `held`: tiles that a program holds, 0 where it passes through its part; `barrier`: programs that
    share a set meet in one launch.
    """

    channels_last: bool
    warps: int
    run: int
    lanes: int
    j: int
    held: int
    size: int  # samples that share statistics
    runs: int  # of samples, of which the last may be smaller
    spatial: int
    chunks: int  # pieces of one sample's channel
    blocks: int
    splits: int
    per_split: int  # pieces
    barrier: bool

    @property
    def even(self) -> bool:
        """Whether every piece is whole."""
        return self.channels_last or self.spatial % self.j == 0

    @property
    def together(self) -> bool:
        """Whether both stages are one launch."""
        return self.splits == 1 or self.barrier


def plan(x: Tensor, size: int, backward: bool = False) -> Plan:
    """The cut of x (N, C, *), `size` samples sharing statistics, for a call that needs sums and then outputs."""
    return _plan(*_facts(x, size), _processors(x.device), backward)


def plan_of_stage(x: Tensor, size: int) -> Plan:
    """The same for sums alone, or outputs alone: nobody waits, and nothing is held for later."""
    return _plan_of_stage(*_facts(x, size))


def is_channels_last(x: Tensor) -> bool:
    """Whether a position's channels are neighbours in memory; (N, C) is so in both layouts."""
    return x.dim() == 2 or not x.is_contiguous() or x[0, 0].numel() == 1


def sizes(bytes_each: int, backward: bool) -> tuple[tuple[int, int, int], ...]:
    """Warps, elements of a tile and tiles of the parts that a program can hold, the smallest first."""
    of_all = 2 * bytes_each if backward else bytes_each
    return tuple(s for s in (_BACKWARD if backward else _FORWARD) if s[1] * s[2] * of_all <= _HELD)


def _facts(x: Tensor, size: int) -> tuple[int, int, int, int, bool, int]:
    N, C = x.shape[0], x.shape[1]
    return N, C, x[0, 0].numel(), min(size, N), is_channels_last(x), x.element_size()


@lru_cache(4096)  # of shapes, which may be new in every call
def _plan(
    N: int,
    C: int,
    spatial: int,
    size: int,
    channels_last: bool,
    bytes_each: int,
    processors: int,
    backward: bool,
) -> Plan:
    shape = N, C, spatial, size, channels_last, bytes_each
    of_sizes = sizes(bytes_each, backward)
    j = _width(C, spatial, channels_last)
    _, blocks, pieces = _pieces(N, C, spatial, size, channels_last, j)
    at_once = processors // blocks
    if pieces * j <= (_ALONE if at_once > 1 else _most(of_sizes)):
        return _cut(shape, j, _fitting(of_sizes, pieces * j), pieces)
    if at_once > 1:
        if channels_last and 2 * j >= C:
            # Every program reads the sums of all that share its channels: twice the blocks are a quarter of that.
            j = min(j, 32)
            _, blocks, pieces = _pieces(N, C, spatial, size, channels_last, j)
            at_once = processors // blocks
        each = max(-(-pieces // at_once), _SMALL[1] // j)
        if each * j <= _most(of_sizes):
            return _cut(shape, j, _fitting(of_sizes, each * j), each, barrier=True)
        if N * C * spatial * bytes_each <= _CACHED:
            return _cut(shape, j, None, each, barrier=True)
    return _plan_of_stage(*shape)


@lru_cache(4096)
def _plan_of_stage(N: int, C: int, spatial: int, size: int, channels_last: bool, bytes_each: int) -> Plan:
    shape = N, C, spatial, size, channels_last, bytes_each
    j = _width(C, spatial, channels_last)
    _, blocks, pieces = _pieces(N, C, spatial, size, channels_last, j)
    if pieces * j <= _SMALL[1]:
        return _cut(shape, j, _SMALL, pieces)
    if pieces * j <= _WHOLE[1]:
        return _cut(shape, j, _WHOLE, pieces)
    tile = _STREAMED[1] // j
    steps = -(-pieces // tile)
    programs = max(1, min(-(-PROGRAMS // blocks), steps // _LEAST_STEPS))
    return _cut(shape, j, None, tile * -(-steps // programs))


def _width(C: int, spatial: int, channels_last: bool) -> int:
    """J: pieces that are cut off short, of positions or of channels, are threads without work.

    Where 16 does not divide the positions of a sample, elements are loaded one by one, and J is wide, which saves
    divisions.
    """
    if channels_last:
        return 16 if C <= 16 else 32 if C <= 32 else 64
    if spatial <= 16 or spatial % 16 == 0:
        return 16
    return 64 if spatial <= 64 else 256


def _pieces(N: int, C: int, spatial: int, size: int, channels_last: bool, j: int) -> tuple[int, int, int]:
    """Pieces of one sample's channel; blocks of sets; pieces of a set."""
    chunks = spatial if channels_last else -(-spatial // j)
    return chunks, -(-N // size) * (-(-C // j) if channels_last else C), size * chunks


def _most(of_sizes: tuple[tuple[int, int, int], ...]) -> int:
    return of_sizes[-1][1] * of_sizes[-1][2]


def _fitting(of_sizes: tuple[tuple[int, int, int], ...], elements: int) -> tuple[int, int, int]:
    """The smallest that holds so many elements."""
    return next(s for s in of_sizes if s[1] * s[2] >= elements)


def _cut(
    shape: tuple[int, int, int, int, bool, int],
    j: int,
    holding: tuple[int, int, int] | None,
    per_split: int,
    barrier: bool = False,
) -> Plan:
    """In programs of so many pieces of a set, held so or, where `holding` is None, passed through."""
    N, _, spatial, size, channels_last, bytes_each = shape
    chunks, blocks, pieces = _pieces(*shape[:5], j)
    warps, elements, held = holding or (*_STREAMED, 0)
    lanes = warps * _WARP * (16 // bytes_each) // j
    splits = -(-pieces // per_split)
    return Plan(
        channels_last, warps, elements // (j * lanes), lanes, j, held, size, -(-N // size), spatial, chunks, blocks,
        splits, per_split, barrier=barrier and splits > 1,
    )  # fmt: skip


@cache
def _processors(device: torch.device) -> int:
    if INTERPRETED:
        return _INTERPRETED_PROCESSORS
    return torch.cuda.get_device_properties(device).multi_processor_count
