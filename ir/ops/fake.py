"""Types of ATen calls on symbolic shapes, from torch's own fake tensors.

Each symbol becomes a symbolic integer with a distinct prime as its hint, so that two symbols are never taken for equal;
the result's dimensions are read back as expressions over the same symbols.
"""

from __future__ import annotations

from typing import Any

import sympy
import torch
from torch._dispatch.python import enable_python_dispatcher
from torch._dynamo.source import ConstantSource
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv
from torch.utils._sympy.interp import sympy_interp
from torch.utils._sympy.reference import PythonReferenceAnalysis

from planish.ir.errors import IRError
from planish.ir.types import TensorType, as_dim, symbol

# Larger than the fixed sizes that commonly meet them, so that a hint never equals one by chance.
_FIRST_HINT = 1009


class _Symbols:
    """One shape environment with a symbolic integer for every name that occurs."""

    def __init__(self) -> None:
        self.environment = ShapeEnv()
        self.integers: dict[str, Any] = {}
        self.names: dict[sympy.Symbol, sympy.Symbol] = {}
        self._hint = _FIRST_HINT

    def dim(self, value: Any) -> Any:
        """A dimension as an int or a symbolic integer."""
        if not isinstance(value, sympy.Expr):
            return value
        environment = {s: self._integer(s.name) for s in value.free_symbols}
        return sympy_interp(PythonReferenceAnalysis, environment, value)

    def _integer(self, name: str) -> Any:
        if name not in self.integers:
            self._hint = int(sympy.nextprime(self._hint))
            source = ConstantSource(name)
            made = self.environment.create_symbol(self._hint, source, DimDynamic.DYNAMIC, constraint_dim=None)
            self.integers[name] = self.environment.create_symintnode(made, hint=self._hint, source=source)
            self.names[made] = symbol(name)
        return self.integers[name]

    def read(self, size: Any) -> Any:
        """A result's size as a Dim over the module's symbols."""
        if isinstance(size, int):
            return size
        return as_dim(sympy.sympify(size.node.expr).xreplace(self.names))


def infer_types(operator: Any, arguments: list[Any], keywords: dict[str, Any]) -> tuple[TensorType, ...]:
    """The result types of `operator` on arguments in which a TensorType stands for a tensor and a Dim for an integer.

    Raises IRError with torch's own reason when the operator does not accept them.
    """
    symbols = _Symbols()
    mode = FakeTensorMode(shape_env=symbols.environment, allow_non_fake_inputs=False)
    # What an operator gave before is known to `Aten.infer` already, without the symbols of each environment.
    mode.cache_enabled = False
    # The Python dispatcher keeps sizes symbolic through operators that torch composes of others.
    with enable_python_dispatcher(), mode:

        def build(value: Any) -> Any:
            if isinstance(value, TensorType):
                return torch.empty([symbols.dim(d) for d in value.shape], dtype=value.dtype)
            if isinstance(value, list):
                return [build(v) for v in value]
            return symbols.dim(value)

        try:
            result = operator(*(build(a) for a in arguments), **{k: build(v) for k, v in keywords.items()})
        except Exception as error:
            reason = " ".join(str(error).split("\n")[0].split())
            raise IRError(f"{operator} does not accept these operands: {reason}") from error
    results = result if isinstance(result, (tuple, list)) else (result,)
    for one in results:
        if not isinstance(one, torch.Tensor):
            raise IRError(f"{operator} returns a {type(one).__name__}; only operators that return tensors are held")
    return tuple(TensorType(t.dtype, tuple(symbols.read(d) for d in t.shape)) for t in results)
