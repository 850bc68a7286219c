"""Writing one Relax function: parameters, calls of PrimFuncs, views, results.

Values that nodes compute are bound in one dataflow block, in the order of the plan; whatever must come after all of them
(copying a new content into a state's memory) is bound in a second one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tvm import relax

from planish.codegen.dims import Expr, Symbols
from planish.codegen.family import Packed
from planish.codegen.pointwise.dtypes import STORAGE
from planish.ir import Dim


def tensor_type(shape: Sequence[Expr], dtype: str) -> Any:
    return relax.TensorType(list(shape), dtype)


class Emitter:
    """One Relax function under construction in a module's block builder.

    `kernels` maps PrimFuncs already in the module to their global variables; it is shared by all functions.
    """

    def __init__(self, builder: Any, symbols: Symbols, kernels: dict[Any, Any]) -> None:
        self.builder, self.symbols, self._kernels = builder, symbols, kernels
        self._weights: dict[str, Expr] = {}

    def declare_weights(self, packed: Sequence[Packed]) -> Any:
        """The parameter, a tuple, that brings the stored tensors in this order."""
        types = [tensor_type(self.symbols.shape(p.shape), STORAGE[p.dtype]) for p in packed]
        self._tuple = relax.Var("weights", relax.TupleType(types))
        self._order = {p.key: n for n, p in enumerate(packed)}
        return self._tuple

    def weight(self, packed: Packed) -> Expr:
        if packed.key not in self._weights:
            item = relax.TupleGetItem(self._tuple, self._order[packed.key])
            self._weights[packed.key] = self.builder.emit(item)
        return self._weights[packed.key]

    def call(
        self,
        function: Any,
        inputs: Sequence[Expr],
        results: Sequence[tuple[Sequence[Dim], str]],
        symbols: Sequence[str] = (),
    ) -> list[Expr]:
        types = [tensor_type(self.symbols.shape(shape), dtype) for shape, dtype in results]
        sizes = [self.symbols.variable(name) for name in symbols]
        call = relax.call_tir(self._global(function), [*inputs, *sizes], types[0] if len(types) == 1 else types)
        value = self.builder.emit(call)
        if len(types) == 1:
            return [value]
        return [self.builder.emit(relax.TupleGetItem(value, n)) for n in range(len(types))]

    def call_in_place(self, function: Any, inputs: Sequence[Expr], written: int) -> Expr:
        type = inputs[written].ty
        call = relax.op.call_tir_inplace(self._global(function), list(inputs), [written], [type])
        return self.builder.emit(call)

    def view(self, tensor: Expr, shape: Sequence[Dim]) -> Expr:
        return self.builder.emit(relax.op.reshape(tensor, relax.ShapeExpr(list(self.symbols.shape(shape)))))

    def _global(self, function: Any) -> Any:
        """The PrimFunc's global variable; the same function object is added once."""
        if function not in self._kernels:
            # A library has one space of names: no function of a module is called so.
            name = f"kernel.{function.attrs['global_symbol']}"
            variable = self.builder.add_func(function.without_attr("global_symbol"), name)
            self._kernels[function] = variable
        return self._kernels[function]
