"""Elementary functions of one element by name: written out where networks evaluate them everywhere, else the C library.

TVM's own lowering calls the C library once per lane or, for the hyperbolic tangent, cancels digits near zero.
"""

from __future__ import annotations

from collections.abc import Callable

from tvm.tirx.script import builder as T

from planish.codegen import math as vector_math
from planish.codegen.dims import Expr
from planish.ir import UnsupportedError

# sin and cos are not among them: written out, they hold for bounded angles only.
_WRITTEN_OUT: dict[str, Callable[[Expr], Expr]] = {
    "erf": vector_math.erf,
    "exp": vector_math.exp,
    "log": vector_math.log,
    "normal_cdf": vector_math.normal_cdf,
    "sigmoid": vector_math.sigmoid,
    "tanh": vector_math.tanh,
}

LIBRARY = frozenset(
    "acos acosh asin asinh atan atanh cos cosh erf erfc exp exp2 expm1 log log10 log1p log2 sin sinh tan tanh".split()
)
"""Functions of one argument that the C library has for both float dtypes."""


def elementary(name: str, x: Expr) -> Expr:
    """`name(x)` for x in float32 or float64: one of LIBRARY, "sigmoid" or "normal_cdf".

    Must be called where statements are emitted.

    Raises:
        UnsupportedError: for another function or dtype.
    """
    dtype = str(x.ty.dtype)
    if dtype == "float32" and name in _WRITTEN_OUT:
        return _WRITTEN_OUT[name](x)
    if dtype == "float64" and name == "sigmoid":
        return T.float64(1) / (T.float64(1) + elementary("exp", -x))
    if dtype == "float64" and name == "normal_cdf":
        return T.float64(0.5) * elementary("erfc", x * T.float64(-(0.5**0.5)))
    if name not in LIBRARY or dtype not in ("float32", "float64"):
        raise UnsupportedError(f"no elementary function {name} of {dtype}: cast to float32 or float64 first")
    return library(name, x)


def library(name: str, *arguments: Expr) -> Expr:
    """A function of the C library on float32 or float64 arguments."""
    dtype = str(arguments[0].ty.dtype)
    return T.call_pure_extern(dtype, name + ("f" if dtype == "float32" else ""), *arguments)
