"""The text of symbolic dimensions, and the one form of the functions that occur in them.

A dimension is written as Python would: `2*S + 1`, `(S + 3) // 2`, `Mod(S, 4)`, `Min(S, C)`. The text is exact: the
parser of the text form builds the same expression from it.
"""

from __future__ import annotations

import re
from typing import Any

import sympy
from torch.utils._sympy import functions

from planish.ir.errors import IRError

# Functions by the name that the text gives them. Floor division is written `//` instead.
FUNCTIONS: dict[str, Any] = {
    **{n: getattr(functions, n) for n in ("CleanDiv", "Max", "Min", "Mod", "ModularIndexing", "PythonMod")},
    "ceiling": sympy.ceiling,
    "floor": sympy.floor,
}
_NAMES = {made: name for name, made in FUNCTIONS.items()}
# sympy's own classes mean the same as torch's, which exported programs use; only the latter are kept.
_SYNONYMS = {sympy.Max: functions.Max, sympy.Min: functions.Min, sympy.Mod: functions.Mod}
RESERVED = frozenset({"none", "true", "false", "inf", "nan", *FUNCTIONS})
_PLAIN = re.compile(r"[A-Za-z_]\w*", re.ASCII)

_SUM, _PRODUCT, _POWER, _ATOM = range(4)


def canonical(dim: sympy.Expr) -> sympy.Expr:
    """The expression with each function in the form that the text writes."""
    if dim.is_Symbol or not dim.has(*_SYNONYMS):
        return dim
    for synonym, kept in _SYNONYMS.items():
        dim = dim.replace(synonym, kept)
    return dim


def quote(text: str, mark: str = '"') -> str:
    """The text between two marks, with escapes for the mark, the backslash and what cannot be printed."""
    body = "".join(c if c.isprintable() and c not in ("\\", mark) else f"\\u{{{ord(c):x}}}" for c in text)
    return f"{mark}{body}{mark}"


def format_symbol(name: str, reserved: frozenset[str] = frozenset()) -> str:
    """The symbol's name, between backticks when it would read as something else."""
    if _PLAIN.fullmatch(name) and name not in RESERVED and name not in reserved:
        return name
    return quote(name, "`")


def format_dim(dim: int | sympy.Expr, reserved: frozenset[str] = frozenset()) -> str:
    """The exact text of a dimension; raises IRError for an expression that the text form does not hold.

    Symbols named as one of `reserved` (the dtypes) are quoted.
    """
    return str(dim) if isinstance(dim, int) else _format(canonical(dim), reserved)[0]


def _format(e: sympy.Expr, reserved: frozenset[str]) -> tuple[str, int]:
    """The text and how tightly it binds."""

    def inner(part: sympy.Expr, least: int) -> str:
        text, level = _format(part, reserved)
        return text if level >= least else f"({text})"

    if e.is_Symbol:
        return format_symbol(e.name, reserved), _ATOM
    if e.is_Integer:
        return str(int(e)), _ATOM if e >= 0 else _SUM
    if e.is_Rational:
        return f"{e.p}/{e.q}", _SUM
    if e.is_Add:
        first, *rest = e.as_ordered_terms()
        text = inner(first, _SUM)
        for term in rest:
            negative = term.could_extract_minus_sign()
            text += f" - {inner(-term, _PRODUCT)}" if negative else f" + {inner(term, _PRODUCT)}"
        return text, _SUM
    if e.is_Mul:
        number, factors = e.as_coeff_mul()
        product = "*".join(inner(f, _POWER) for f in factors)
        if number == 1:
            return product, _PRODUCT
        if number.is_negative:
            return f"-{inner(-e, _PRODUCT)}", _SUM
        return f"{inner(number, _PRODUCT)}*{product}", _PRODUCT
    if e.is_Pow and e.exp.is_Integer:
        return f"{inner(e.base, _ATOM)}**{int(e.exp)}", _POWER
    if isinstance(e, functions.FloorDiv) and type(e) is functions.FloorDiv:
        return f"{inner(e.args[0], _ATOM)} // {inner(e.args[1], _ATOM)}", _PRODUCT
    if e.func in _NAMES:
        return f"{_NAMES[e.func]}({', '.join(inner(a, _SUM) for a in e.args)})", _ATOM
    raise IRError(f"the text form does not hold the dimension {e}: {e.func.__name__} is not one of its functions")
