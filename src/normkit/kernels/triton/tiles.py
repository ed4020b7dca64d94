"""A tile of x: where its elements lie in memory, and sums over them.

A set is what shares a statistic: one channel of a run of samples. A tile (RUN, LANES, J) takes a part of one set
where x is contiguous, and of J sets side by side where x is channels last. Its J last elements are neighbours in
memory: positions of a channel, or channels of a position. (RUN, LANES) are pieces of J elements:

    contiguous       memory (N, C, S)   a piece is J positions of one sample, of which the last piece has fewer
    channels last    memory (N, S, C)   a piece is J channels of one position

The compiler lays J and LANES out over the threads and leaves RUN, a short run of elements, to each of them. So a
sum over RUN is a short one in float32, in registers; from there on it is float64, once for RUN elements. Sizes and
strides are run-time values; see `plan` for those of tiles.
"""

# Kernels are not Python: what Triton compiles has no types for pyright.
# pyright: basic, reportArgumentType=false, reportOperatorIssue=false, reportCallIssue=false, reportIndexIssue=false
# pyright: reportOptionalOperand=false, reportAttributeAccessIssue=false, reportGeneralTypeIssues=false
# pyright: reportInvalidTypeForm=false
import triton
import triton.language as tl

STAGES = tl.constexpr(
    3
)  # of a loop over tiles: one is worked on while two are on their way to the shared memory


@triton.jit
def begin(block, N, C, S, size, chunks, CHANNELS_LAST: tl.constexpr, J: tl.constexpr):
    """Of block number `block` of the sets: its channel(s) and set(s), which of these exist, first sample, pieces."""
    if CHANNELS_LAST:
        blocks = tl.cdiv(C, J)
        channel = (block % blocks) * J + tl.arange(0, J)
    else:
        blocks = C
        channel = block % blocks
    sample = (block // blocks) * size
    samples = tl.minimum(size, N - sample)
    if CHANNELS_LAST:
        count = samples * S
    else:
        count = samples * chunks
    return channel, (block // blocks).to(tl.int64) * C + channel, channel < C, sample, count


@triton.jit
def locate(
    first, end, sample, channel, C, S, chunks,
    CHANNELS_LAST: tl.constexpr, RUN: tl.constexpr, LANES: tl.constexpr, J: tl.constexpr,
):  # fmt: skip
    """Offsets of a tile's elements in x, and in a mask (N, S), from piece `first` on; which are before `end`."""
    piece = first + tl.arange(0, RUN)[:, None] * LANES + tl.arange(0, LANES)[None, :]
    inside = (piece < end)[:, :, None]
    if CHANNELS_LAST:
        position = (sample.to(tl.int64) * S + piece)[:, :, None]
        offsets = position * C + channel[None, None, :]
        inside = inside & (channel < C)[None, None, :]
        positions = position
    else:
        start = ((piece % chunks) * J)[:, :, None]
        j = tl.arange(0, J)[None, None, :]
        n = (sample.to(tl.int64) + piece // chunks)[:, :, None]
        offsets = ((n * C + channel) * S + start) + j
        inside = inside & (start + j < S)
        positions = (n * S + start) + j
    return offsets, inside, positions


@triton.jit
def elements(first, end, S, chunks, CHANNELS_LAST: tl.constexpr, J: tl.constexpr):
    """How many elements of a set the pieces from `first` to `end` have."""
    if CHANNELS_LAST:
        n = end - first
    else:
        before = (first // chunks).to(tl.int64) * S + (first % chunks) * J
        n = (end // chunks).to(tl.int64) * S + (end % chunks) * J - before
    return n.to(tl.float64)


@triton.jit
def total(v, CHANNELS_LAST: tl.constexpr, WIDE: tl.constexpr):
    """The sum of each set, in float64; WIDE sums short runs so too."""
    if WIDE:
        v = v.to(tl.float64)
    return of_sets(tl.sum(v, 0), CHANNELS_LAST)


@triton.jit
def of_sets(lanes, CHANNELS_LAST: tl.constexpr):
    """Sums of short runs (LANES, J) together, for each set, in float64."""
    lanes = lanes.to(tl.float64)
    if CHANNELS_LAST:
        result = tl.sum(lanes, 0)
    else:
        result = tl.sum(tl.sum(lanes, 1), 0)
    return result


@triton.jit
def in_two(mean):
    """A float64 as two float32, which have 48 bits together; an infinite one has no second part."""
    high = mean.to(tl.float32)
    rest = (mean - high.to(tl.float64)).to(tl.float32)
    return high, tl.where(tl.abs(high) < float("inf"), rest, 0.0)


@triton.jit
def lift(mean, var):
    """The power of two by which a set is multiplied while it is centred: 1, but 2^24 for sets of tiny numbers.

    Beside numbers below float32's normal ones the second part of a mean would be rounded to nothing.
    """
    return tl.where((tl.abs(mean) < 1e-18) & (var < 1e-36), 16777216.0, 1.0)


@triton.jit
def centred(x, factor, high, low):
    """factor x - mean, the mean lifted by the factor already and in two parts."""
    return tl.fma(x, factor, -high) - low


@triton.jit
def out_of_range(m2, n, exists):
    """Whether squares of a set were beyond float32, or too small for all its bits. Rare, and constant sets."""
    odd = ((m2 > 1e37) | (m2 < n * 1e-30)).to(tl.int32) * exists.to(tl.int32)
    return tl.max(odd + tl.zeros([1], tl.int32), 0) > 0


@triton.jit
def moments(x, inside, n, exists, CHANNELS_LAST: tl.constexpr, WIDE: tl.constexpr):
    """Mean and centred sum of squares of a tile that is 0 outside, n elements to a set."""
    mean = total(x, CHANNELS_LAST, WIDE) / tl.maximum(n, 1.0)
    high, low = in_two(mean)
    d = tl.where(inside, (x - high) - low, 0.0)
    m2 = total(d * d, CHANNELS_LAST, False)
    if out_of_range(m2, n, exists):
        wide = tl.where(inside, x.to(tl.float64) - mean, 0.0)
        m2 = total(wide * wide, CHANNELS_LAST, True)
    return mean, m2


@triton.jit
def moments_of_runs(
    x_ptr, start, end, tiles, sample, channel, C, S, chunks,
    CHANNELS_LAST: tl.constexpr, RUN: tl.constexpr, LANES: tl.constexpr, J: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Mean and centred sum of squares of `tiles` whole tiles from `start` on, all of whose elements count.

    The threads meet at the end alone: until then each place of a tile joins its short runs to those before them.
    Squares are float32: see `out_of_range`.
    """
    mean = tl.zeros([LANES, J], tl.float64)
    m2 = mean
    seen = (tiles * 0).to(tl.float64)
    for tile in tl.range(tiles, num_stages=STAGES):
        at, bounds, _ = locate(
            start + tile * RUN * LANES, end, sample, channel, C, S, chunks, CHANNELS_LAST, RUN, LANES, J
        )
        x = tl.load(x_ptr + at, bounds, 0.0).to(tl.float32)
        if WIDE:
            here = tl.sum(x.to(tl.float64), 0) * (1 / RUN)
        else:
            here = tl.sum(x, 0).to(tl.float64) * (1 / RUN)
        high, low = in_two(here)
        d = (x - high[None, :, :]) - low[None, :, :]
        seen += 1.0
        share = 1.0 / seen
        delta = here - mean
        mean += delta * share
        m2 += tl.sum(d * d, 0).to(tl.float64) + delta * delta * (RUN * (1.0 - share))
    of_all = of_sets(mean, CHANNELS_LAST) / (LANES if CHANNELS_LAST else LANES * J)
    delta = mean - of_all
    return of_all, of_sets(m2 + seen * RUN * delta * delta, CHANNELS_LAST)


@triton.jit
def join(n, mean, m2, n2, mean2, m22):
    """Moments of two parts together (Chan, Golub and LeVeque 1983)."""
    both = n + n2
    share = n2 / tl.maximum(both, 1.0)
    delta = mean2 - mean
    return both, mean + delta * share, m2 + m22 + delta * delta * (n * share)


@triton.jit
def merged_moments(partial_ptr, sets, own, exists, splits, CHANNELS_LAST: tl.constexpr, K: tl.constexpr):
    """Count, mean and centred squares of sets from those of their splits (3, splits, sets), K at a time, in order."""
    n = (own * 0).to(tl.float64)
    mean = n
    m2 = n
    for first in range(0, splits, K):
        k = first + tl.arange(0, K)
        offsets, there = _of_splits(k, splits, sets, own, exists, CHANNELS_LAST)
        nk = tl.load(partial_ptr + offsets, there, 0.0, cache_modifier=".cg")
        mean_k = tl.load(partial_ptr + splits * sets + offsets, there, 0.0, cache_modifier=".cg")
        m2_k = tl.load(partial_ptr + 2 * splits * sets + offsets, there, 0.0, cache_modifier=".cg")
        n_here = tl.sum(nk, 0)
        mean_here = tl.sum(nk * mean_k, 0) / tl.maximum(n_here, 1.0)
        # A split without elements has no mean to differ by.
        delta = tl.where(nk > 0, mean_k - mean_here, 0.0)
        n, mean, m2 = join(n, mean, m2, n_here, mean_here, tl.sum(m2_k + nk * delta * delta, 0))
    return n, mean, m2


@triton.jit
def merged_sums(partial_ptr, sets, own, exists, splits, CHANNELS_LAST: tl.constexpr, K: tl.constexpr):
    """The three sums of sets from those of their splits (3, splits, sets), in order."""
    a = (own * 0).to(tl.float64)
    b = a
    c = a
    for first in range(0, splits, K):
        k = first + tl.arange(0, K)
        offsets, there = _of_splits(k, splits, sets, own, exists, CHANNELS_LAST)
        a += tl.sum(tl.load(partial_ptr + offsets, there, 0.0, cache_modifier=".cg"), 0)
        b += tl.sum(tl.load(partial_ptr + splits * sets + offsets, there, 0.0, cache_modifier=".cg"), 0)
        c += tl.sum(tl.load(partial_ptr + 2 * splits * sets + offsets, there, 0.0, cache_modifier=".cg"), 0)
    return a, b, c


@triton.jit
def _of_splits(k, splits, sets, own, exists, CHANNELS_LAST: tl.constexpr):
    if CHANNELS_LAST:
        offsets = k.to(tl.int64)[:, None] * sets + own[None, :]
        there = (k < splits)[:, None] & exists[None, :]
    else:
        offsets = k.to(tl.int64) * sets + own
        there = (k < splits) & exists
    return offsets, there


@triton.jit
def wait_for_all(arrived_ptr, programs):
    """Until `programs` programs have come here, on a grid that runs all at once; their stores are seen then.

    Arrival releases what a program has stored, the last look acquires it; the counter, which starts at 0, is all
    that programs write together. The programs must fit on the device at the same time (a cooperative launch refuses
    to start otherwise), or they would wait for one that cannot start.
    """
    tl.debug_barrier()  # the stores of all threads come before the program's arrival
    seen = tl.atomic_add(arrived_ptr, 1, sem="acq_rel") + 1
    while seen < programs:
        seen = tl.atomic_add(arrived_ptr, 0, sem="acquire")
    tl.debug_barrier()
