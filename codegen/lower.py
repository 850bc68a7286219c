"""A module as one TVM IRModule: a Relax function for each function of the IR, a PrimFunc for each different kernel.

Arguments of a Relax function are the IR function's inputs, the states it reads or updates (whole tensors that it writes
in place), and one tuple of stored tensors. It returns the outputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from tvm import relax

from planish.codegen.dialect import speaking
from planish.codegen.dims import Symbols
from planish.codegen.emitter import Call, Emitter
from planish.codegen.family import Expr, Packed, Site
from planish.codegen.fused import FusedKernels
from planish.codegen.plan import FusedStep, KernelStep, Plan, Select, ViewStep, plan_function
from planish.codegen.pointwise.dtypes import STORAGE
from planish.codegen.states import Layout, choose_layouts, in_place, layouts_of
from planish.codegen.stored import dense
from planish.codegen.target import Target
from planish.ir import Function, Module, Operand, ParamRef, StateRef, Value


@dataclass(frozen=True, eq=False)
class LoweredFunction:
    """One function's plan and calling convention: inputs, then `states`, then the tuple of `weights`.

    Attributes:
        calls: for each step of the plan, the calls that it became.
        copies: the calls after all steps, which copy results and the content of states.
    """

    plan: Plan
    states: tuple[str, ...]
    weights: tuple[Packed, ...]
    calls: tuple[tuple[Call, ...], ...] = ()
    copies: tuple[Call, ...] = ()


@dataclass(frozen=True, eq=False)
class Lowered:
    """A module in TVM's terms, and what its callers must know."""

    tvm_module: Any
    functions: dict[str, LoweredFunction]
    layouts: dict[str, Layout]
    kernels: dict[Any, Any] = field(default_factory=dict)
    metadata: Mapping[str, Any] = field(default_factory=dict)


def lower(module: Module, target: Target, select: Select) -> Lowered:
    """Lower every function of a legalised module.

    Raises:
        UnsupportedError: listing the operations of one function that nothing serves.
    """
    with speaking(target.dialect):
        return _lower(module, target, select)


def _lower(module: Module, target: Target, select: Select) -> Lowered:
    layouts = choose_layouts(module, target)
    builder = relax.BlockBuilder()
    kernels: dict[Any, Any] = {}
    fused = FusedKernels()
    functions = {}
    for function in module.functions.values():
        site = Site(module, target, layouts_of(function, layouts))
        plan = plan_function(function, site, select)
        functions[function.name] = _Lowering(plan, site, layouts, builder, kernels, fused).run()
    return Lowered(builder.get(), functions, layouts, kernels, module.metadata)


class _Lowering:
    """One function under way. `values` holds the Relax expression of every operand that lies in memory."""

    def __init__(
        self,
        plan: Plan,
        site: Site,
        layouts: dict[str, Layout],
        builder: Any,
        kernels: dict[Any, Any],
        fused: FusedKernels,
    ) -> None:
        self.plan, self.site, self.layouts, self.builder, self.fused = plan, site, layouts, builder, fused
        self.function: Function = plan.function
        self.emitter = Emitter(builder, Symbols(), kernels)
        self.values: dict[Operand, Expr] = {}
        # Views of arguments: their memory is the caller's.
        self.borrowed: set[Operand] = set(self.function.inputs)
        self.in_place = in_place(self.function)

    def run(self) -> LoweredFunction:
        states = self._states()
        weights = self._weights()
        inputs = [self._variable("input", v.name, v.type.shape, v.type.dtype) for v in self.function.inputs]
        memory = {n: self._state_variable(n) for n in states}
        tuple_parameter = self.emitter.declare_weights(weights)
        self.values.update(zip(self.function.inputs, inputs))
        for name, variable in memory.items():
            self.values[StateRef(name, self.site.module.states[name].type)] = variable
        with self.builder.function(self.function.name, [*inputs, *memory.values(), tuple_parameter]):
            with self.builder.dataflow():
                calls = [self._calls(step) for step in self.plan.steps]
                results = [self._result(o) for o in self.function.outputs]
                written = self._write_back(memory)
                outputs = self.builder.emit_output(relax.Tuple([*results, *written]))
            self.builder.emit_func_output(outputs)
        return LoweredFunction(self.plan, states, weights, tuple(calls), self._taken())

    def _states(self) -> tuple[str, ...]:
        used = {r.name for r in self.function.references() if isinstance(r, StateRef)} | set(self.function.updates)
        return tuple(n for n in self.site.module.states if n in used)

    def _weights(self) -> tuple[Packed, ...]:
        """Every stored tensor that the steps and the results read, once."""
        found: dict[str, Packed] = {}
        for step in self.plan.steps:
            if isinstance(step, KernelStep):
                found.update((p.key, p) for p in step.kernel.weights)
                reads = [step.inputs[n] for n in step.kernel.reads]
            else:
                reads = list(step.fused.leaves) if isinstance(step, FusedStep) else list(step.node.inputs[:1])
            for operand in reads:
                if isinstance(operand, ParamRef):
                    packed = dense(self.site.module.params[operand.name])
                    found[packed.key] = packed
        for operand in self.function.results:
            if isinstance(operand, ParamRef):
                packed = dense(self.site.module.params[operand.name])
                found[packed.key] = packed
        return tuple(found.values())

    def _variable(self, kind: str, name: str, shape: Any, dtype: torch.dtype) -> Any:
        return self.emitter.parameter(kind, name, shape, STORAGE[dtype])

    def _state_variable(self, name: str) -> Any:
        type = self.site.module.states[name].type
        layout = self.layouts[name]
        return self._variable("state", name, layout.physical(type), layout.dtype(type))

    def operand(self, operand: Operand) -> Expr:
        """The Relax expression of an operand."""
        if isinstance(operand, ParamRef):
            return self.emitter.weight(dense(self.site.module.params[operand.name]))
        return self.values[operand]

    def _calls(self, step: Any) -> tuple[Call, ...]:
        self._step(step)
        return self._taken()

    def _taken(self) -> tuple[Call, ...]:
        """The calls since the last time this was asked."""
        calls, self.emitter.calls = tuple(self.emitter.calls), []
        return calls

    def _step(self, step: Any) -> None:
        if isinstance(step, ViewStep):
            (source,) = (i for i in step.node.inputs[:1] if i is not None)
            value = step.node.output
            if source in self.borrowed or not isinstance(source, Value):
                self.borrowed.add(value)
            self.values[value] = self.emitter.view(self.operand(source), value.type.shape)
        elif isinstance(step, FusedStep):
            prim_func, symbols = self.fused.kernel(step)
            inputs = [self.operand(o) for o in step.fused.leaves]
            value = step.fused.value
            result = (value.type.shape, STORAGE[value.type.dtype])
            (self.values[value],) = self.emitter.call(prim_func, inputs, [result], symbols)
        else:
            self._kernel(step)

    def _kernel(self, step: KernelStep) -> None:
        reads = step.kernel.reads
        operands = [self.operand(o) if n in reads and o is not None else None for n, o in enumerate(step.inputs)]
        results = step.kernel.emit(self.emitter, operands)
        self.values.update(zip(step.outputs, results, strict=True))

    def _result(self, operand: Operand) -> Expr:
        """An output; what is no computed value is copied, so that no caller holds an argument's memory."""
        expression = self.operand(operand)
        if isinstance(operand, Value) and operand not in self.borrowed and operand not in self.site.layouts:
            return expression
        return self.fused.copy(self.emitter, expression, operand.type, self._physical(operand))

    def _physical(self, operand: Operand) -> Any:
        layout = self.site.layouts.get(operand)
        return operand.type.shape if layout is None else layout.physical(operand.type)

    def _write_back(self, memory: dict[str, Expr]) -> list[Expr]:
        """The states after the call: in place already, or copied into their memory after everything else was read."""
        written = []
        for name in sorted(self.function.updates):
            operand = self.function.updates[name]
            if isinstance(operand, StateRef) and operand.name == name:
                continue
            if isinstance(operand, Value) and self.in_place.get(operand) == name:
                written.append(self.values[operand])
                continue
            written.append(self.fused.overwrite(self.emitter, memory[name], self.operand(operand), operand.type))
        return written
