"""Parsing attributes: dimensions, numbers, strings, dtypes, tuples and records."""

from __future__ import annotations

import dataclasses
import math
import re
import struct
from collections.abc import Callable, Mapping
from typing import Any

import sympy

from planish.ir.dims import FUNCTIONS
from planish.ir.errors import IRError
from planish.ir.fields import field_types, fits, nested_records, type_text
from planish.ir.text.attributes import format_attribute
from planish.ir.text.scanner import Scanner
from planish.ir.types import DTYPES, TensorType, as_dim, floor_div, symbol

_NUMBER = re.compile(r"\d+(\.\d+)?(e[+-]?\d+)?")
_WORD = re.compile(r"[A-Za-z_]\w*", re.ASCII)
_BITS = re.compile(r"0x[0-9a-f]{16}")
_INTEGER = re.compile(r"-?\d+")
# A type in which every bracket is what it seems to be: no quoted name holds one.
_TYPE = re.compile(r"\w+\[[^\[\]`\"]*\]", re.ASCII)
_CONSTANTS: dict[str, Any] = {"none": None, "true": True, "false": False, "inf": math.inf}


def _called(made: type) -> str:
    """The name of a record in messages: an operation's or encoding's own, else the class's."""
    name: str = getattr(made, "name", made.__name__)
    return name


class ExpressionParser:
    """Parses attributes at the scanner's position.

    Args:
        records: dataclasses that may occur, by class name.
        operand: reads an operand where one stands (in the arguments of an ATen call) and returns what stands for it.
    """

    def __init__(
        self, scanner: Scanner, records: Mapping[str, type] | None = None, operand: Callable[[], Any] | None = None
    ) -> None:
        self.scanner = scanner
        self.records = records or {}
        self.operand = operand
        self.types: dict[str, TensorType] = {}

    def attribute(self) -> Any:
        """Any attribute."""
        scanner, negative = self.scanner, False
        start = scanner.skip()
        value = self._product()
        while (negative := scanner.peek("-")) or scanner.peek("+"):
            scanner.position += 1
            value, other = self._dims(start, value, self._product())
            value = as_dim(value - other if negative else value + other)
        return value

    def tensor_type(self) -> TensorType:
        """A tensor type such as `f32[B, 2*S]`. A text's few types stand at every node, so each is read once."""
        scanner = self.scanner
        start = scanner.skip()
        found = _TYPE.match(scanner.text, start)
        if found and (known := self.types.get(found.group())):
            scanner.position = found.end()
            return known
        type = self._tensor_type(start)
        self.types[scanner.text[start : scanner.position]] = type
        return type

    def _tensor_type(self, start: int) -> TensorType:
        scanner = self.scanner
        word = scanner.match(_WORD) or ""
        if word not in DTYPES:
            raise scanner.error(f"expected a type such as f32[B, 4]; dtypes are {', '.join(DTYPES)}", start)
        scanner.expect("[", "the dtype")
        shape = [self._dims(scanner.position, v)[0] for v in self._until("]")]
        try:
            return TensorType(DTYPES[word], tuple(shape))
        except IRError as error:
            raise scanner.error(str(error), start) from error

    def record(self, made: type, close: str, start: int) -> Any:
        """An instance of a dataclass from `name = value, ...` up to `close`; fields left out have their defaults."""
        return self.build(made, self._fields(made, close), start)

    def _fields(self, made: type, close: str) -> dict[str, Any]:
        scanner, declared, called = self.scanner, field_types(made), _called(made)
        inner = ExpressionParser(scanner, nested_records(made), self.operand)
        values: dict[str, Any] = {}
        while not scanner.accept(close):
            if values:
                scanner.expect(",", "an attribute")
            at = scanner.skip()
            name = scanner.name("the name of an attribute")
            if name not in declared:
                raise scanner.error(f"{called} has no attribute {name!r}; it has {', '.join(declared) or 'none'}", at)
            if name in values:
                raise scanner.error(f"attribute {name!r} is given twice", at)
            scanner.expect("=", f"the name of attribute {name!r}")
            at = scanner.skip()
            values[name] = inner.attribute()
            if not fits(values[name], declared[name]):
                got = format_attribute(values[name])
                raise scanner.error(f"attribute {name!r} of {called} is {type_text(declared[name])}, got {got}", at)
        return values

    def build(self, made: type, values: dict[str, Any], start: int) -> Any:
        """An instance of a dataclass; errors point at `start`."""
        scanner, called = self.scanner, _called(made)
        for field in dataclasses.fields(made):
            required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
            if required and field.name not in values:
                raise scanner.error(f"{called} needs its attribute {field.name!r}", start)
        try:
            return made(**values)
        except IRError as error:
            raise scanner.error(str(error), start) from error

    def _until(self, close: str) -> list[Any]:
        values: list[Any] = []
        while not self.scanner.accept(close):
            if values:
                self.scanner.expect(",", "an element")
                if self.scanner.accept(close):
                    break
            values.append(self.attribute())
        return values

    def _dims(self, start: int, *values: Any) -> list[Any]:
        """The values, all of which must be dimensions."""
        for value in values:
            if isinstance(value, bool) or not isinstance(value, (int, sympy.Expr)):
                raise self.scanner.error(f"{format_attribute(value)} is no dimension", start)
        return list(values)

    def _product(self) -> Any:
        scanner = self.scanner
        start = scanner.skip()
        if scanner.accept("-"):
            value = self._product()
            return -value if isinstance(value, float) else as_dim(-self._dims(start, value)[0])
        value = self._power()
        while True:
            if scanner.accept_on_line("//"):
                value, other = self._dims(start, value, self._power())
                self._nonzero(other, start)
                value = floor_div(value, other)
            elif scanner.accept("*"):
                value, other = self._dims(start, value, self._power())
                value = as_dim(value * other)
            elif scanner.accept("/"):
                value, other = self._dims(start, value, self._power())
                self._nonzero(other, start)
                value = as_dim(sympy.sympify(value) / other)
            else:
                return value

    def _nonzero(self, value: Any, start: int) -> None:
        if value == 0:
            raise self.scanner.error("a dimension is divided by zero", start)

    def _power(self) -> Any:
        start = self.scanner.skip()
        value = self._atom()
        if self.scanner.accept("**"):
            (value,) = self._dims(start, value)
            exponent = self.scanner.match(_INTEGER)
            if exponent is None:
                raise self.scanner.error("an exponent must be an integer")
            value = as_dim(sympy.sympify(value) ** int(exponent))
        return value

    def _atom(self) -> Any:
        scanner = self.scanner
        start = scanner.skip()
        if scanner.text[start : start + 1] in ("%", "@", "$") and self.operand is not None:
            return self.operand()
        if scanner.accept("("):
            return self._tuple()
        if scanner.peek('"'):
            return scanner.quoted('"')
        if scanner.peek("`"):
            return symbol(scanner.quoted("`"))
        number = scanner.match(_NUMBER)
        if number is not None:
            return float(number) if "." in number or "e" in number else int(number)
        word = scanner.match(_WORD)
        if word is None:
            raise scanner.error("expected a value")
        return self._word(word, start)

    def _word(self, word: str, start: int) -> Any:
        scanner = self.scanner
        if word in FUNCTIONS and scanner.accept("("):
            return self._function(word, self._dims(start, *self._until(")")), start)
        if word in self.records and scanner.accept("("):
            return self.record(self.records[word], ")", start)
        if word == "none" and self.operand is not None and scanner.text.startswith("#", scanner.position):
            scanner.position = start
            return self.operand()
        if word in _CONSTANTS:
            return _CONSTANTS[word]
        if word == "nan":
            return self._nan()
        if word in DTYPES:
            return DTYPES[word]
        if scanner.peek("("):
            raise scanner.error(f"{word} is neither a function of dimensions nor a record that may stand here", start)
        return symbol(word)

    def _function(self, name: str, arguments: list[Any], start: int) -> Any:
        try:
            return as_dim(FUNCTIONS[name](*(sympy.sympify(a) for a in arguments)))
        except (ArithmeticError, AssertionError, TypeError, ValueError) as error:
            raise self.scanner.error(f"{name} does not take these arguments", start) from error

    def _nan(self) -> float:
        if not self.scanner.accept("("):
            return math.nan
        bits = self.scanner.match(_BITS)
        if bits is None:
            raise self.scanner.error("the bits of a NaN are 16 hexadecimal digits after 0x")
        self.scanner.expect(")", "the bits of a NaN")
        value: float = struct.unpack("<d", int(bits, 16).to_bytes(8, "little"))[0]
        return value

    def _tuple(self) -> Any:
        """What follows an opening bracket: a tuple, or one dimension in brackets."""
        if self.scanner.accept(")"):
            return ()
        values = [self.attribute()]
        if self.scanner.accept(")"):
            return values[0]
        self.scanner.expect(",", "an element of a tuple")
        return (*values, *self._until(")"))
