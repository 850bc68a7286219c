"""One call of a traced program as one operation of the IR.

Devices, layouts and memory formats are dropped: where a tensor lives and how it lies in memory is not part of what a
program means. What only moves or copies a tensor becomes the tensor itself.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import fx

from planish.frontends.custom_ops import CUSTOM_OPS
from planish.frontends.symbols import SymbolNames
from planish.ir import Builder, Operand, TensorType, UnsupportedError
from planish.ir.op import Op
from planish.ir.ops import Aten, Slot

# What a node of the traced program stands for: a tensor, several tensors, or nothing that the IR holds.
Result: TypeAlias = "Operand | tuple[Operand, ...] | None"

_PLACEMENT = {"device", "layout", "pin_memory", "memory_format", "non_blocking"}
_IDENTITIES = {"clone.default", "alias.default", "detach.default", "contiguous.default", "lift_fresh_copy.default"}
_END = 2**63 - 1


@dataclass
class Arguments:
    """The arguments of one call by their names in the operator's schema, with operands in place of nodes."""

    positional: dict[str, Any]
    keywords: dict[str, Any]

    def __getitem__(self, name: str) -> Any:
        return self.positional[name] if name in self.positional else self.keywords[name]


class CallTranslator:
    """Appends the operation of each call to a builder.

    Args:
        builder: the function under construction.
        names: the names of symbolic sizes.
        results: what each node translated so far stands for.
    """

    def __init__(self, builder: Builder, names: SymbolNames, results: dict[fx.Node, Result]) -> None:
        self.builder = builder
        self.names = names
        self.results = results

    def translate(self, node: fx.Node, source: str) -> Result:
        """What the node stands for. Raises UnsupportedError or IRError with one sentence, without the source line."""
        target: Any = node.target
        if target is operator.getitem:
            several = self.results[_node(node.args[0])]
            assert isinstance(several, tuple)
            return several[node.args[1]]  # type: ignore[index]
        if not isinstance(target, torch._ops.OpOverload):
            raise UnsupportedError(
                f"{target} is no operator on tensors; control flow inside a program is not supported"
            )
        declared = self._declared(node)
        arguments = self._arguments(node, target)
        if str(target) in CUSTOM_OPS:
            op, operands = CUSTOM_OPS[str(target)](self._by_schema(arguments, target), declared[0])
            return self._append(op, operands, declared, source)[0]
        if target.namespace != "aten":
            raise UnsupportedError(f"the operator {target} is unknown; register an operation for it")
        _refuse_random(target, self._by_schema(arguments, target))
        overload = f"{target._schema.name.removeprefix('aten::')}.{target._overloadname}"
        if self._moves_only(overload, arguments, declared):
            moved: Operand = arguments["self"]
            return moved
        rewrite = _REWRITES.get(overload)
        if rewrite is not None:
            declared = declared[:1]
            overload, arguments = rewrite(arguments, declared[0])
        op, operands = _aten(overload, arguments)
        outputs = self._append(op, operands, declared, source)
        return outputs if isinstance(node.meta["val"], (tuple, list)) else outputs[0]

    def _append(
        self, op: Op, operands: tuple[Any, ...], declared: tuple[TensorType, ...], source: str
    ) -> tuple[Operand, ...]:
        made = self.builder.node(op, *operands, source=source)
        types = tuple(value.type for value in made.outputs)
        if types != declared:
            listed = " and ".join(", ".join(str(t) for t in side) for side in (types, declared))
            raise UnsupportedError(f"{op.name} has results of other types than were traced: {listed}")
        return made.outputs

    def _declared(self, node: fx.Node) -> tuple[TensorType, ...]:
        value = node.meta["val"]
        tensors = value if isinstance(value, (tuple, list)) else (value,)
        if not all(isinstance(t, torch.Tensor) for t in tensors):
            raise UnsupportedError(f"{node.target} returns something that is not a tensor")
        return tuple(self.names.type(t) for t in tensors)

    def _arguments(self, node: fx.Node, target: torch._ops.OpOverload) -> Arguments:
        schema = [a.name for a in target._schema.arguments]
        positional = {name: self._value(value) for name, value in zip(schema, node.args)}
        keywords = {name: self._value(value) for name, value in node.kwargs.items()}
        for name in _PLACEMENT & positional.keys():
            positional[name] = None
        return Arguments(positional, {k: v for k, v in keywords.items() if k not in _PLACEMENT})

    def _value(self, value: Any) -> Any:
        """An argument with operands in place of nodes and dimensions in place of symbolic integers."""
        if isinstance(value, fx.Node):
            traced = value.meta["val"]
            if isinstance(traced, (int, torch.SymInt)):
                return self.names.dim(traced)
            if isinstance(traced, (torch.SymFloat, torch.SymBool)):
                raise UnsupportedError("a number computed from symbolic sizes is not an integer; fix these sizes")
            return self.results[value]
        if isinstance(value, (list, tuple)):
            return tuple(self._value(v) for v in value)
        if isinstance(value, torch.SymInt):
            return self.names.dim(value)
        return value

    @staticmethod
    def _by_schema(arguments: Arguments, target: torch._ops.OpOverload) -> dict[str, Any]:
        defaults = {a.name: a.default_value for a in target._schema.arguments}
        return {**defaults, **arguments.positional, **arguments.keywords}

    @staticmethod
    def _moves_only(overload: str, arguments: Arguments, declared: tuple[TensorType, ...]) -> bool:
        if overload in _IDENTITIES:
            return True
        if overload in ("_to_copy.default", "expand.default"):
            return bool(arguments["self"].type == declared[0])
        if overload == "slice.Tensor":
            given = list(arguments.positional.values())[2:]
            return all(g == w or (w == 0 and g is None) for g, w in zip(given, (0, _END, 1)))
        return False


def _aten(overload: str, arguments: Arguments) -> tuple[Aten, tuple[Any, ...]]:
    """The ATen call with a slot for each mention of an operand."""
    operands: list[Any] = []

    def place(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(place(v) for v in value)
        if hasattr(value, "type") and isinstance(value.type, TensorType):
            operands.append(value)
            return Slot(len(operands) - 1)
        return value

    positional = tuple(place(v) for v in arguments.positional.values())
    keywords = tuple((k, place(v)) for k, v in sorted(arguments.keywords.items()))
    return Aten(overload, positional, keywords), tuple(operands)


def _refuse_random(target: torch._ops.OpOverload, arguments: dict[str, Any]) -> None:
    # Attention carries the tag because of its dropout, which inference leaves at 0.
    if torch.Tag.nondeterministic_seeded in target.tags and arguments.get("dropout_p") != 0:
        raise UnsupportedError(
            f"{target} draws random numbers; call eval() on the module, or pass the numbers as an input"
        )


def _reshape(arguments: Arguments, result: TensorType) -> tuple[str, Arguments]:
    """A view without its demand on memory layout, which is not part of the IR, and with every size spelt out."""
    return "reshape.default", Arguments({"self": arguments["self"], "shape": result.shape}, {})


def _batch_norm(arguments: Arguments, result: TensorType) -> tuple[str, Arguments]:
    """Inference of a batch norm without the empty statistics that the functional form also returns."""
    x, weight, bias, mean, variance, momentum, eps = arguments.positional.values()
    named = {"x": x, "weight": weight, "bias": bias, "mean": mean, "variance": variance, "training": False}
    return "batch_norm.default", Arguments({**named, "momentum": momentum, "eps": eps, "cudnn": False}, {})


_REWRITES: dict[str, Callable[[Arguments, TensorType], tuple[str, Arguments]]] = {
    "view.default": _reshape,
    "_unsafe_view.default": _reshape,
    "reshape.default": _reshape,
    "_native_batch_norm_legit_no_training.default": _batch_norm,
}


def _node(value: Any) -> fx.Node:
    assert isinstance(value, fx.Node)
    return value
