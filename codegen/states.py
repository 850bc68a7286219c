"""How states lie in memory, and which nodes may overwrite them where they are.

The IR's states are logical tensors. A cache that only attention reads is laid out as attention walks it, one head after
another; any other state keeps its logical order.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from planish.ir import Dim, Function, Module, Node, Operand, StateRef, TensorType, Value
from planish.ir.ops import Attention, CacheAppend

BY_HEAD = (0, 2, 1, 3)


@dataclass(frozen=True)
class Layout:
    """Axis n in memory is axis `order[n]` of the logical tensor."""

    order: tuple[int, ...]

    def physical(self, type: TensorType) -> tuple[Dim, ...]:
        """The shape in memory of a logical tensor."""
        return tuple(type.shape[a] for a in self.order)

    @property
    def plain(self) -> bool:
        return self.order == tuple(range(len(self.order)))


def choose_layouts(module: Module) -> dict[str, Layout]:
    """The layout of every state, the same in all functions."""
    return {
        name: Layout(BY_HEAD if _only_attended(name, module.functions.values()) else tuple(range(state.type.rank)))
        for name, state in module.states.items()
    }


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
