"""How states lie in memory, and which nodes may overwrite them where they are.

The IR's states are logical tensors. A cache that only attention reads, as keys, as values or as both, is laid out as the
attention kernel walks it; any other state keeps its logical order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from planish.codegen.kernels.kv_cache import CacheLayout
from planish.codegen.kernels.vectors import padded
from planish.ir import Dim, Function, Module, Node, Operand, StateRef, TensorType, Value
from planish.ir.ops import Attention, CacheAppend
from planish.ir.types import as_dim, dtype_name, floor_div

KEYS, VALUES = 1, 2


@dataclass(frozen=True)
class Layout:
    """Where a state's elements lie: in logical order, or as a cache that attention walks."""

    cache: CacheLayout | None = None

    def physical(self, type: TensorType) -> tuple[Dim, ...]:
        """The shape in memory of a logical tensor. The capacity of a cache is a multiple of its lanes."""
        if self.cache is None:
            return type.shape
        batch, capacity, heads, size = type.shape
        lanes = self.cache.lanes
        if self.cache.kind == "keys":
            return batch, heads, floor_div(as_dim(capacity + (lanes - 1)), lanes), size, lanes
        return batch, heads, capacity, padded(self.cache.size, lanes)

    @property
    def plain(self) -> bool:
        return self.cache is None


PLAIN = Layout()


def cache_layout(type: TensorType, operand: int, lanes: int) -> CacheLayout | None:
    """How attention wants its operand (keys or values) of that type [batch, keys, heads, size]; None if it cannot."""
    heads, size = type.shape[2:]
    if not isinstance(heads, int) or not isinstance(size, int):
        return None
    names = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}
    dtype = names.get(dtype_name(type.dtype))
    return None if dtype is None else CacheLayout("keys" if operand == KEYS else "values", heads, size, dtype, lanes)


def choose_layouts(module: Module, lanes: int) -> dict[str, Layout]:
    """The layout of every state, the same in all functions, for vectors of so many lanes."""
    layouts = {}
    for name, state in module.states.items():
        read = _attended_as(name, module.functions.values())
        layouts[name] = PLAIN if read is None else Layout(cache_layout(state.type, read, lanes))
    return layouts


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
