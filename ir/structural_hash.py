"""The structural hash: equal for two modules exactly when they are the same program over the same storage.

It does not see names of inner values, sources of nodes, or the order in which mappings list their entries. It sees
everything else: operations with their attributes by (type, bits), wiring, the order of nodes (also of independent and of
unused ones), declared types, names of inputs, outputs, functions, parameters and states, encodings, metadata, and the
identity of each parameter's storage. Big files are not read: a file counts by its path and keys, storage in memory by
its digest, computed storage by the object that computes it (such hashes compare within one process only).
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from itertools import count
from typing import Any
from weakref import WeakKeyDictionary

import torch

from planish.ir.attributes import attribute_key
from planish.ir.module import Function, Module, Operand, Value
from planish.ir.params import InFile, InMemory, Missing, Param, Source, storage_digest
from planish.ir.types import Dim, TensorType, dtype_name

_SERIALS = count()
_SEEN: WeakKeyDictionary[Source, tuple[Any, ...]] = WeakKeyDictionary()


def structural_hash(subject: Module | Function) -> str:
    """A SHA-256 in hexadecimal of a module or of one function; see above for what it sees."""
    digest = hashlib.sha256()
    if isinstance(subject, Function):
        _add_function(digest, subject)
        return digest.hexdigest()
    for name, value in sorted(subject.metadata.items()):
        _add(digest, "metadata", name, attribute_key(value))
    for name, state in sorted(subject.states.items()):
        _add(digest, "state", name, state.name, type_key(state.type), attribute_key(state.encoding))
    for name, param in sorted(subject.params.items()):
        _add(digest, "param", name, *param_key(param))
    for name, function in sorted(subject.functions.items()):
        _add(digest, "function", name)
        _add_function(digest, function)
    return digest.hexdigest()


def content_hash(module: Module, function: str) -> str:
    """Equal, in any process, for the same function over the same weights; reads all of them."""
    digest = hashlib.sha256(structural_hash(module.functions[function]).encode())
    for name, param in sorted(module.params.items()):
        digest.update(f"{name}:{param.digest()};".encode())
    return digest.hexdigest()


def type_key(type: TensorType) -> tuple[Any, ...]:
    """Hashable identity of a type, with its dimensions expanded."""
    return _type_key(type.dtype, type.shape)


@lru_cache(maxsize=1 << 14)
def _type_key(dtype: torch.dtype, shape: tuple[Dim, ...]) -> tuple[Any, ...]:
    # By its parts: two types are equal when simplifying shows it, which takes longer than expanding a dimension.
    return (dtype_name(dtype), *(attribute_key(d) for d in shape))


def param_key(param: Param) -> tuple[Any, ...]:
    """Hashable identity of a parameter: name, type, encoding, and storage without reading files."""
    return (param.name, type_key(param.type), attribute_key(param.encoding), source_key(param.source))


def source_key(source: Source) -> tuple[Any, ...]:
    """Hashable identity of storage. It is remembered for each source: storage in memory must not be written to."""
    if isinstance(source, InFile):
        return ("file", str(source.path), *sorted(source.keys.items()))
    if isinstance(source, Missing):
        return ("missing", source.sha256)
    if source not in _SEEN:
        in_memory = isinstance(source, InMemory)
        _SEEN[source] = ("memory", storage_digest(source.read())) if in_memory else ("object", next(_SERIALS))
    return _SEEN[source]


def _add(digest: Any, *parts: Any) -> None:
    digest.update(repr(parts).encode())


def _add_function(digest: Any, function: Function) -> None:
    numbers: dict[Value, int] = {}

    def operand_key(operand: Operand | None) -> tuple[Any, ...]:
        if operand is None:
            return ("none",)
        if isinstance(operand, Value):
            return ("value", numbers.get(operand, "undefined"))
        return (type(operand).__name__, operand.name, type_key(operand.type))

    _add(digest, function.name)
    for value in function.inputs:
        numbers[value] = len(numbers)
        _add(digest, "input", value.name, type_key(value.type))
    for node in function.nodes:
        _add(digest, "node", node.op.key(), *(operand_key(o) for o in node.inputs))
        for value in node.outputs:
            numbers[value] = len(numbers)
            _add(digest, "result", type_key(value.type))
    for name, operand in zip(function.output_names, function.outputs):
        _add(digest, "output", name, operand_key(operand))
    for name, operand in sorted(function.updates.items()):
        _add(digest, "update", name, operand_key(operand))
