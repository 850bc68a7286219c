"""The text of attributes: exact for every value that `attribute_key` accepts, so that parsing gives the same key."""

from __future__ import annotations

import dataclasses
import math
import struct
from collections.abc import Callable
from typing import Any

import sympy
import torch

from planish.ir.attributes import attribute_key
from planish.ir.dims import quote
from planish.ir.errors import IRError
from planish.ir.types import dim_text, dtype_name

_NAN = struct.pack("<d", math.nan)


def format_float(value: float) -> str:
    """The shortest text that reads back to the same bits; a NaN with other bits than the usual one shows them."""
    if math.isnan(value):
        bits = struct.pack("<d", value)
        return "nan" if bits == _NAN else f"nan(0x{int.from_bytes(bits, 'little'):016x})"
    return repr(float(value))


def format_attribute(value: Any, special: Callable[[Any], str | None] = lambda value: None) -> str:
    """The text of an attribute. `special` may give the text of some values itself (the operands of an ATen call).

    Raises IRError for a value that is no attribute.
    """
    text = special(value)
    if text is not None:
        return text
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return format_float(value)
    if isinstance(value, str):
        return quote(value)
    if isinstance(value, torch.dtype):
        return dtype_name(value)
    if isinstance(value, (int, sympy.Expr)):
        return dim_text(value)
    if isinstance(value, tuple):
        parts = [format_attribute(v, special) for v in value]
        return f"({parts[0]},)" if len(parts) == 1 else f"({', '.join(parts)})"
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        changed = changed_fields(value)
        return f"{type(value).__name__}({format_keywords(changed, special)})"
    raise IRError(f"{value!r} of type {type(value).__name__} cannot be an attribute of an operation")


def format_keywords(attributes: dict[str, Any], special: Callable[[Any], str | None] = lambda value: None) -> str:
    return ", ".join(f"{name} = {format_attribute(value, special)}" for name, value in attributes.items())


def changed_fields(record: Any) -> dict[str, Any]:
    """The fields of a dataclass instance whose values are not their defaults, by (type, bits)."""
    changed = {}
    for field in dataclasses.fields(record):
        value = getattr(record, field.name)
        if field.default is dataclasses.MISSING or attribute_key(value) != attribute_key(field.default):
            changed[field.name] = value
    return changed
