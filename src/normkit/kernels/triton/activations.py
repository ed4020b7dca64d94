"""The activations that follow a norm, and their derivatives, in float32: codes as `kernels.codes` has them."""

# Kernels are not Python: what Triton compiles has no types for pyright.
# pyright: basic, reportArgumentType=false, reportOperatorIssue=false, reportCallIssue=false, reportIndexIssue=false
# pyright: reportOptionalOperand=false, reportAttributeAccessIssue=false, reportGeneralTypeIssues=false
# pyright: reportInvalidTypeForm=false
import triton
import triton.language as tl

RELU = tl.constexpr(1)
LEAKY_RELU = tl.constexpr(2)
SILU = tl.constexpr(3)
GELU = tl.constexpr(4)
ELU = tl.constexpr(5)
SIGMOID = tl.constexpr(6)
TANH = tl.constexpr(7)
RELU6 = tl.constexpr(8)
HARDSWISH = tl.constexpr(9)


@triton.jit
def activate(z, CODE: tl.constexpr):
    """a(z); z itself where the code is 0."""
    if CODE == RELU:
        z = tl.where(z < 0, 0.0, z)  # NaN stays NaN
    elif CODE == LEAKY_RELU:
        z = tl.where(z > 0, z, 0.01 * z)
    elif CODE == SILU:
        z = z * _sigmoid(z)
    elif CODE == GELU:
        z = z * _normal_cdf(z)
    elif CODE == ELU:
        z = tl.where(z > 0, z, _expm1_of_negative(z))
    elif CODE == SIGMOID:
        z = _sigmoid(z)
    elif CODE == TANH:
        z = _tanh(z)
    elif CODE == RELU6:
        z = tl.where(z < 0, 0.0, tl.where(z > 6, 6.0, z))
    elif CODE == HARDSWISH:
        z = tl.where(z <= -3, 0.0, tl.where(z >= 3, z, z * (z + 3) * (1 / 6)))
    return z


@triton.jit
def times_slope(dy, z, CODE: tl.constexpr):
    """dy a'(z)."""
    if CODE == RELU:
        dy = tl.where(z > 0, dy, 0.0)
    elif CODE == LEAKY_RELU:
        dy = tl.where(z > 0, dy, 0.01 * dy)
    elif CODE == SILU:
        s = _sigmoid(z)
        # s (1 - s) is 0 long before z overflows, and 0 times infinity is not a number.
        dy = dy * (s + tl.where(tl.abs(z) < 200.0, z * s * _sigmoid(-z), 0.0))
    elif CODE == GELU:
        density = 0.3989422804014327 * tl.exp(-0.5 * z * z)
        dy = dy * (_normal_cdf(z) + tl.where(tl.abs(z) < 20.0, z * density, 0.0))
    elif CODE == ELU:
        dy = tl.where(z > 0, dy, dy * tl.exp(tl.where(z > 0, 0.0, z)))
    elif CODE == SIGMOID:
        dy = dy * (_sigmoid(z) * _sigmoid(-z))
    elif CODE == TANH:
        t = _tanh(z)
        dy = dy * ((1.0 - t) * (1.0 + t))
    elif CODE == RELU6:
        dy = tl.where((z > 0) & (z < 6), dy, 0.0)
    elif CODE == HARDSWISH:
        dy = tl.where(z <= -3, 0.0, tl.where(z >= 3, dy, dy * (z * (1 / 3) + 0.5)))
    return dy


@triton.jit
def _sigmoid(z):
    # The exponential never overflows: of the two forms the one with a negative argument.
    e = tl.exp(-tl.abs(z))
    inverse = 1.0 / (1.0 + e)
    return tl.where(z >= 0, inverse, e * inverse)


@triton.jit
def _normal_cdf(z):
    return 0.5 + 0.5 * tl.erf(0.7071067811865476 * z)


@triton.jit
def _expm1_of_negative(z):
    """e^z - 1 for z <= 0: the series near 0, where the difference would lose its digits."""
    z = tl.where(z > 0, 0.0, z)  # a GPU's minimum would make a number of NaN
    t = tl.where(z > -0.5, z, -0.5)
    series = 1.0 + t * (1 / 8)  # products: a GPU divides by the constants too
    series = 1.0 + t * (1 / 7) * series
    series = 1.0 + t * (1 / 6) * series
    series = 1.0 + t * (1 / 5) * series
    series = 1.0 + t * (1 / 4) * series
    series = 1.0 + t * (1 / 3) * series
    series = 1.0 + t * (1 / 2) * series
    return tl.where(z > -0.5, t * series, tl.exp(z) - 1.0)


@triton.jit
def _tanh(z):
    """(1 - e) / (1 + e) with e = exp(-2 |z|); near 0, where that loses digits, by e^-2|z| - 1 itself."""
    d = _expm1_of_negative(-2.0 * tl.abs(z))
    t = -d / (2.0 + d)
    return tl.where(z < 0, -t, t)
