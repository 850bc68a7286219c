"""From a module as passes leave it to one that the lowering knows: IR to IR, so that the interpreter can check it.

Copies vanish, ATen calls that are compositions of simpler ones are written out, linear algebra becomes the operations
that have kernels, 16-bit arithmetic of model operations is widened to float32, and what depends on parameters alone
becomes a parameter.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import torch

from planish.codegen.aten import tables
from planish.ir import Function, Module, Node, Op, Operand, Param, ParamRef, StateRef, Value, dense_param
from planish.ir.builder import Rewriter
from planish.ir.ops import Aten, CacheAppend, LastToken, Positions, Slot
from planish.ir.ops.aten import resolve_overload
from planish.passes.fold_constants import FoldConstants
from planish.passes.pass_base import Context

Arguments: TypeAlias = "dict[str, Any]"
Served: TypeAlias = Callable[[Node, Mapping[str, Param]], bool]
Decomposition: TypeAlias = "Callable[[Legaliser, Arguments, Node], Operand | Sequence[Operand]]"

# Operations that only move elements need no wider arithmetic, nor do those whose kernels widen by themselves.
_MOVING = (Aten, CacheAppend, LastToken, Positions)
FOLD_LIMIT = 1 << 24
"""Bytes of the largest constant that is computed when the artifact is written rather than at every call."""
_HALVES = (torch.float16, torch.bfloat16)


class Legaliser(Rewriter):
    """One function under way. Everything emitted through `call` or `place` is legalised in its turn."""

    def __init__(
        self,
        function: Function,
        module: Module,
        decompositions: dict[str, Decomposition],
        served: Served,
    ) -> None:
        super().__init__(function)
        self.module, self.decompositions, self.served = module, decompositions, served
        self.params: dict[str, Param] = {}
        self.source = ""
        self._constants: set[Value] = set()
        self._scanned = 0

    def run(self) -> Function:
        for node in self.original.nodes:
            self.source = node.source
            for old, new in zip(node.outputs, self.place(node.op, self.operands(node), node)):
                self.replace(old, new)
        return self.finish_like()

    def call(self, overload: str, *arguments: Any, **keywords: Any) -> Operand:
        """The first result of an ATen call whose arguments may be operands."""
        operands: list[Operand] = []

        def freeze(value: Any) -> Any:
            if isinstance(value, (Value, ParamRef, StateRef)):
                operands.append(value)
                return Slot(len(operands) - 1)
            return tuple(freeze(v) for v in value) if isinstance(value, (list, tuple)) else value

        frozen = tuple(freeze(a) for a in arguments)
        op = Aten(overload, frozen, tuple(sorted((k, freeze(v)) for k, v in keywords.items())))
        return self.place(op, tuple(operands))[0]

    def place(self, op: Op, operands: tuple[Operand | None, ...], like: Node | None = None) -> Sequence[Operand]:
        """Emit an operation, or what it decomposes into; returns its results."""
        types = None if like is None else tuple(v.type for v in like.outputs)
        if types is None:
            types = op.infer(*(None if o is None else o.type for o in operands))
        node = Node(op, operands, tuple(Value(t) for t in types), self.source)
        if tables.is_copy(node):
            assert operands[0] is not None
            return [operands[0]]
        if self._is_half(node):
            return self._widened(node)
        rule = self.decompositions.get(tables.overload(node) or op.name)
        # Where a value lies in memory is known of the original function only.
        if rule is None or self.served(node if like is None else like, self.params):
            self.nodes.append(node)
            return node.outputs
        results = rule(self, bound_arguments(node), node)
        return [results] if isinstance(results, (Value, ParamRef, StateRef)) else list(results)

    def constant(self, name: str, value: torch.Tensor) -> ParamRef:
        """A parameter of that name that holds a tensor; equal names hold equal ones."""
        if name not in self.params:
            self.params[name] = dense_param(name, value)
        return ParamRef(name, self.params[name].type)

    def is_constant(self, operand: Operand) -> bool:
        """Whether an operand is a parameter, or computed from parameters alone."""
        for node in self.nodes[self._scanned :]:
            if node.inputs and all(isinstance(i, ParamRef) or i in self._constants for i in node.inputs):
                self._constants.update(node.outputs)
        self._scanned = len(self.nodes)
        return isinstance(operand, ParamRef) or operand in self._constants

    def _is_half(self, node: Node) -> bool:
        if isinstance(node.op, _MOVING):
            return False
        return any(t is not None and t.dtype in _HALVES for t in (*node.input_types, *(v.type for v in node.outputs)))

    def _widened(self, node: Node) -> Sequence[Operand]:
        """The operation on float32 operands, its results rounded to the dtypes that were declared."""
        operands = tuple(None if o is None else self.widen(o) for o in node.inputs)
        results = self.place(node.op, operands)
        narrow = [
            self.call("to.dtype", r, v.type.dtype) if r.type != v.type else r for r, v in zip(results, node.outputs)
        ]
        return narrow

    def widen(self, operand: Operand) -> Operand:
        """A 16-bit operand as float32. A parameter keeps its storage under a second name."""
        if operand.type.dtype not in _HALVES:
            return operand
        if not isinstance(operand, ParamRef):
            return self.call("to.dtype", operand, torch.float32)
        name = f"{operand.name}.widened"
        if name not in self.params:
            param = self.module.params[operand.name]
            self.params[name] = replace(param, name=name, type=param.type.with_dtype(torch.float32))
        return ParamRef(name, self.params[name].type)


def bound_arguments(node: Node) -> Arguments:
    """The arguments of an ATen call by the names of its schema, defaults included; of another operation, its operands."""
    if not isinstance(node.op, Aten):
        assert node.op.operand_names is not None
        return {name.rstrip("?"): o for name, o in zip(node.op.operand_names, node.inputs)}
    positional, keywords = node.op.call_arguments(node.inputs)
    found: Arguments = {}
    for number, argument in enumerate(resolve_overload(node.op.overload)._schema.arguments):
        if number < len(positional) and not argument.kwarg_only:
            found[argument.name] = positional[number]
        else:
            found[argument.name] = keywords.get(argument.name, argument.default_value)
    return found


def legalise(
    module: Module,
    decompositions: dict[str, Decomposition],
    served: Callable[[Module, Function], Served],
) -> Module:
    """The module in the form that `lower` takes.

    `served(module, function)` says which of a function's nodes have a kernel of their own as they are, given the parameters
    that were added since. An append to a cache has one only while attention has, and a kernel wants parameters where
    constants stand: so what the first round writes out is looked at a second time.
    """
    fold = FoldConstants(limit_bytes=FOLD_LIMIT)
    for _ in range(2):
        module = fold.apply(module, Context()).module
        asked = {name: served(module, function) for name, function in module.functions.items()}
        for function in module.functions.values():
            legaliser = Legaliser(function, module, decompositions, asked[function.name])
            rewritten = legaliser.run()
            module = module.with_function(rewritten).with_params(legaliser.params.values())
    return fold.apply(module, Context()).module
