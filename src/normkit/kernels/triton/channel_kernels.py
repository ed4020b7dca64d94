"""The kernels of the channel family: forward, backward, and what joins the splits of a set in between.

Each has two stages, SUMS and OUTPUTS. Where a program has a whole set both are one launch. Where the grid
runs all at once they are one launch around a barrier (BARRIER), a tile staying in registers from one to the other.
Otherwise they are two, with the sums of the splits joined in between, and the second goes through memory backwards,
so that it begins with what the first has left in the cache.
"""

# Kernels are not Python: what Triton compiles has no types for pyright.
# pyright: basic, reportArgumentType=false, reportOperatorIssue=false, reportCallIssue=false, reportIndexIssue=false
# pyright: reportOptionalOperand=false, reportAttributeAccessIssue=false, reportGeneralTypeIssues=false
# pyright: reportInvalidTypeForm=false
import triton
import triton.language as tl

from normkit.kernels.triton.activations import activate, times_slope
from normkit.kernels.triton.held import afresh, count_of_tiles, load_tiles, moments_of_tiles, place
from normkit.kernels.triton.tiles import (
    STAGES,
    begin,
    centred,
    elements,
    in_two,
    join,
    lift,
    locate,
    merged_moments,
    merged_sums,
    moments,
    moments_of_runs,
    of_sets,
    out_of_range,
    total,
    wait_for_all,
)

# Where the statistics, or the sums, of the second stage come from.
GIVEN = tl.constexpr(0)
OWN = tl.constexpr(1)
SPLITS = tl.constexpr(2)
_RUN_TIME = ["N", "size", "chunks", "per_split", "splits", "sets"]
# A row of statistics, or a parameter in a buffer with others, may begin anywhere: no kernel of its own for that.
_ANYWHERE = ["weight_ptr", "bias_ptr", "mean_ptr", "var_ptr", "tail_ptr", "slopes_ptr"]


@triton.jit(do_not_specialize=_RUN_TIME, do_not_specialize_on_alignment=_ANYWHERE)
def forward_kernel(
    x_ptr, y_ptr, weight_ptr, bias_ptr, residual_ptr, mask_ptr, mean_ptr, var_ptr, tail_ptr, stats_ptr,
    partial_ptr, arrived_ptr, eps: tl.float64, N, C, S, size, chunks, per_split, splits, sets,
    SUMS: tl.constexpr, OUTPUTS: tl.constexpr, SOURCE: tl.constexpr, BARRIER: tl.constexpr,
    HELD: tl.constexpr, CHANNELS_LAST: tl.constexpr, RUN: tl.constexpr, LANES: tl.constexpr, J: tl.constexpr,
    PER_SET: tl.constexpr, ACTIVATION: tl.constexpr, K: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """y = activation(weight (x - mean) / sqrt(var + eps) + bias + residual), or partial moments, or both."""
    block, split = _place(SUMS)
    channel, own, exists, sample, pieces = begin(block, N, C, S, size, chunks, CHANNELS_LAST, J)
    sets = sets.to(tl.int64)
    start = tl.minimum(split * per_split, pieces)
    end = start + tl.minimum(per_split, pieces - start)  # no sum beyond 32 bits
    WIDE: tl.constexpr = x_ptr.dtype.element_ty == tl.float32
    STEP: tl.constexpr = RUN * LANES
    steps = tl.cdiv(end - start, STEP)

    n, mean, m2 = own * 0.0, own * 0.0, own * 0.0
    n, mean, m2 = n.to(tl.float64), mean.to(tl.float64), m2.to(tl.float64)
    if HELD > 0:
        held = load_tiles(
            x_ptr, mask_ptr, start, end, sample, channel, C, S, chunks, HELD, CHANNELS_LAST, RUN, LANES, J
        )
    if SUMS:
        if HELD > 0:
            n = count_of_tiles(
                mask_ptr, start, end, sample, channel, C, S, chunks, HELD, CHANNELS_LAST, RUN, LANES, J
            )
            mean, m2 = moments_of_tiles(
                held, n, exists, mask_ptr, start, end, sample, channel, C, S, chunks, HELD, CHANNELS_LAST, RUN, LANES,
                J, WIDE,
            )  # fmt: skip
        else:
            done = steps * 0
            if EVEN:
                tiles = (end - start) // STEP
                mean2, m22 = moments_of_runs(
                    x_ptr,
                    start,
                    end,
                    tiles,
                    sample,
                    channel,
                    C,
                    S,
                    chunks,
                    CHANNELS_LAST,
                    RUN,
                    LANES,
                    J,
                    WIDE,
                )
                n2 = elements(start, start + tiles * STEP, S, chunks, CHANNELS_LAST, J)
                if not out_of_range(m22, n2, exists):
                    n, mean, m2, done = n + n2, mean2, m22, tiles
            for step in range(done, steps):
                a = start + step * STEP
                b = tl.minimum(a + STEP, end)
                at, bounds, where = locate(a, b, sample, channel, C, S, chunks, CHANNELS_LAST, RUN, LANES, J)
                x, inside = _load(x_ptr, mask_ptr, at, bounds, where)
                n2 = _count(inside, mask_ptr, a, b, S, chunks, CHANNELS_LAST, J)
                mean2, m22 = moments(x, inside, n2, exists, CHANNELS_LAST, WIDE)
                n, mean, m2 = join(n, mean, m2, n2, mean2, m22)
        if SOURCE == SPLITS:
            _store_three(
                partial_ptr + split.to(tl.int64) * sets + own, splits.to(tl.int64) * sets, exists, n, mean, m2
            )
    if BARRIER:
        wait_for_all(arrived_ptr + block, splits)
    if OUTPUTS:
        if SOURCE == SPLITS:
            n, mean, m2 = merged_moments(partial_ptr, sets, own, exists, splits, CHANNELS_LAST, K)
        if SOURCE == GIVEN:
            mean = tl.load(mean_ptr + own, exists, 0.0).to(tl.float64)
            var = tl.load(var_ptr + own, exists, 1.0).to(tl.float64)
        else:
            var = m2 / tl.maximum(n, 1.0)
            if split == 0:
                _store_three(stats_ptr + own, sets, exists, mean, var, mean * 0.0)
        factor, high, low = _centre(mean, var, tail_ptr, own, exists)
        scale, shift, _ = affine(factor, weight_ptr, bias_ptr, var, eps, channel, own, exists, PER_SET)
        if HELD > 0:
            for t in tl.static_range(HELD):
                first = afresh(start) + t * STEP
                if first < end:
                    at, bounds, inside = place(
                        first, end, sample, channel, C, S, chunks, mask_ptr, CHANNELS_LAST, RUN, LANES, J
                    )
                    x = afresh(held[t]).to(tl.float32)
                    z = preactivation(x, factor, high, low, scale, shift, residual_ptr, at, inside)
                    _store(y_ptr, at, bounds, inside, activate(z, ACTIVATION))
        else:
            for step in tl.range(steps, num_stages=STAGES):
                a = start + (steps - 1 - step) * STEP
                at, bounds, where = locate(
                    a, end, sample, channel, C, S, chunks, CHANNELS_LAST, RUN, LANES, J
                )
                x, inside = _load(x_ptr, mask_ptr, at, bounds, where)
                z = preactivation(x, factor, high, low, scale, shift, residual_ptr, at, inside)
                _store(y_ptr, at, bounds, inside, activate(z, ACTIVATION))


@triton.jit(do_not_specialize=_RUN_TIME, do_not_specialize_on_alignment=_ANYWHERE)
def backward_kernel(
    x_ptr, dy_ptr, dx_ptr, dresidual_ptr, weight_ptr, bias_ptr, residual_ptr, mask_ptr, mean_ptr, var_ptr,
    tail_ptr, slopes_ptr, sums_ptr, partial_ptr, arrived_ptr, eps: tl.float64,
    N, C, S, size, chunks, per_split, splits, sets,
    SUMS: tl.constexpr, OUTPUTS: tl.constexpr, SOURCE: tl.constexpr, BARRIER: tl.constexpr,
    HELD: tl.constexpr, CHANNELS_LAST: tl.constexpr, RUN: tl.constexpr, LANES: tl.constexpr, J: tl.constexpr,
    PER_SET: tl.constexpr, ACTIVATION: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    """dx = scale dz + slopes[0] xhat + slopes[1], or partial sums of dz and dz xhat, or both.

    z is computed again from x and the residual. Slopes are given, or made of the sums, or none where statistics
    are constants.
    """
    block, split = _place(SUMS)
    channel, own, exists, sample, pieces = begin(block, N, C, S, size, chunks, CHANNELS_LAST, J)
    sets = sets.to(tl.int64)
    start = tl.minimum(split * per_split, pieces)
    end = start + tl.minimum(per_split, pieces - start)  # no sum beyond 32 bits
    STEP: tl.constexpr = RUN * LANES
    steps = tl.cdiv(end - start, STEP)
    mean = tl.load(mean_ptr + own, exists, 0.0).to(tl.float64)
    var = tl.load(var_ptr + own, exists, 1.0).to(tl.float64)
    factor, high, low = _centre(mean, var, tail_ptr, own, exists)
    scale, shift, rstd = affine(factor, weight_ptr, bias_ptr, var, eps, channel, own, exists, PER_SET)

    dz_sum, dzx_sum, n = own * 0.0, own * 0.0, own * 0.0
    dz_sum, dzx_sum, n = dz_sum.to(tl.float64), dzx_sum.to(tl.float64), n.to(tl.float64)
    if HELD > 0:
        held, held_dy = (), ()
        for t in tl.static_range(HELD):
            at, _, inside = place(
                start + t * STEP, end, sample, channel, C, S, chunks, mask_ptr, CHANNELS_LAST, RUN, LANES, J
            )
            held += (tl.load(x_ptr + at, inside, 0.0),)
            held_dy += (tl.load(dy_ptr + at, inside, 0.0),)
    if SUMS:
        if HELD > 0:
            n = count_of_tiles(
                mask_ptr, start, end, sample, channel, C, S, chunks, HELD, CHANNELS_LAST, RUN, LANES, J
            )
            dz_lanes = tl.zeros([LANES, J], tl.float32)
            dzx_lanes = dz_lanes
            for t in tl.static_range(HELD):
                if start + t * STEP < end:
                    at, _, inside = place(
                        start + t * STEP,
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
                    x, dy = held[t].to(tl.float32), held_dy[t].to(tl.float32)
                    dz = _dz(x, dy, factor, high, low, scale, shift, residual_ptr, at, inside, ACTIVATION)
                    xhat = centred(x, factor, high, low) * rstd
                    dz_lanes += tl.sum(dz, 0)
                    dzx_lanes += tl.sum(tl.where(inside, dz * xhat, 0.0), 0)
            dz_sum, dzx_sum = of_sets(dz_lanes, CHANNELS_LAST), of_sets(dzx_lanes, CHANNELS_LAST)
        else:
            wide_dz = tl.zeros([LANES, J], tl.float64)
            wide_dzx = wide_dz
            kept = tl.zeros([LANES, J], tl.float32)
            for step in tl.range(steps, num_stages=STAGES):
                a = start + step * STEP
                at, bounds, where = locate(
                    a, end, sample, channel, C, S, chunks, CHANNELS_LAST, RUN, LANES, J
                )
                x, inside = _load(x_ptr, mask_ptr, at, bounds, where)
                dy = tl.load(dy_ptr + at, inside, 0.0).to(tl.float32)
                dz = _dz(x, dy, factor, high, low, scale, shift, residual_ptr, at, inside, ACTIVATION)
                xhat = centred(x, factor, high, low) * rstd
                wide_dz += tl.sum(dz, 0).to(tl.float64)
                wide_dzx += tl.sum(tl.where(inside, dz * xhat, 0.0), 0).to(tl.float64)
                if mask_ptr is not None:
                    kept += tl.sum(inside.to(tl.float32), 0)
            dz_sum, dzx_sum = of_sets(wide_dz, CHANNELS_LAST), of_sets(wide_dzx, CHANNELS_LAST)
            if mask_ptr is None:
                n = elements(start, end, S, chunks, CHANNELS_LAST, J)
            else:
                n = of_sets(kept, CHANNELS_LAST)
        if SOURCE == SPLITS:
            _store_three(
                partial_ptr + split.to(tl.int64) * sets + own,
                splits.to(tl.int64) * sets,
                exists,
                dz_sum,
                dzx_sum,
                n,
            )
    if BARRIER:
        wait_for_all(arrived_ptr + block, splits)
    if OUTPUTS:
        by_dz = scale * factor
        if SOURCE == SPLITS:
            dz_sum, dzx_sum, n = merged_sums(partial_ptr, sets, own, exists, splits, CHANNELS_LAST, K)
        if SOURCE == GIVEN:
            by_xhat, constant = own * 0.0, own * 0.0
            if slopes_ptr is not None:
                by_xhat = tl.load(slopes_ptr + own, exists, 0.0).to(tl.float32)
                constant = tl.load(slopes_ptr + sets + own, exists, 0.0).to(tl.float32)
        else:
            if split == 0:
                _store_three(sums_ptr + own, sets, exists, dz_sum, dzx_sum, n)
            share = -exact_scale(weight_ptr, var, eps, channel, own, exists, PER_SET) / tl.maximum(n, 1.0)
            by_xhat = (share * dzx_sum).to(tl.float32)
            constant = (share * dz_sum).to(tl.float32)
        if HELD > 0:
            for t in tl.static_range(HELD):
                first = afresh(start) + t * STEP
                if first < end:
                    at, bounds, inside = place(
                        first, end, sample, channel, C, S, chunks, mask_ptr, CHANNELS_LAST, RUN, LANES, J
                    )
                    x, dy = afresh(held[t]).to(tl.float32), afresh(held_dy[t]).to(tl.float32)
                    dz = _dz(x, dy, factor, high, low, scale, shift, residual_ptr, at, inside, ACTIVATION)
                    xhat = centred(x, factor, high, low) * rstd
                    _store(dx_ptr, at, bounds, inside, tl.fma(xhat, by_xhat, tl.fma(dz, by_dz, constant)))
                    if dresidual_ptr is not None:
                        _store(dresidual_ptr, at, bounds, inside, dz)
        else:
            for step in tl.range(steps, num_stages=STAGES):
                a = start + (steps - 1 - step) * STEP
                at, bounds, where = locate(
                    a, end, sample, channel, C, S, chunks, CHANNELS_LAST, RUN, LANES, J
                )
                x, inside = _load(x_ptr, mask_ptr, at, bounds, where)
                dy = tl.load(dy_ptr + at, inside, 0.0).to(tl.float32)
                dz = _dz(x, dy, factor, high, low, scale, shift, residual_ptr, at, inside, ACTIVATION)
                xhat = centred(x, factor, high, low) * rstd
                _store(dx_ptr, at, bounds, inside, tl.fma(xhat, by_xhat, tl.fma(dz, by_dz, constant)))
                if dresidual_ptr is not None:
                    _store(dresidual_ptr, at, bounds, inside, dz)


@triton.jit(do_not_specialize=["sets", "splits"])
def join_moments_kernel(partial_ptr, stats_ptr, sets, splits, WIDTH: tl.constexpr, K: tl.constexpr):
    """Statistics (3, sets) of partial moments (3, splits, sets)."""
    sets = sets.to(tl.int64)
    own = tl.program_id(0).to(tl.int64) * WIDTH + tl.arange(0, WIDTH)
    n, mean, m2 = merged_moments(partial_ptr, sets, own, own < sets, splits, True, K)
    _store_three(stats_ptr + own, sets, own < sets, mean, m2 / tl.maximum(n, 1.0), mean * 0.0)


@triton.jit(do_not_specialize=["sets", "splits"], do_not_specialize_on_alignment=["weight_ptr", "var_ptr"])
def join_sums_kernel(partial_ptr, sums_ptr, slopes_ptr, weight_ptr, var_ptr, eps: tl.float64, sets, C, splits,
                     PER_SET: tl.constexpr, WIDTH: tl.constexpr, K: tl.constexpr):  # fmt: skip
    """Sums (3, sets) of partial ones (3, splits, sets), and the slopes (2, sets) that follow."""
    sets = sets.to(tl.int64)
    own = tl.program_id(0).to(tl.int64) * WIDTH + tl.arange(0, WIDTH)
    exists = own < sets
    dz, dzx, n = merged_sums(partial_ptr, sets, own, exists, splits, True, K)
    _store_three(sums_ptr + own, sets, exists, dz, dzx, n)
    var = tl.load(var_ptr + own, exists, 1.0).to(tl.float64)
    scale = exact_scale(weight_ptr, var, eps, own % C, own, exists, PER_SET)
    tl.store(slopes_ptr + own, -scale * dzx / tl.maximum(n, 1.0), exists)
    tl.store(slopes_ptr + sets + own, -scale * dz / tl.maximum(n, 1.0), exists)


@triton.jit
def _place(SUMS: tl.constexpr):
    """The block of sets and the split of this program; in a second sweep the last come first."""
    block, split = tl.program_id(0), tl.program_id(1)
    if not SUMS:
        block, split = tl.num_programs(0) - 1 - block, tl.num_programs(1) - 1 - split
    return block, split


@triton.jit
def _load(x_ptr, mask_ptr, at, bounds, where):
    """A tile in float32, and which of its elements count; what does not is 0, whatever memory holds."""
    inside = bounds
    if mask_ptr is not None:
        inside = bounds & (tl.load(mask_ptr + where, bounds, 0) != 0)
    return tl.load(x_ptr + at, inside, 0.0).to(tl.float32), inside


@triton.jit
def _store(ptr, at, bounds, inside, value):
    """Zero where an element does not count."""
    tl.store(ptr + at, tl.where(inside, value, 0.0).to(ptr.dtype.element_ty), bounds)


@triton.jit
def _store_three(cells, apart, exists, a, b, c):
    """In a row of an array (3, rows, sets), the three of which lie so far apart."""
    tl.store(cells, a, exists)
    tl.store(cells + apart, b, exists)
    tl.store(cells + 2 * apart, c, exists)


@triton.jit
def _count(inside, mask_ptr, first, end, S, chunks, CHANNELS_LAST: tl.constexpr, J: tl.constexpr):
    """How many elements of a tile count: by sizes alone without a mask."""
    if mask_ptr is None:
        n = elements(first, end, S, chunks, CHANNELS_LAST, J)
    else:
        n = total(inside.to(tl.float32), CHANNELS_LAST, False)
    return n


@triton.jit
def _centre(mean, var, tail_ptr, own, exists):
    """What a set is lifted by, and its mean so lifted, in two parts."""
    factor = lift(mean, var)
    high, low = in_two(mean * factor)
    if tail_ptr is not None:
        low += (tl.load(tail_ptr + own, exists, 0.0) * factor).to(tl.float32)
    return factor.to(tl.float32), high, low


@triton.jit
def exact_scale(weight_ptr, var, eps, channel, own, exists, PER_SET: tl.constexpr):
    """weight / sqrt(var + eps) in float64."""
    scale = 1.0 / tl.sqrt(var + eps)
    if weight_ptr is not None:
        scale *= tl.load(weight_ptr + (own if PER_SET else channel), exists, 0.0).to(tl.float64)
    return scale


@triton.jit
def affine(factor, weight_ptr, bias_ptr, var, eps, channel, own, exists, PER_SET: tl.constexpr):
    """weight / sqrt(var + eps), bias, 1 / sqrt(var + eps): made in float64, rounded once; for lifted elements."""
    lowered = tl.where(factor > 1.0, 1.0 / 16777216.0, 1.0).to(
        tl.float64
    )  # exact, and no division in float64
    scale = (exact_scale(weight_ptr, var, eps, channel, own, exists, PER_SET) * lowered).to(tl.float32)
    rstd = (1.0 / tl.sqrt(var + eps) * lowered).to(tl.float32)
    shift = rstd * 0.0
    if bias_ptr is not None:
        shift = tl.load(bias_ptr + (own if PER_SET else channel), exists, 0.0).to(tl.float32)
    return scale, shift, rstd


@triton.jit
def preactivation(x, factor, high, low, scale, shift, residual_ptr, at, inside):
    """z = scale (x - mean) + shift + residual, the same in both passes."""
    z = tl.fma(centred(x, factor, high, low), scale, shift)
    if residual_ptr is not None:
        z += tl.load(residual_ptr + at, inside, 0.0).to(tl.float32)
    return z


@triton.jit
def _dz(x, dy, factor, high, low, scale, shift, residual_ptr, at, inside, ACTIVATION: tl.constexpr):
    """The gradient of z, 0 where an element does not count."""
    dz = dy
    if ACTIVATION != 0:
        z = preactivation(x, factor, high, low, scale, shift, residual_ptr, at, inside)
        dz = tl.where(inside, times_slope(dy, z, ACTIVATION), 0.0)
    return dz
