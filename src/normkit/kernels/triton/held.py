"""Tiles that stay on the chip: a program loads its part of a set once, and keeps it in registers until it is written.

A part is a tuple of tiles, in the dtype that they have in memory: half types take half the registers. They are
converted wherever they are used. The compiler would convert them once and keep the float32, which spills; so before
each use but the first it is told by `afresh` that it knows nothing of the value. Offsets are computed again likewise.
"""

# Kernels are not Python: what Triton compiles has no types for pyright.
# pyright: basic, reportArgumentType=false, reportOperatorIssue=false, reportCallIssue=false, reportIndexIssue=false
# pyright: reportOptionalOperand=false, reportAttributeAccessIssue=false, reportGeneralTypeIssues=false
# pyright: reportInvalidTypeForm=false, reportAssignmentType=false
import triton
import triton.language as tl
from triton.runtime.interpreter import InterpretedFunction

from normkit.kernels.triton.tiles import elements, in_two, locate, of_sets, out_of_range


@triton.jit
def _nothing():
    """Never called: what the decorator made of it says whether kernels are interpreted."""


INTERPRETED = isinstance(_nothing, InterpretedFunction)
_COMPILED = tl.constexpr(not INTERPRETED)


@triton.jit
def afresh(x):
    """x, of which the compiler knows nothing."""
    if _COMPILED:
        PACKED: tl.constexpr = 2 if x.dtype.primitive_bitwidth == 16 else 1
        x = tl.inline_asm_elementwise("mov.b32 $0, $1;", "=r,r", [x], x.dtype, is_pure=False, pack=PACKED)
    return x


@triton.jit
def place(
    first, end, sample, channel, C, S, chunks, mask_ptr,
    CHANNELS_LAST: tl.constexpr, RUN: tl.constexpr, LANES: tl.constexpr, J: tl.constexpr,
):  # fmt: skip
    """Offsets of a tile; which of its elements exist; which of these count."""
    at, bounds, where = locate(first, end, sample, channel, C, S, chunks, CHANNELS_LAST, RUN, LANES, J)
    inside = bounds
    if mask_ptr is not None:
        inside = bounds & (tl.load(mask_ptr + where, bounds, 0) != 0)
    return at, bounds, inside


@triton.jit
def load_tiles(
    ptr, mask_ptr, start, end, sample, channel, C, S, chunks, HELD: tl.constexpr,
    CHANNELS_LAST: tl.constexpr, RUN: tl.constexpr, LANES: tl.constexpr, J: tl.constexpr,
):  # fmt: skip
    """The pieces from `start` to `end` as HELD tiles, 0 where an element does not count."""
    tiles = ()
    for t in tl.static_range(HELD):
        at, _, inside = place(
            start + t * RUN * LANES,
            end,
            sample,
            channel,
            C,
            S,
            chunks,
            mask_ptr,
            CHANNELS_LAST,
            RUN,
            LANES,
            J,
        )
        tiles += (tl.load(ptr + at, inside, 0.0),)
    return tiles


@triton.jit
def count_of_tiles(
    mask_ptr, start, end, sample, channel, C, S, chunks, HELD: tl.constexpr,
    CHANNELS_LAST: tl.constexpr, RUN: tl.constexpr, LANES: tl.constexpr, J: tl.constexpr,
):  # fmt: skip
    """How many elements count: by sizes alone without a mask."""
    if mask_ptr is None:
        n = elements(start, end, S, chunks, CHANNELS_LAST, J)
    else:
        kept = tl.zeros([LANES, J], tl.float32)
        for t in tl.static_range(HELD):
            _, _, inside = place(
                start + t * RUN * LANES,
                end,
                sample,
                channel,
                C,
                S,
                chunks,
                mask_ptr,
                CHANNELS_LAST,
                RUN,
                LANES,
                J,
            )
            kept += tl.sum(inside.to(tl.float32), 0)
        n = of_sets(kept, CHANNELS_LAST)
    return n


@triton.jit
def moments_of_tiles(
    tiles, n, exists, mask_ptr, start, end, sample, channel, C, S, chunks, HELD: tl.constexpr,
    CHANNELS_LAST: tl.constexpr, RUN: tl.constexpr, LANES: tl.constexpr, J: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Mean and centred sum of squares of all tiles together, n elements to a set."""
    sums = tl.zeros([LANES, J], tl.float64 if WIDE else tl.float32)
    for t in tl.static_range(HELD):
        sums += tl.sum(tiles[t].to(tl.float64 if WIDE else tl.float32), 0)
    mean = of_sets(sums, CHANNELS_LAST) / tl.maximum(n, 1.0)
    high, low = in_two(mean)
    squares = tl.zeros([LANES, J], tl.float32)
    for t in tl.static_range(HELD):
        first = afresh(start) + t * RUN * LANES
        if first < end:
            x = afresh(tiles[t]).to(tl.float32)
            _, _, inside = place(
                first, end, sample, channel, C, S, chunks, mask_ptr, CHANNELS_LAST, RUN, LANES, J
            )
            d = tl.where(inside, (x - high) - low, 0.0)
            squares += tl.sum(d * d, 0)
    m2 = of_sets(squares, CHANNELS_LAST)
    if out_of_range(m2, n, exists):
        exact = tl.zeros([LANES, J], tl.float64)
        for t in tl.static_range(HELD):
            first = afresh(start) + t * RUN * LANES
            if first < end:
                wide = afresh(tiles[t]).to(tl.float64)
                _, _, inside = place(
                    first, end, sample, channel, C, S, chunks, mask_ptr, CHANNELS_LAST, RUN, LANES, J
                )
                wide = tl.where(inside, wide - mean, 0.0)
                exact += tl.sum(wide * wide, 0)
        m2 = of_sets(exact, CHANNELS_LAST)
    return mean, m2
