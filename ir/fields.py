"""The declared types of a record's attributes: whether a value fits its declaration, and which records may occur in it."""

from __future__ import annotations

import dataclasses
import types
import typing
from functools import cache
from typing import Any

import sympy
import torch

_NAMES = {"sympy": sympy, "torch": torch, "Any": Any}


@cache
def field_types(record: type) -> dict[str, Any]:
    """The declared type of each attribute of a dataclass (ClassVars left out)."""
    hints = typing.get_type_hints(record, localns=_NAMES)
    return {f.name: hints[f.name] for f in dataclasses.fields(record)}


def fits(value: Any, declared: Any) -> bool:
    """Whether an attribute has its declared type. An int is no float here, and a bool is no int: identity is by type."""
    if declared is Any or isinstance(declared, typing.TypeVar):
        return True
    if declared is None or declared is type(None):
        return value is None
    origin = typing.get_origin(declared)
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, part) for part in typing.get_args(declared))
    if origin is typing.Literal:
        return any(type(value) is type(option) and value == option for option in typing.get_args(declared))
    if origin is tuple:
        parts = typing.get_args(declared)
        if not isinstance(value, tuple):
            return False
        if len(parts) == 2 and parts[1] is Ellipsis:
            return all(fits(v, parts[0]) for v in value)
        return len(value) == len(parts) and all(map(fits, value, parts))
    if declared in (int, float, bool, str):
        return type(value) is declared
    return isinstance(value, origin or declared)


def type_text(declared: Any) -> str:
    """The declared type as a message shows it."""
    return declared.__name__ if isinstance(declared, type) and not typing.get_args(declared) else str(declared)


@cache
def nested_records(record: type) -> dict[str, type]:
    """By class name, the dataclasses that may stand in the attributes of a record, and their subclasses."""
    found: dict[str, type] = {}

    def visit(declared: Any) -> None:
        for part in typing.get_args(declared):
            visit(part)
        if isinstance(declared, type) and dataclasses.is_dataclass(declared) and declared.__name__ not in found:
            found[declared.__name__] = declared
            for hint in (*field_types(declared).values(), *declared.__subclasses__()):
                visit(hint)

    for declared in field_types(record).values():
        visit(declared)
    return found
