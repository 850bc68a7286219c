"""Writing one Relax function: parameters, calls of PrimFuncs, views, results.

Values that nodes compute are bound in one dataflow block, in the order of the plan; whatever must come after all of them
(copying a new content into a state's memory) is bound in a second one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from tvm import relax

from planish.codegen.dims import Expr, Symbols
from planish.codegen.family import Packed
from planish.codegen.pointwise.dtypes import STORAGE
from planish.ir import Dim


def tensor_type(shape: Sequence[Expr], dtype: str) -> Any:
    return relax.TensorType(list(shape), dtype)


@dataclass(frozen=True)
class Argument:
    """A tensor as one call takes it: what memory it is, seen under which shape, in which storage dtype."""

    name: str
    shape: tuple[Dim, ...]
    dtype: str


@dataclass(frozen=True)
class Call:
    """A call of a PrimFunc `(inputs..., symbols..., results...)`, the function by its name in the library."""

    function: str
    inputs: tuple[Argument, ...]
    symbols: tuple[str, ...] = ()
    results: tuple[Argument, ...] = ()


class Emitter:
    """One Relax function under construction in a module's block builder.

    `kernels` maps PrimFuncs already in the module to their global variables; it is shared by all functions. `calls` grows
    with every call that is written.
    """

    def __init__(self, builder: Any, symbols: Symbols, kernels: dict[Any, Any]) -> None:
        self.builder, self.symbols, self._kernels = builder, symbols, kernels
        self.calls: list[Call] = []
        self._weights: dict[str, Expr] = {}
        self._arguments: dict[Expr, Argument] = {}
        # Whose memory a view is of, and the views of each tensor by their shapes.
        self._whole: dict[Expr, Expr] = {}
        self._views: dict[tuple[Expr, tuple[Dim, ...]], Expr] = {}
        self._values = 0

    def parameter(self, kind: str, name: str, shape: Sequence[Dim], dtype: str) -> Any:
        """A tensor that the function takes: an "input" or a "state"."""
        variable = relax.Var(name, tensor_type(self.symbols.shape(shape), dtype))
        self._arguments[variable] = Argument(f"{kind} {name}", tuple(shape), dtype)
        return variable

    def declare_weights(self, packed: Sequence[Packed]) -> Any:
        """The parameter, a tuple, that brings the stored tensors in this order."""
        types = [tensor_type(self.symbols.shape(p.shape), STORAGE[p.dtype]) for p in packed]
        self._tuple = relax.Var("weights", relax.TupleType(types))
        self._order = {p.key: n for n, p in enumerate(packed)}
        return self._tuple

    def weight(self, packed: Packed) -> Expr:
        if packed.key not in self._weights:
            item = relax.TupleGetItem(self._tuple, self._order[packed.key])
            value = self._weights[packed.key] = self.builder.emit(item)
            self._arguments[value] = Argument(f"weight {packed.key}", packed.shape, STORAGE[packed.dtype])
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
        single = len(types) == 1
        values = [value] if single else [self.builder.emit(relax.TupleGetItem(value, n)) for n in range(len(types))]
        made = [self._value(v, shape, dtype) for v, (shape, dtype) in zip(values, results)]
        self._record(function, inputs, symbols, made)
        return values

    def call_in_place(self, function: Any, inputs: Sequence[Expr], written: int) -> Expr:
        type = inputs[written].ty
        call = relax.op.call_tir_inplace(self._global(function), list(inputs), [written], [type])
        value = self.builder.emit(call)
        self._arguments[value] = self._arguments[inputs[written]]
        self._record(function, inputs)
        return value

    def view(self, tensor: Expr, shape: Sequence[Dim]) -> Expr:
        """The same memory under another shape; a view of a view is one of the whole, and there is one for each shape.

        Kernels ask for several around each call, and each that is left is made anew for every decoded token.
        """
        whole, key = self._whole.get(tensor, tensor), tuple(shape)
        if key == self._arguments[whole].shape:
            return whole
        if (whole, key) not in self._views:
            value = self.builder.emit(relax.op.reshape(whole, relax.ShapeExpr(list(self.symbols.shape(shape)))))
            self._arguments[value] = replace(self._arguments[whole], shape=key)
            self._whole[value], self._views[whole, key] = whole, value
        return self._views[whole, key]

    def _value(self, value: Expr, shape: Sequence[Dim], dtype: str) -> Argument:
        """What a call computes, by a number of its own."""
        made = self._arguments[value] = Argument(f"value {self._values}", tuple(shape), dtype)
        self._values += 1
        return made

    def _record(
        self, function: Any, inputs: Sequence[Expr], symbols: Sequence[str] = (), results: Sequence[Argument] = ()
    ) -> None:
        taken = tuple(self._arguments[i] for i in inputs)
        self.calls.append(Call(self._global(function).name_hint, taken, tuple(symbols), tuple(results)))

    def _global(self, function: Any) -> Any:
        """The PrimFunc's global variable; the same function object is added once."""
        if function not in self._kernels:
            # A library has one space of names: no function of a module is called so.
            name = f"kernel.{function.attrs['global_symbol']}"
            variable = self.builder.add_func(function.without_attr("global_symbol"), name)
            self._kernels[function] = variable
        return self._kernels[function]
