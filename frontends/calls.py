"""One call of a traced program as operations of the IR.

Devices, layouts and memory formats are dropped: where a tensor lives and how it lies in memory is not part of what a
program means.
"""

from __future__ import annotations

import operator
from typing import Any, TypeAlias

import torch
from torch import fx
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols

from planish.frontends.custom_ops import CUSTOM_OPS
from planish.frontends.normal_forms import NORMAL_FORMS, overload_name
from planish.frontends.symbols import SymbolNames
from planish.ir import Builder, Operand, ParamRef, TensorType, UnsupportedError, Value
from planish.ir.op import Op
from planish.ir.ops import Aten, Slot

# What a node of the traced program stands for: a tensor, or several.
Result: TypeAlias = "Operand | tuple[Operand, ...]"

_PLACEMENT = {"device", "layout", "pin_memory", "memory_format", "non_blocking"}


class CallTranslator:
    """Appends the operations of each call to a builder.

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
            several, index = node.args
            assert isinstance(several, fx.Node) and isinstance(index, int)
            found = self.results[several]
            assert isinstance(found, tuple)
            return found[index]
        if not isinstance(target, torch._ops.OpOverload):
            raise UnsupportedError(f"{target} is no operator on tensors; control flow in a program is not supported")
        declared = self._declared(node)
        positional, keywords = self._arguments(node, target)
        named = {**{a.name: a.default_value for a in target._schema.arguments}, **positional, **keywords}
        if str(target) in CUSTOM_OPS:
            op, operands = CUSTOM_OPS[str(target)](named, declared[0])
            return self.append(op, operands, source, declared)[0]
        if target.namespace != "aten":
            raise UnsupportedError(f"the operator {target} is unknown; register an operation for it")
        overload = overload_name(target)
        outputs = self._normal_form(overload, named, declared, source)
        if outputs is None:
            _refuse_random(target, named)
            op, operands = _aten(overload, tuple(positional.values()), keywords)
            outputs = self.append(op, operands, source, declared)
        return outputs if isinstance(node.meta["val"], (tuple, list)) else outputs[0]

    def _normal_form(
        self, overload: str, named: dict[str, Any], declared: tuple[TensorType, ...], source: str
    ) -> tuple[Operand, ...] | None:
        form = NORMAL_FORMS.get(overload)
        if form is None:
            return None

        result = form(_Emitter(self, source), named, declared[0])
        if result is None:
            return None
        results = result if isinstance(result, tuple) else (result,)
        _check_types(results, declared[: len(results)], overload)
        return results

    def append(
        self, op: Op, operands: tuple[Any, ...], source: str, declared: tuple[TensorType, ...] | None = None
    ) -> tuple[Operand, ...]:
        """One operation; raises UnsupportedError when its results are not of the declared types."""
        made = self.builder.node(op, *operands, source=source)
        if declared is not None:
            _check_types(made.outputs, declared, getattr(op, "overload", op.name))
        return made.outputs

    def _declared(self, node: fx.Node) -> tuple[TensorType, ...]:
        value = node.meta["val"]
        tensors = value if isinstance(value, (tuple, list)) else (value,)
        if not all(isinstance(t, torch.Tensor) for t in tensors):
            raise UnsupportedError(f"{node.target} returns something that is not a tensor")
        return tuple(self.names.type(t) for t in tensors)

    def _arguments(self, node: fx.Node, target: torch._ops.OpOverload) -> tuple[dict[str, Any], dict[str, Any]]:
        """Positional and keyword arguments by their names in the schema, with operands in place of nodes."""
        schema = [a.name for a in target._schema.arguments]
        positional = {name: self._value(value) for name, value in zip(schema, node.args)}
        keywords = {name: self._value(value) for name, value in node.kwargs.items()}
        for name in _PLACEMENT & positional.keys():
            positional[name] = None
        return positional, {k: v for k, v in keywords.items() if k not in _PLACEMENT}

    def _value(self, value: Any) -> Any:
        """An argument with operands in place of nodes and dimensions in place of symbolic integers."""
        if isinstance(value, fx.Node):
            traced = value.meta["val"]
            if isinstance(traced, (int, torch.SymInt)):
                return self.names.dim(traced)
            if isinstance(traced, (torch.SymFloat, torch.SymBool)):
                if free_unbacked_symbols(traced):
                    raise UnsupportedError("a number is read out of a tensor; keep it a tensor")
                raise UnsupportedError("a number computed from symbolic sizes is not an integer; fix these sizes")
            return self.results[value]
        if isinstance(value, (list, tuple)):
            return tuple(self._value(v) for v in value)
        if isinstance(value, torch.SymInt):
            return self.names.dim(value)
        return value


class _Emitter:
    """Appends the ATen calls of a normal form, all with the source of the call they stand for."""

    def __init__(self, translator: CallTranslator, source: str) -> None:
        self.translator = translator
        self.source = source

    def __call__(self, overload: str, *arguments: Any, **keywords: Any) -> Operand:
        op, operands = _aten(overload, arguments, keywords)
        return self.translator.append(op, operands, self.source)[0]

    def several(self, overload: str, *arguments: Any) -> tuple[Operand, ...]:
        op, operands = _aten(overload, arguments, {})
        return self.translator.append(op, operands, self.source)


def _aten(overload: str, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> tuple[Aten, tuple[Operand, ...]]:
    """The ATen call with a slot for each mention of an operand, and the operands in that order."""
    operands: list[Operand] = []

    def place(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(place(v) for v in value)
        if isinstance(value, (Value, ParamRef)):
            operands.append(value)
            return Slot(len(operands) - 1)
        return value

    placed = tuple(place(v) for v in arguments)
    named = tuple((k, place(v)) for k, v in sorted(keywords.items()))
    return Aten(overload, placed, named), tuple(operands)


def _check_types(made: tuple[Operand, ...], declared: tuple[TensorType, ...], what: str) -> None:
    types = tuple(operand.type for operand in made)
    if types != declared:
        got, want = (", ".join(str(t) for t in side) for side in (types, declared))
        raise UnsupportedError(f"{what} has results of type {got} here, but {want} was traced")


def _refuse_random(target: torch._ops.OpOverload, arguments: dict[str, Any]) -> None:
    # Attention carries the tag because of its dropout, which inference leaves at 0.
    if torch.Tag.nondeterministic_seeded in target.tags and arguments.get("dropout_p") != 0:
        raise UnsupportedError(
            f"{target} draws random numbers; call eval() on the module, or pass the numbers as input"
        )
