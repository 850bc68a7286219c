"""Building functions: node by node from nothing, or from another function with some of its values replaced."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from planish.ir.errors import IRError
from planish.ir.module import Function, Node, Operand, Value
from planish.ir.op import Op, check_operand_count
from planish.ir.types import TensorType


class Builder:
    """Appends nodes to a function under construction; result types come from each operation's own rule."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.inputs: list[Value] = []
        self.nodes: list[Node] = []

    def input(self, name: str, type: TensorType) -> Value:
        value = Value(type, name)
        self.inputs.append(value)
        return value

    def node(self, op: Op, *operands: Operand | None, source: str = "", names: Sequence[str] = ()) -> Node:
        """Append an operation; raises IRError when the operands do not fit its type rule."""
        check_operand_count(op, operands)
        types = op.infer(*(None if o is None else o.type for o in operands))
        hints = [*names, *[""] * (len(types) - len(names))]
        node = Node(op, tuple(operands), tuple(Value(t, h) for t, h in zip(types, hints)), source)
        self.nodes.append(node)
        return node

    def emit(self, op: Op, *operands: Operand | None, source: str = "", name: str = "") -> Value:
        """Append an operation with one result and return the result."""
        return self.node(op, *operands, source=source, names=(name,)).output

    def finish(
        self,
        outputs: Iterable[Operand],
        output_names: Iterable[str],
        updates: Mapping[str, Operand] | None = None,
    ) -> Function:
        names = tuple(output_names)
        return Function(self.name, tuple(self.inputs), tuple(self.nodes), tuple(outputs), names, updates or {})


class Rewriter(Builder):
    """Copies a function while replacing some of its values.

    Call `keep(node)` for each node to copy and `replace(value, operand)` for each value to stand in for; `finish_like`
    closes the copy. Inputs are copied as they are. What was neither kept nor replaced must not be read by what follows.
    The record of what stands for what (`correspondence`) tells a checker where the two functions can be cut.
    """

    def __init__(self, function: Function, name: str | None = None) -> None:
        super().__init__(name or function.name)
        self.original = function
        self.inputs = list(function.inputs)
        self._mapped: dict[Value, Operand] = {v: v for v in function.inputs}
        self._different: set[Value] = set()

    @property
    def correspondence(self) -> dict[Value, Operand]:
        """Values of the original with what holds the same value in the copy."""
        return {old: new for old, new in self._mapped.items() if old not in self._different}

    def operand(self, old: Operand) -> Operand:
        """What stands in the copy for an operand of the original."""
        if not isinstance(old, Value):
            return old
        if old not in self._mapped:
            raise IRError(f"{old} is read in {self.name!r} but was neither kept nor replaced before")
        return self._mapped[old]

    def operands(self, node: Node) -> tuple[Operand | None, ...]:
        return tuple(None if i is None else self.operand(i) for i in node.inputs)

    def replace(self, old: Value, new: Operand, *, same: bool = True) -> None:
        """Let `new` stand for `old` from here on.

        `same=False` says that it takes the place of `old` but holds something else (rotated, scaled, quantised), as does
        a replacement of another type; what is kept and reads it then counts as different too.
        """
        self._mapped[old] = new
        if same and new.type == old.type:
            self._different.discard(old)
        else:
            self._different.add(old)

    def keep(self, node: Node) -> Node:
        """Copy a node. It is shared unless an operand changed; its type rule runs again only if an operand's type did."""
        operands = self.operands(node)
        if all(a is b for a, b in zip(operands, node.inputs)):
            kept = node
        elif all(b is None or (a is not None and a.type == b.type) for a, b in zip(operands, node.inputs)):
            kept = Node(node.op, operands, tuple(Value(v.type, v.name) for v in node.outputs), node.source)
        else:
            names = [v.name for v in node.outputs]
            kept = self.node(node.op, *operands, source=node.source, names=names)
            self.nodes.pop()
        self.nodes.append(kept)
        same = not any(isinstance(i, Value) and i in self._different for i in node.inputs)
        for old, new in zip(node.outputs, kept.outputs):
            self.replace(old, new, same=same)
        return kept

    def finish_like(self) -> Function:
        """Close the copy with the original's outputs and updates."""
        outputs = [self.operand(o) for o in self.original.outputs]
        updates = {name: self.operand(o) for name, o in self.original.updates.items()}
        return self.finish(outputs, self.original.output_names, updates)
