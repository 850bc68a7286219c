"""How states lie in memory, and which nodes may overwrite them where they are.

The IR's states are logical tensors. A cache that only attention reads, as keys, as values or as both, is laid out as the
attention kernel walks it, in few bits where the state is held so; any other state keeps its logical order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import torch

from planish.codegen.kernels.cache_codes import Codes
from planish.codegen.kernels.kv_cache import CacheLayout
from planish.codegen.target import Target
from planish.ir import (
    Dim,
    Encoding,
    Float8,
    Function,
    GroupedInt,
    Module,
    Node,
    Operand,
    State,
    StateRef,
    TensorType,
    UnsupportedError,
    Value,
)
from planish.ir.ops import Attention, CacheAppend
from planish.ir.types import as_dim, floor_div

KEYS, VALUES = 1, 2
INTEGERS = {8: "int8", 4: "int4"}
"""Formats of codes, by their bits."""
DTYPES = {torch.float32: "float32", torch.float16: "float16", torch.bfloat16: "bfloat16"}
"""What an attention kernel reads element by element."""


@dataclass(frozen=True)
class Layout:
    """Where a state's elements lie: in logical order, or as a cache that attention walks."""

    cache: CacheLayout | None = None

    def physical(self, type: TensorType) -> tuple[Dim, ...]:
        """The shape in memory of a logical tensor. The capacity of a cache is a multiple of its panels."""
        if self.cache is None:
            return type.shape
        batch, capacity, heads, _ = type.shape
        lanes = self.cache.lanes
        if self.cache.kind == "keys":
            capacity = floor_div(as_dim(capacity + (lanes - 1)), lanes)
        return batch, heads, capacity, *self.cache.row

    def dtype(self, type: TensorType) -> torch.dtype:
        """The dtype in memory of a logical tensor's elements."""
        if self.cache is None:
            return type.dtype
        return torch.uint8 if self.cache.codes is not None else getattr(torch, self.cache.dtype)

    @property
    def plain(self) -> bool:
        return self.cache is None


PLAIN = Layout()


def cache_layout(type: TensorType, operand: int, lanes: int) -> CacheLayout | None:
    """How attention wants its operand (keys or values) of that type [batch, keys, heads, size]; None if it cannot."""
    heads, size = type.shape[2:]
    if not isinstance(heads, int) or not isinstance(size, int):
        return None
    dtype = DTYPES.get(type.dtype)
    return None if dtype is None else CacheLayout("keys" if operand == KEYS else "values", heads, size, dtype, lanes)


def choose_layouts(module: Module, target: Target) -> dict[str, Layout]:
    """The layout of every state, the same in all functions.

    Raises:
        UnsupportedError: for a state that is held in an encoding which the target's kernels do not read.
    """
    layouts = {}
    for name, state in module.states.items():
        read = _attended_as(name, module.functions.values())
        found = None if read is None else cache_layout(state.type, read, target.float_tile.lanes)
        layouts[name] = Layout(found if state.encoding is None else _encoded(state, state.encoding, found))
    return layouts


def _encoded(state: State, encoding: Encoding, found: CacheLayout | None) -> CacheLayout:
    """The layout of an encoded state that would lie as `found` if it were not."""
    held = f"the state {state.name!r} is held as {encoding}"
    if found is None:
        raise UnsupportedError(
            f"{held}, which compiled code reads in attention alone, as heads of a fixed size, but {state.type} is read "
            "otherwise: leave it as it is in quantize-cache"
        )
    codes = _codes(encoding, found.size)
    if found.dtype != "float32" or codes is None:
        raise UnsupportedError(
            f"{held}, but attention kernels read float32 caches, or int8, int4 and fp8 with one scale to a head "
            f"(here {found.size} elements of {state.type.dtype}): choose one of these for it in quantize-cache"
        )
    return replace(found, codes=codes)


def _codes(encoding: Encoding, size: int) -> Codes | None:
    """How kernels hold heads of `size` elements in an encoding; None when they do not."""
    if isinstance(encoding, Float8):
        return Codes("fp8", "float32")
    if (
        isinstance(encoding, GroupedInt)
        and encoding.bits in INTEGERS
        and encoding.group == size
        and encoding.scale_dtype in DTYPES
    ):
        return Codes(INTEGERS[encoding.bits], DTYPES[encoding.scale_dtype], encoding.zero_points)
    return None


def _attended_as(name: str, functions: Iterable[Function]) -> int | None:
    """The operand of attention (keys or values) as which alone a state is read everywhere, or None.

    What one attention reads as both lies as values do.
    """
    if not _only_attended(name, functions := list(functions)):
        return None
    read = set()
    for function in functions:
        held = {n.output for n in function.nodes if _appends(n, name)}
        for node in function.nodes:
            if not _appends(node, name):
                read.add(tuple(n for n, o in enumerate(node.inputs) if _is_state(o, name) or o in held))
    operands = read - {()}
    return max(operands.pop()) if len(operands) == 1 else None


def _is_state(operand: Operand | None, name: str) -> bool:
    return isinstance(operand, StateRef) and operand.name == name


def _appends(node: Node, name: str) -> bool:
    return isinstance(node.op, CacheAppend) and _is_state(node.inputs[0], name)


def _only_attended(name: str, functions: Iterable[Function]) -> bool:
    """Whether in each function only attention reads a state, as keys or values, either as it is or after an append in
    place."""
    used = False
    for function in functions:
        readers = [node for node in function.nodes if any(_is_state(i, name) for i in node.inputs)]
        if any(_is_state(o, name) for o in function.results):
            return False
        appended = any(isinstance(n.op, CacheAppend) for n in readers)
        if appended and not (len(readers) == 1 and _appended_in_place(function, readers[0], name)):
            return False
        if not appended and not all(_attends(n, lambda operand: _is_state(operand, name)) for n in readers):
            return False
        used = used or bool(readers)
    return used


def _appended_in_place(function: Function, node: Node, name: str) -> bool:
    if not _appends(node, name) or node.output.type.rank != 4:
        return False
    stored = function.updates.get(name) is node.output and node.output not in function.outputs
    readers = function.users().get(node.output, [])
    return stored and all(_attends(reader, lambda operand: operand is node.output) for reader in readers)


def _attends(node: Node, is_cache: Callable[[Operand | None], bool]) -> bool:
    """Whether a node is an attention that reads a cache as its keys or its values only."""
    read = {number for number, operand in enumerate(node.inputs) if is_cache(operand)}
    return isinstance(node.op, Attention) and read <= {KEYS, VALUES}


def in_place(function: Function) -> dict[Value, str]:
    """The appends whose result may be the state's own memory, with the state's name.

    The state must have no other reader, so that nobody can miss what was there, and must hold the result after the call.
    """
    readers: dict[str, list[Node]] = {}
    for node in function.nodes:
        for operand in node.inputs:
            if isinstance(operand, StateRef):
                readers.setdefault(operand.name, []).append(node)
    escaping = {o.name for o in function.results if isinstance(o, StateRef)}
    found: dict[Value, str] = {}
    for name, nodes in readers.items():
        node = nodes[0]
        single = len(nodes) == 1 and isinstance(node.op, CacheAppend) and name not in escaping
        if single and isinstance(node.inputs[0], StateRef) and function.updates.get(name) is node.output:
            found[node.output] = name
    return found


def layouts_of(function: Function, layouts: dict[str, Layout]) -> dict[Operand, Layout]:
    """The layout of every state reference and of every value that lives in a state's memory."""
    found: dict[Operand, Layout] = {r: layouts[r.name] for r in function.references() if isinstance(r, StateRef)}
    found.update({value: layouts[name] for value, name in in_place(function).items()})
    return found
