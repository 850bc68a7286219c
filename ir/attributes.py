"""Attributes of operations, and when two of them are the same.

Identity is (type, bits), decided here once: `1`, `1.0` and `True` differ, `0.0` and `-0.0` differ, and a NaN equals
itself. Common-subexpression elimination, structural hashes and the text form all stand on `attribute_key`.
"""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias

import sympy
import torch

from planish.ir.errors import IRError
from planish.ir.types import Bindings, Dim, as_dim, dtype_name, resolve, substitute

# None, bool, int, float, str, torch.dtype, a symbolic Dim, an attribute dataclass, or a tuple of attributes.
Attribute: TypeAlias = Any


def attribute_key(value: Attribute) -> tuple[Any, ...]:
    """A hashable key, equal for two attributes exactly when their types and bits are equal.

    Raises IRError for a value that is no attribute (a list, a tensor, a callable).
    """
    if value is None:
        return ("none",)
    if isinstance(value, bool):
        return ("bool", value)
    if isinstance(value, int):
        return ("int", value)
    if isinstance(value, float):
        return ("float", struct.pack("<d", value))
    if isinstance(value, str):
        return ("str", value)
    if isinstance(value, torch.dtype):
        return ("dtype", dtype_name(value))
    if isinstance(value, sympy.Expr):
        dim = as_dim(value)
        return ("int", dim) if isinstance(dim, int) else ("dim", sympy.srepr(sympy.expand(dim)))
    if isinstance(value, tuple):
        return ("tuple", *(attribute_key(v) for v in value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = dataclasses.fields(value)
        return (type(value).__name__, *((f.name, attribute_key(getattr(value, f.name))) for f in fields))
    raise IRError(f"{value!r} of type {type(value).__name__} cannot be an attribute of an operation")


def map_leaves(
    value: Attribute, function: Callable[[Attribute], Attribute], whole: type | tuple[type, ...] = ()
) -> Attribute:
    """The attribute with every leaf replaced by `function(leaf)`: anything but a tuple or a dataclass, or a dataclass that
    is an instance of `whole`."""
    if isinstance(value, tuple):
        mapped = tuple(map_leaves(v, function, whole) for v in value)
        return value if all(a is b for a, b in zip(mapped, value)) else mapped
    if dataclasses.is_dataclass(value) and not isinstance(value, (type, whole)):
        held = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
        changes = {name: map_leaves(v, function, whole) for name, v in held.items()}
        unchanged = all(changes[name] is v for name, v in held.items())
        return value if unchanged else dataclasses.replace(value, **changes)
    return function(value)


def leaves(value: Attribute) -> Iterator[Attribute]:
    """What the attribute consists of: everything within it but tuples and dataclasses."""
    if isinstance(value, tuple):
        for part in value:
            yield from leaves(part)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield from leaves(getattr(value, field.name))
    else:
        yield value


def bind_dims(value: Attribute, bindings: Bindings) -> Attribute:
    """The attribute with every symbolic dimension computed from the symbols' values."""
    return map_leaves(value, lambda leaf: resolve(leaf, bindings) if isinstance(leaf, sympy.Expr) else leaf)


def substitute_dims(value: Attribute, replacements: Mapping[str, Dim]) -> Attribute:
    """The attribute with symbols replaced by other dimensions."""
    return map_leaves(value, lambda leaf: substitute(leaf, replacements) if isinstance(leaf, sympy.Expr) else leaf)
