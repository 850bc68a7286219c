"""The interpreter: the one executable meaning of a module, node by node in torch.

With `promote=True` everything floating is computed in float64: parameters are decoded to float64 and dtypes named in
attributes are widened, so that rounding shrinks by nine orders of magnitude while an error of meaning stays as it is.
`compute` names another dtype for all of it, so that one program can be compared with itself at two precisions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch

from planish.ir.attributes import map_leaves
from planish.ir.encodings import Encoding
from planish.ir.errors import IRError
from planish.ir.module import Function, Module, Node, Operand, ParamRef, StateRef, Value
from planish.ir.op import Op
from planish.ir.types import TensorType, bind_shape

Observer = Callable[[Node, tuple[torch.Tensor, ...]], None]


@dataclass(frozen=True)
class Result:
    """What a call leaves behind: outputs by name and position, and the content of every state after it."""

    outputs: dict[str, torch.Tensor]
    states: dict[str, torch.Tensor]

    def __getitem__(self, index: int) -> torch.Tensor:
        return list(self.outputs.values())[index]


def promote_dtype(dtype: torch.dtype, compute: torch.dtype = torch.float64) -> torch.dtype:
    """`compute` for every floating dtype, others as they are."""
    return compute if dtype.is_floating_point else dtype


@lru_cache(maxsize=1 << 12)
def promote_op(op: Op, compute: torch.dtype = torch.float64) -> Op:
    """The operation with every floating dtype among its attributes turned into `compute`, but for those of encodings: what
    is stored is rounded in every computation as it is declared."""

    def turn(leaf: Any) -> Any:
        return promote_dtype(leaf, compute) if isinstance(leaf, torch.dtype) else leaf

    turned: Op = map_leaves(op, turn, Encoding)
    return turned


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Within it, operators that make floats out of integers or Python numbers make this dtype."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


class Interpreter:
    """Runs the functions of one module. Parameters are decoded when a node reads them and not kept.

    Args:
        module: the module; it is assumed to verify.
        promote: compute in float64 (see the module's docstring).
        compute: the dtype in which to compute everything floating; as declared when None.
        observe: called with each node and its results, in order.
    """

    def __init__(
        self,
        module: Module,
        *,
        promote: bool = False,
        compute: torch.dtype | None = None,
        observe: Observer | None = None,
    ) -> None:
        self.module = module
        self.compute = torch.float64 if promote else compute
        self.observe = observe

    def _dtype(self, declared: torch.dtype) -> torch.dtype:
        """The dtype in which a tensor declared so is computed."""
        return declared if self.compute is None else promote_dtype(declared, self.compute)

    def run(
        self,
        function: str,
        inputs: Sequence[torch.Tensor] | Mapping[str, torch.Tensor],
        states: Mapping[str, torch.Tensor] | None = None,
        bindings: Mapping[str, int] | None = None,
    ) -> Result:
        """Call a function. States not given start as zeros; `bindings` gives symbols that no input's shape determines.

        Raises IRError when the inputs do not fit the declared types.
        """
        if function not in self.module.functions:
            raise IRError(f"the module has no function {function!r}; it has {', '.join(self.module.functions)}")
        program = self.module.functions[function]
        environment, known = self.enter(program, inputs, bindings)
        given = dict(states or {})
        for name, tensor in given.items():
            given[name] = self._input(self.module.states[name].type, tensor, known, f"state {name!r}")
        self._execute(program, environment, given, known)
        outputs = [self._read(o, environment, given, known) for o in program.outputs]
        after = {name: self._read(o, environment, given, known) for name, o in program.updates.items()}
        return Result(dict(zip(program.output_names, outputs)), {**given, **after})

    def enter(
        self,
        program: Function,
        inputs: Sequence[torch.Tensor] | Mapping[str, torch.Tensor],
        bindings: Mapping[str, int] | None = None,
    ) -> tuple[dict[Value, torch.Tensor], dict[str, int]]:
        """What holds when a function is entered: its inputs by value, and the sizes of symbols.

        Raises IRError when the inputs do not fit the declared types.
        """
        known: dict[str, int] = dict(bindings or {})
        environment: dict[Value, torch.Tensor] = {}
        for declared, tensor in zip(program.inputs, self._by_position(program, inputs)):
            environment[declared] = self._input(declared.type, tensor, known, f"input {declared.name!r}")
        return environment, known

    def _execute(
        self,
        program: Function,
        environment: dict[Value, torch.Tensor],
        states: dict[str, torch.Tensor],
        known: dict[str, int],
    ) -> None:
        last_use = last_uses(program)
        for index, node in enumerate(program.nodes):
            operands = tuple(None if i is None else self._read(i, environment, states, known) for i in node.inputs)
            results = self.evaluate(node, operands, known)
            if self.observe is not None:
                self.observe(node, results)
            environment.update(zip(node.outputs, results))
            for value in last_use.get(index, ()):
                environment.pop(value, None)

    def evaluate(
        self, node: Node, operands: tuple[torch.Tensor | None, ...], known: Mapping[str, int]
    ) -> tuple[torch.Tensor, ...]:
        """One node on concrete operands; raises IRError when the results are not of the declared types."""
        op = node.op.bind(known)
        if self.compute is None:
            results = op.evaluate(*operands)
        else:
            with default_dtype(self.compute):
                results = promote_op(op, self.compute).evaluate(*operands)
        for declared, result in zip(node.outputs, results):
            if result.dtype != self._dtype(declared.type.dtype) or tuple(result.shape) != declared.type.concrete(known):
                where = f" ({node.source})" if node.source else ""
                raise IRError(
                    f"{node.op.name}{where} computed {result.dtype}{list(result.shape)}, but {declared.type} was declared"
                )
        return results

    def _input(self, declared: TensorType, tensor: torch.Tensor, known: dict[str, int], what: str) -> torch.Tensor:
        bind_shape(declared, tensor.shape, known, what)
        if tensor.dtype not in (declared.dtype, self._dtype(declared.dtype)):
            raise IRError(f"{what} is {tensor.dtype}, but {declared} was declared")
        return tensor.to(self._dtype(declared.dtype))

    def _read(
        self,
        operand: Operand,
        environment: Mapping[Value, torch.Tensor],
        states: dict[str, torch.Tensor],
        known: Mapping[str, int],
    ) -> torch.Tensor:
        if isinstance(operand, Value):
            return environment[operand]
        if isinstance(operand, ParamRef):
            return self.param(operand.name)
        return self._state(operand, states, known)

    def param(self, name: str) -> torch.Tensor:
        """The decoded parameter. An encoding decodes exactly as it does without promotion, so that all runs compute
        with the same weights; only then is the result turned into the dtype of the computation."""
        param = self.module.params[name]
        return param.value() if self.compute is None else param.wide_value().to(self._dtype(param.type.dtype))

    def _state(self, ref: StateRef, states: dict[str, torch.Tensor], known: Mapping[str, int]) -> torch.Tensor:
        if ref.name not in states:
            states[ref.name] = torch.zeros(ref.type.concrete(known), dtype=self._dtype(ref.type.dtype))
        return states[ref.name]

    @staticmethod
    def _by_position(
        program: Function, inputs: Sequence[torch.Tensor] | Mapping[str, torch.Tensor]
    ) -> list[torch.Tensor]:
        names = [v.name for v in program.inputs]
        if isinstance(inputs, Mapping):
            if set(inputs) != set(names):
                raise IRError(f"function {program.name!r} takes inputs {names}, got {sorted(inputs)}")
            return [inputs[name] for name in names]
        if len(inputs) != len(names):
            raise IRError(
                f"function {program.name!r} takes {len(names)} inputs ({', '.join(names)}), got {len(inputs)}"
            )
        return list(inputs)


def last_uses(program: Function) -> dict[int, list[Value]]:
    """For each node, the values that nothing reads after it."""
    last: dict[Value, int] = {}
    for index, node in enumerate(program.nodes):
        for value in (*node.outputs, *(i for i in node.inputs if isinstance(i, Value))):
            last[value] = index
    kept: set[Any] = {r for r in program.results if isinstance(r, Value)}
    uses: dict[int, list[Value]] = {}
    for value, index in last.items():
        if value not in kept:
            uses.setdefault(index, []).append(value)
    return uses
