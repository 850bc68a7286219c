"""How states lie in memory, and which nodes may overwrite them where they are.

The IR's states are logical tensors. A cache that only attention reads, as keys or as values, is laid out as the
attention kernel walks it; any other state keeps its logical order.
"""

from __future__ import annotations

from collections.abc import Iterable
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
    """The operand of attention (keys or values) as which alone a state is read everywhere, or None."""
    if not _only_attended(name, functions := list(functions)):
        return None
    read = set()
    for function in functions:
        appended = {n.output for n in function.nodes if _appends(n, name)}
        for node in function.nodes:
            read |= {number for number, operand in enumerate(node.inputs) if operand in appended}
    return read.pop() if read in ({KEYS}, {VALUES}) else None


def _appends(node: Node, name: str) -> bool:
    first = node.inputs[0] if node.inputs else None
    return isinstance(node.op, CacheAppend) and isinstance(first, StateRef) and first.name == name


def _only_attended(name: str, functions: Iterable[Function]) -> bool:
    """Whether every use of a state is an append in place whose result only attention reads as keys or values."""
    used = False
    for function in functions:
        users = function.users()
        for node in function.nodes:
            if not any(isinstance(i, StateRef) and i.name == name for i in node.inputs):
                continue
            used = True
            if not isinstance(node.op, CacheAppend) or node.output.type.rank != 4:
                return False
            if not all(_attends(user, node.output) for user in users.get(node.output, [])):
                return False
            if function.updates.get(name) is not node.output or node.output in function.outputs:
                return False
        if any(isinstance(o, StateRef) and o.name == name for o in function.results):
            return False
    return used


def _attends(node: Node, cache: Value) -> bool:
    read = {number for number, operand in enumerate(node.inputs) if operand is cache}
    return isinstance(node.op, Attention) and read <= {1, 2}


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
