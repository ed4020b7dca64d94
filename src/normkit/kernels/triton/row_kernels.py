"""The kernels of the row family: a row is read once and written once, where it fits the registers.

A tile (ROWS, RUN, LANES) takes ROWS whole rows of at most RUN * LANES elements, or that many elements of one longer
row at a time. Sums over RUN are short ones in float32; over LANES they are float64.
"""

# Kernels are not Python: what Triton compiles has no types for pyright.
# pyright: basic, reportArgumentType=false, reportOperatorIssue=false, reportCallIssue=false, reportIndexIssue=false
# pyright: reportOptionalOperand=false, reportAttributeAccessIssue=false, reportGeneralTypeIssues=false
# pyright: reportInvalidTypeForm=false
import triton
import triton.language as tl

from normkit.kernels.triton.tiles import centred, in_two, lift


@triton.jit(do_not_specialize=["R"])
def forward_kernel(
    x_ptr, y_ptr, weight_ptr, bias_ptr, stats_ptr, eps: tl.float64, R, M,
    CENTRED: tl.constexpr, WHOLE: tl.constexpr, ROWS: tl.constexpr, RUN: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """y = weight (x - mean) / sqrt(var + eps) + bias of each row, and mean, var and 0 (3, R)."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    WIDE: tl.constexpr = x_ptr.dtype.element_ty == tl.float32
    STEP: tl.constexpr = RUN * LANES
    steps = tl.cdiv(M, STEP)
    x, inside, at, column = _load(x_ptr, row, 0, R, M, RUN, LANES)
    sums = _total(x, WIDE)
    if not WHOLE:
        for step in range(1, steps):
            x, inside, at, column = _load(x_ptr, row, step * STEP, R, M, RUN, LANES)
            sums += _total(x, WIDE)
    mean = sums / M if CENTRED else sums * 0.0
    high, low = in_two(mean)
    if WHOLE:
        m2 = _squares(x, mean, high, low, inside, M)
    else:
        m2 = mean * 0.0
        for step in range(steps):  # backwards: it begins with what was read last
            x, inside, at, column = _load(x_ptr, row, (steps - 1 - step) * STEP, R, M, RUN, LANES)
            m2 += _squares(x, mean, high, low, inside, M)
    var = m2 / M
    tl.store(stats_ptr + row, mean, row < R)
    tl.store(stats_ptr + R + row, var, row < R)
    tl.store(stats_ptr + 2 * R + row, mean * 0.0, row < R)
    factor, high, low, by, rest = _prepared(mean, var, eps)
    if WHOLE:
        d = centred(x, factor, high, low)
        _store_output(y_ptr, weight_ptr, bias_ptr, d, by, rest, inside, at, column, M)
    else:
        for step in range(steps):
            x, inside, at, column = _load(x_ptr, row, step * STEP, R, M, RUN, LANES)
            d = centred(x, factor, high, low)
            _store_output(y_ptr, weight_ptr, bias_ptr, d, by, rest, inside, at, column, M)


@triton.jit(do_not_specialize=["R", "per_program"])
def backward_kernel(
    x_ptr, dy_ptr, dx_ptr, weight_ptr, stats_ptr, partial_ptr, eps: tl.float64, R, M, per_program,
    CENTRED: tl.constexpr, WHOLE: tl.constexpr, ROWS: tl.constexpr, RUN: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """dx of each row; and partial sums (2, programs, M) of dy xhat and dy, over the rows of each program.

    dx = (g - mean(g) - xhat mean(g xhat)) / sqrt(var + eps), where g = weight dy. Partial sums need whole rows; they
    are of few rows each, in float32.
    """
    STEP: tl.constexpr = RUN * LANES
    steps = tl.cdiv(M, STEP)
    begin = tl.program_id(0).to(tl.int64) * per_program
    end = tl.minimum(begin + per_program, R)
    dweight = tl.zeros([RUN, LANES], tl.float32)
    dbias = dweight
    for first in tl.range(begin, end, ROWS, num_stages=2):
        row = first + tl.arange(0, ROWS)
        factor, high, low, by, rest = _statistics(stats_ptr, row, R, eps)
        x, inside, at, column = _load(x_ptr, row, 0, end, M, RUN, LANES)
        dy, xhat, g = _gradient(dy_ptr, weight_ptr, x, factor, high, low, by, rest, inside, at, column, M)
        shift, tilt = _total(g, False), _total(g * xhat, False)
        if WHOLE:
            if partial_ptr is not None:
                dweight += tl.sum(dy * xhat, 0)
                dbias += tl.sum(dy, 0)
            _store_gradient(dx_ptr, g, xhat, shift, tilt, by * factor, M, inside, at, CENTRED)
        else:
            for step in range(1, steps):
                x, inside, at, column = _load(x_ptr, row, step * STEP, end, M, RUN, LANES)
                dy, xhat, g = _gradient(
                    dy_ptr, weight_ptr, x, factor, high, low, by, rest, inside, at, column, M
                )
                shift += _total(g, False)
                tilt += _total(g * xhat, False)
            for step in range(steps):  # backwards
                x, inside, at, column = _load(x_ptr, row, (steps - 1 - step) * STEP, end, M, RUN, LANES)
                dy, xhat, g = _gradient(
                    dy_ptr, weight_ptr, x, factor, high, low, by, rest, inside, at, column, M
                )
                _store_gradient(dx_ptr, g, xhat, shift, tilt, by * factor, M, inside, at, CENTRED)
    if partial_ptr is not None:
        column = tl.arange(0, RUN)[:, None] * LANES + tl.arange(0, LANES)[None, :]
        cells = partial_ptr + tl.program_id(0).to(tl.int64) * M + column
        tl.store(cells, dweight, column < M)
        tl.store(cells + tl.num_programs(0).to(tl.int64) * M, dbias, column < M)


@triton.jit(do_not_specialize=["R", "per_program"])
def columns_kernel(
    x_ptr, dy_ptr, stats_ptr, partial_ptr, eps: tl.float64, R, M, per_program,
    ROWS: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """The partial sums alone, LANES columns at a time: for rows too long to be held whole beside them."""
    column = tl.program_id(0) * LANES + tl.arange(0, LANES)
    begin = tl.program_id(1).to(tl.int64) * per_program
    end = tl.minimum(begin + per_program, R)
    dweight = tl.zeros([LANES], tl.float32)
    dbias = dweight
    for first in range(begin, end, ROWS):
        row = first + tl.arange(0, ROWS)
        factor, high, low, by, rest = _statistics(stats_ptr, row, R, eps)
        x, inside, at, _ = _load(x_ptr, row, tl.program_id(0) * LANES, end, M, 1, LANES)
        dy = tl.load(dy_ptr + at, inside, 0.0).to(tl.float32)
        xhat = _xhat(x, factor, high, low, by, rest)
        dweight += tl.sum(tl.sum(dy * xhat, 1), 0)
        dbias += tl.sum(tl.sum(dy, 1), 0)
    cells = partial_ptr + tl.program_id(1).to(tl.int64) * M + column
    tl.store(cells, dweight, column < M)
    tl.store(cells + tl.num_programs(1).to(tl.int64) * M, dbias, column < M)


@triton.jit(do_not_specialize=["programs"])
def join_kernel(
    partial_ptr, dweight_ptr, dbias_ptr, programs, M, WIDTH: tl.constexpr, K: tl.constexpr
):  # fmt: skip
    """Gradients of weight and bias of their partial sums, in order, in float64."""
    column = tl.program_id(0) * WIDTH + tl.arange(0, WIDTH)
    dweight = tl.zeros([WIDTH], tl.float64)
    dbias = dweight
    for first in range(0, programs, K):
        k = first + tl.arange(0, K)
        there = (k < programs)[:, None] & (column < M)[None, :]
        cells = partial_ptr + k.to(tl.int64)[:, None] * M + column[None, :]
        dweight += tl.sum(tl.load(cells, there, 0.0).to(tl.float64), 0)
        dbias += tl.sum(tl.load(cells + programs.to(tl.int64) * M, there, 0.0).to(tl.float64), 0)
    if dweight_ptr is not None:
        tl.store(dweight_ptr + column, dweight.to(tl.float32).to(dweight_ptr.dtype.element_ty), column < M)
    if dbias_ptr is not None:
        tl.store(dbias_ptr + column, dbias.to(tl.float32).to(dbias_ptr.dtype.element_ty), column < M)


@triton.jit
def _load(x_ptr, row, first, R, M, RUN: tl.constexpr, LANES: tl.constexpr):
    """Elements of rows from column `first` on in float32, 0 outside; which are inside, where they lie, columns."""
    column = first + (tl.arange(0, RUN)[:, None] * LANES + tl.arange(0, LANES)[None, :])
    inside = (row < R)[:, None, None] & (column < M)[None, :, :]
    at = (row * M)[:, None, None] + column[None, :, :]
    return tl.load(x_ptr + at, inside, 0.0).to(tl.float32), inside, at, column


@triton.jit
def _total(v, WIDE: tl.constexpr):
    if WIDE:
        v = v.to(tl.float64)
    return tl.sum(tl.sum(v, 1).to(tl.float64), 1)


@triton.jit
def _squares(x, mean, high, low, inside, M):
    d = tl.where(inside, (x - high[:, None, None]) - low[:, None, None], 0.0)
    m2 = _total(d * d, False)
    # Squares beyond float32, or too small for all its bits. Rare, and constant rows; then in float64.
    if tl.max(((m2 > 1e37) | (m2 < M * 1e-30)).to(tl.int32), 0) > 0:
        wide = tl.where(inside, x.to(tl.float64) - mean[:, None, None], 0.0)
        exact = _total(wide * wide, True)
        m2 = tl.where(
            (m2 > 1e37) | (m2 < M * 1e-30), exact, m2
        )  # a row's sum does not depend on its neighbours
    return m2


@triton.jit
def _xhat(x, factor, high, low, by, rest):
    """(x - mean) / sqrt(var + eps), the second factor in two parts: its rounding would be one too many."""
    d = centred(x, factor, high, low)
    return tl.fma(d, by, d * rest)


@triton.jit
def _store_output(y_ptr, weight_ptr, bias_ptr, d, by, rest, inside, at, column, M):
    """weight d (by + rest) + bias; the product of weight and factor in two parts, so that y is rounded once."""
    if weight_ptr is not None:
        weight = tl.load(weight_ptr + column, column < M, 0.0).to(tl.float32)[None, :, :]
        product = weight * by
        rest = tl.fma(weight, by, -product) + weight * rest
        by = product
    small = d * rest
    if bias_ptr is not None:
        small += tl.load(bias_ptr + column, column < M, 0.0).to(tl.float32)[None, :, :]
    tl.store(y_ptr + at, tl.fma(d, by, small).to(y_ptr.dtype.element_ty), inside)


@triton.jit
def _statistics(stats_ptr, row, R, eps):
    mean = tl.load(stats_ptr + row, row < R, 0.0)
    return _prepared(mean, tl.load(stats_ptr + R + row, row < R, 1.0), eps)


@triton.jit
def _prepared(mean, var, eps):
    """What rows are lifted by, and so lifted the mean in two parts and 1 / sqrt(var + eps) in two parts."""
    factor = lift(mean, var)
    high, low = in_two(mean * factor)
    by, rest = in_two(1.0 / (tl.sqrt(var + eps) * factor))
    factor = factor.to(tl.float32)
    return (
        factor[:, None, None],
        high[:, None, None],
        low[:, None, None],
        by[:, None, None],
        rest[:, None, None],
    )


@triton.jit
def _gradient(dy_ptr, weight_ptr, x, factor, high, low, by, rest, inside, at, column, M):
    """dy, xhat, and weight dy."""
    dy = tl.load(dy_ptr + at, inside, 0.0).to(tl.float32)
    g = dy
    if weight_ptr is not None:
        g = dy * tl.load(weight_ptr + column, column < M, 0.0).to(tl.float32)[None, :, :]
    return dy, tl.where(inside, _xhat(x, factor, high, low, by, rest), 0.0), g


@triton.jit
def _store_gradient(dx_ptr, g, xhat, shift, tilt, by, M, inside, at, CENTRED: tl.constexpr):
    tilt = (tilt / M).to(tl.float32)[:, None, None]
    if CENTRED:
        g -= (shift / M).to(tl.float32)[:, None, None]
    tl.store(dx_ptr + at, (by * tl.fma(-xhat, tilt, g)).to(dx_ptr.dtype.element_ty), inside)
