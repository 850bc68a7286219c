"""Elementary functions on float32 vectors, as TIR expressions.

TVM lowers `exp` and its like to calls of the C library, one lane at a time and with bits that depend on the machine.
These are polynomials instead: every product that meets a sum is an explicit fused multiply-add, because LLVM may fuse
a written `a * b + c` in one place and not in another, and then equal rows would get different bits.

All functions take a float32 expression of any number of lanes and return one of the same type, to be used in the next
statement; they emit statements, so they work only where an IRBuilder is building a function. NaN gives NaN. The
stated error is the largest distance from the exact value, in units in the last place of the float32 nearest to it,
seen over the whole range (the nightly test visits every float32).

The coefficients are our own minimax fits (iteratively reweighted least squares on Chebyshev nodes, rounded to float32
one at a time with the others fitted again); the ranges they were fitted on stand beside them. Constants that need
more than float32 are split into a leading part and its remainder (Cody and Waite, "Software Manual for the Elementary
Functions", 1980).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

from tvm import tirx
from tvm.tirx.script import builder as T

from planish.codegen.dialect import current

Expr: TypeAlias = Any
"""A TIR expression; TVM publishes no types."""

_LOG2_E = float.fromhex("0x1.715476p+0")
_LN2 = (float.fromhex("0x1.62e430p-1"), float.fromhex("-0x1.05c610p-29"))
_TWO_OVER_PI = float.fromhex("0x1.45f306p-1")
_HALF_PI = (
    float.fromhex("0x1.921fb6p+0"),
    float.fromhex("-0x1.777a5cp-25"),
    float.fromhex("-0x1.ee59dap-50"),
)
# Adding this to |x| < 2^22 rounds x to an integer, which then stands in the low bits of the sum.
_ROUND = 1.5 * 2.0**23
_ROUND_BITS = 0x4B400000

# exp(r) on |r| <= ln(2) / 2, from the power 6 down to 0.
_EXP = ("0x1.6a4154p-10", "0x1.1239c6p-7", "0x1.5558bcp-5", "0x1.555492p-3", "0x1.fffffcp-2", "0x1p+0", "0x1p+0")
# (log(1 + f) - f + f^2 / 2) / f^3 for 1 + f in [sqrt(1/2), sqrt(2)].
_LOG = (
    "0x1.14763ap-4", "-0x1.de02d6p-4", "0x1.e6bf38p-4", "-0x1.fc2884p-4", "0x1.233ba8p-3",
    "-0x1.555c46p-3", "0x1.99a476p-3", "-0x1.000006p-2", "0x1.555548p-2",
)  # fmt: skip
# (tanh(x) / x - 1) / x^2 in x^2, on |x| <= 0.625.
_TANH = ("-0x1.76922ap-8", "0x1.52509ep-6", "-0x1.b84340p-5", "0x1.110760p-3", "-0x1.555534p-2")
# erf(x) / x - 1 in x^2, on |x| <= 1.
_ERF = (
    "0x1.4771fcp-14", "-0x1.a3515ep-11", "0x1.53f224p-8", "-0x1.b7f71ap-6", "0x1.ce2ce6p-4", "-0x1.81273ep-2",
    "0x1.06eba8p-3",
)  # fmt: skip
# -log(1 - erf(x)) on 1 <= x <= 4; beyond, erf(x) is 1 in float32.
_LOG_ERFC = (
    "-0x1.8528d0p-13", "0x1.814ad4p-9", "-0x1.654170p-6", "0x1.a60a4ap-4", "0x1.46c588p-1", "0x1.2085b2p+0",
    "0x1.72e404p-12",
)  # fmt: skip
# (t + 4) * Phi(-t) * exp(t^2 / 2) in u = (t - 4) / (t + 4), on 0 <= t <= 14.5.
_NORMAL_TAIL = (
    "-0x1.0758cap-13", "0x1.a48dc6p-13", "0x1.9ed828p-10", "-0x1.ce29f8p-9", "-0x1.edddfap-8", "0x1.eedacep-5",
    "-0x1.7dfed8p-3", "0x1.8c6d84p-2", "-0x1.373e3cp-1", "0x1.82b4bcp-1",
)  # fmt: skip
# (sin(r) / r - 1) / r^2 and (cos(r) - 1 + r^2 / 2) / r^4 in r^2, on |r| <= 0.85.
_SIN = ("0x1.762f3ap-19", "-0x1.a044cap-13", "0x1.111164p-7", "-0x1.555556p-3")
_COS = ("0x1.98ef68p-16", "-0x1.6c089ep-10", "0x1.555544p-5")

ANGLE_LIMIT = 2.0**22
"""Largest |x| for :func:`sin` and :func:`cos`; beyond, they give NaN rather than digits that mean nothing."""


def lanes_of(value: Expr) -> int:
    """Number of elements in the vector ``value``; 1 for a scalar."""
    return int(value.ty.dtype.lanes)


def constant(number: float, like: Expr) -> Expr:
    """``number`` in every lane of a float32 expression of the type of ``like``."""
    scalar, lanes = tirx.FloatImm("float32", number), lanes_of(like)
    return scalar if lanes == 1 else tirx.Broadcast(scalar, lanes)


def fma(a: Expr, b: Expr, c: Expr) -> Expr:
    """``a * b + c``, rounded once."""
    return current().fma(a, b, c)


def sqrt(x: Expr) -> Expr:
    """The square root, correctly rounded."""
    return current().sqrt(x)


def absolute(x: Expr) -> Expr:
    """|x|."""
    return current().absolute(x)


def maximum(x: Expr, low: Expr) -> Expr:
    """The larger of ``x`` and ``low``; NaN where ``x`` is NaN."""
    return tirx.Select(low > x, low, x)


def minimum(x: Expr, high: Expr) -> Expr:
    """The smaller of ``x`` and ``high``; NaN where ``x`` is NaN."""
    return tirx.Select(high < x, high, x)


def hold(value: Expr) -> Expr:
    """``value`` computed here, once, and named: emits its store to a register and returns the load.

    TVM puts a pure expression that was merely bound to a variable back into every place that uses it, so that a chain
    of names grows exponentially; what comes from a buffer stays. LLVM keeps such a buffer in a register, as long as it
    has the default scope: one of scope "local" would be allocated by a call of the runtime.
    """
    dtype, lanes = value.ty.dtype, lanes_of(value)
    register = current().buffer((lanes,), str(dtype.with_lanes(1)))
    at = 0 if lanes == 1 else T.ramp(0, 1, lanes)
    T.buffer_store(register, value, [at])
    return register[at]


def _polynomial(x: Expr, coefficients: Sequence[str]) -> Expr:
    """Horner's rule, highest power first; ``x`` must be held."""
    result = constant(float.fromhex(coefficients[0]), x)
    for coefficient in coefficients[1:]:
        result = fma(result, x, constant(float.fromhex(coefficient), x))
    return result


def _integer(value: int, like: Expr) -> Expr:
    scalar, lanes = tirx.IntImm("int32", value), lanes_of(like)
    return scalar if lanes == 1 else tirx.Broadcast(scalar, lanes)


def _retype(value: Expr, kind: str) -> Expr:
    """The bits of ``value`` as ``kind`` (int32 or float32)."""
    lanes = lanes_of(value)
    return tirx.reinterpret(kind if lanes == 1 else f"{kind}x{lanes}", value)


def _exp_reduced(x: Expr, rounding: float) -> tuple[Expr, Expr]:
    """``(t, p)`` with exp(x) = p * 2^n, p in [0.7, 1.5], and t the float32 sum n + rounding."""
    t = hold(fma(x, constant(_LOG2_E, x), constant(rounding, x)))
    n = hold(t - constant(rounding, x))
    r = hold(fma(n, constant(-_LN2[0], x), x))
    r = hold(fma(n, constant(-_LN2[1], x), r))
    return t, _polynomial(r, _EXP)


def _exp(x: Expr) -> Expr:
    # Beyond +-105 the result is inf or 0 anyway; the power of two comes in two factors so that subnormal results and
    # those just below overflow come out right.
    x = hold(maximum(hold(minimum(x, constant(105.0, x))), constant(-105.0, x)))
    t, p = _exp_reduced(x, _ROUND)
    n = hold(_retype(t, "int32") - _integer(_ROUND_BITS, x))
    half = hold(n >> _integer(1, x))
    first = _retype((half + _integer(127, x)) << _integer(23, x), "float32")
    second = _retype((n - half + _integer(127, x)) << _integer(23, x), "float32")
    return hold(p * first * second)


def exp(x: Expr) -> Expr:
    """e^x, subnormal results included. Error at most 0.9 ulp."""
    return _exp(hold(x))


def exp_nonpositive(x: Expr) -> Expr:
    """e^x for x <= 0, half the work of :func:`exp`: exactly 1 at 0 and exactly 0 at -inf. Error at most 0.9 ulp.

    Results below about 2^-126.5 are 0. For x > 0 the result means nothing.
    """
    # At -88 the rounded exponent is -127, whose biased form 0 is the float 0.
    x = hold(maximum(hold(x), constant(-88.0, x)))
    t, p = _exp_reduced(x, _ROUND + 127.0)
    return p * _retype(_retype(t, "int32") << _integer(23, x), "float32")


def log(x: Expr) -> Expr:
    """The natural logarithm; -inf at 0, NaN below. Error at most 1 ulp."""
    x = hold(x)
    tiny = x < constant(2.0**-126, x)
    scaled = hold(tirx.Select(tiny, x * constant(2.0**23, x), x))
    bits = hold(_retype(scaled, "int32"))
    # 0x3f3504f3 is sqrt(1/2): the mantissa lands in [sqrt(1/2), sqrt(2)).
    e = hold((bits - _integer(0x3F3504F3, x)) >> _integer(23, x))
    f = hold(_retype(bits - (e << _integer(23, x)), "float32") - constant(1.0, x))
    shift = tirx.Select(tiny, _integer(23, x), _integer(0, x))
    n = hold(tirx.Cast(x.ty.dtype, e - shift))
    square = hold(f * f)
    tail = fma(_polynomial(f, _LOG), f, constant(-0.5, x))
    result = fma(n, constant(_LN2[0], x), fma(n, constant(_LN2[1], x), fma(square, tail, f)))
    result = tirx.Select(x < constant(float("inf"), x), result, x)
    result = tirx.Select(x > constant(0.0, x), result, constant(float("nan"), x))
    return tirx.Select(tirx.EQ(x, constant(0.0, x)), constant(float("-inf"), x), result)


def sigmoid(x: Expr) -> Expr:
    """1 / (1 + e^-x). Error at most 2.5 ulp."""
    x = hold(x)
    z = hold(_exp(hold(constant(0.0, x) - absolute(x))))
    return tirx.Select(x < constant(0.0, x), z, constant(1.0, x)) / (constant(1.0, x) + z)


def tanh(x: Expr) -> Expr:
    """The hyperbolic tangent. Error at most 1.5 ulp."""
    x = hold(x)
    a = hold(absolute(x))
    square = hold(a * a)
    near = fma(hold(square * _polynomial(square, _TANH)), a, a)
    far = constant(1.0, x) - constant(2.0, x) / (_exp(hold(a + a)) + constant(1.0, x))
    return _with_sign_of(x, tirx.Select(a < constant(0.625, x), near, far))


def erf(x: Expr) -> Expr:
    """The error function. Error at most 1.5 ulp."""
    x = hold(x)
    a = hold(minimum(absolute(x), constant(4.0, x)))
    square = hold(a * a)
    near = fma(_polynomial(square, _ERF), a, a)
    exponent = hold(constant(0.0, x) - _polynomial(a, _LOG_ERFC))
    far = constant(1.0, x) - exp_nonpositive(exponent)
    return _with_sign_of(x, tirx.Select(a < constant(1.0, x), near, far))


def normal_cdf(x: Expr) -> Expr:
    """Phi(x), the probability that a standard normal variable is at most x. Error at most 6 ulp in either tail.

    Written with its own tail instead of (1 + erf(x / sqrt(2))) / 2, which loses every digit for negative x.
    """
    x = hold(x)
    t = hold(minimum(absolute(x), constant(14.5, x)))
    reciprocal = hold(constant(1.0, x) / (t + constant(4.0, x)))
    u = hold((t - constant(4.0, x)) * reciprocal)
    # t^2 exactly, as a sum of two floats: its rounding error would be multiplied by t^2 / 2.
    square = hold(t * t)
    rest = hold(fma(t, t, constant(0.0, x) - square))
    power = _exp(hold(square * constant(-0.5, x)))
    power = hold(fma(power, rest * constant(-0.5, x), power))
    weight = hold(_polynomial(u, _NORMAL_TAIL) * reciprocal)
    upper = fma(constant(0.0, x) - weight, power, constant(1.0, x))
    return tirx.Select(x < constant(0.0, x), weight * power, upper)


def sin(x: Expr) -> Expr:
    """The sine for |x| <= ANGLE_LIMIT, NaN beyond. Error at most 2 ulp."""
    return _trigonometric(x, 0)


def cos(x: Expr) -> Expr:
    """The cosine for |x| <= ANGLE_LIMIT, NaN beyond. Error at most 2 ulp."""
    return _trigonometric(x, 1)


def _trigonometric(x: Expr, quarter_turns: int) -> Expr:
    """sin(x + quarter_turns * pi / 2)."""
    x = hold(x)
    t = hold(fma(x, constant(_TWO_OVER_PI, x), constant(_ROUND, x)))
    n = hold(t - constant(_ROUND, x))
    # The first step is exact: its result is below 2 and a multiple of 2^-23. So only the last roundings remain.
    r = x
    for part in _HALF_PI:
        r = hold(fma(n, constant(-part, x), r))
    square = hold(r * r)
    sine = fma(hold(square * _polynomial(square, _SIN)), r, r)
    cosine = fma(square, fma(_polynomial(square, _COS), square, constant(-0.5, x)), constant(1.0, x))
    quadrant = hold(_retype(t, "int32") + _integer(quarter_turns, x))
    odd = tirx.EQ(quadrant & _integer(1, x), _integer(1, x))
    value = _retype(tirx.Select(odd, cosine, sine), "int32")
    signed = _retype(value ^ ((quadrant & _integer(2, x)) << _integer(30, x)), "float32")
    inside = absolute(x) <= constant(ANGLE_LIMIT, x)
    return tirx.Select(inside, signed, constant(float("nan"), x))


def _with_sign_of(x: Expr, magnitude: Expr) -> Expr:
    return current().copysign(magnitude, x)
