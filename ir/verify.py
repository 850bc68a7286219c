"""The verifier: what must hold of a module between passes.

It checks names, dominance, ownership of values, parameters and states, symbols, and re-runs the type rule of every node.
All faults are found before any is reported. What is unused is legal.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, is_dataclass
from typing import Any

import sympy

from planish.ir.attributes import attribute_key, leaves
from planish.ir.encodings import require_rows
from planish.ir.errors import IRError
from planish.ir.fields import field_types, fits, type_text
from planish.ir.module import Function, Module, Node, Operand, ParamRef, State, StateRef, Value
from planish.ir.op import Op, check_operand_count
from planish.ir.ops.attention import CacheAppend
from planish.ir.params import Param
from planish.ir.text.attributes import format_attribute
from planish.ir.text.printer import FunctionPrinter, Line, Mark, format_name
from planish.ir.types import TensorType, symbol


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong: where, why, and the line of text with carets when there is one."""

    where: str
    sentence: str
    excerpt: str = ""

    def __str__(self) -> str:
        return f"{self.where}: {self.sentence}" + (f"\n{self.excerpt}" if self.excerpt else "")


def verify(module: Module) -> None:
    """Raise IRError listing every fault of the module; return when there is none."""
    faults = find_faults(module)
    if faults:
        count = "one fault" if len(faults) == 1 else f"{len(faults)} faults"
        raise IRError(f"the module has {count}:\n" + "\n".join(str(f) for f in faults))


def find_faults(module: Module) -> list[Fault]:
    """Every fault of the module, in order of appearance."""
    faults = [Fault("module", sentence) for sentence in _module_faults(module)]
    owners = {v: f.name for f in module.functions.values() for n in f.nodes for v in n.outputs}
    owners.update({v: f.name for f in module.functions.values() for v in f.inputs})
    for function in module.functions.values():
        faults += _FunctionCheck(module, function, owners).run()
    return faults


def _module_faults(module: Module) -> Iterator[str]:
    for kind in ("functions", "params", "states"):
        held: Mapping[str, Any] = getattr(module, kind)
        for key, item in held.items():
            if key != item.name:
                yield f"{kind}[{key!r}] is called {item.name!r}; the two names must be the same"
            if not item.name:
                yield f"one of the {kind} has no name"
    for key, value in module.metadata.items():
        fault = _attribute_fault(value)
        if fault is None and _has_record(value):
            fault = "it holds a dataclass, which the text form could not read back; use tuples of plain values"
        if fault:
            yield f"metadata {key!r} cannot be held: {fault}"
    for state in module.states.values():
        yield from (f"state {state.name!r}: {s}" for s in _symbol_faults(state.type.shape))
        if state.encoding is not None:
            try:
                require_rows(state.encoding, state.type)
            except IRError as error:
                yield f"state {state.name!r}: its encoding cannot hold it: {error}"
    for param in module.params.values():
        yield from (f"parameter {param.name!r}: {s}" for s in _param_faults(param))


def _param_faults(param: Param) -> Iterator[str]:
    if param.type.symbols:
        yield f"its type {param.type} has a symbolic dimension, but a parameter has a fixed shape"
        return
    try:
        param.encoding.layout(param.type)
    except IRError as error:
        yield f"its encoding {param.encoding} cannot hold {param.type}: {error}"


def _attribute_fault(value: Any) -> str | None:
    """Why a value is no attribute that the text form can hold, or None."""
    try:
        attribute_key(value)
        format_attribute(value)
    except IRError as error:
        return str(error)
    return next(_symbol_faults((value,)), None)


def _field_fault(op: Op) -> str | None:
    """Which attribute is not of its declared type, or None."""
    record: type = type(op)
    for name, declared in field_types(record).items():
        value = getattr(op, name)
        if not fits(value, declared):
            return f"attribute {name!r} must be {type_text(declared)}, got {value!r}"
    return None


def _has_record(value: Any) -> bool:
    return any(map(_has_record, value)) if isinstance(value, tuple) else is_dataclass(value)


def _symbols(value: Any) -> set[sympy.Symbol]:
    """The symbols in an attribute."""
    return {s for leaf in leaves(value) if isinstance(leaf, sympy.Expr) for s in leaf.free_symbols}


def _symbol_faults(value: Any) -> Iterator[str]:
    for found in sorted(_symbols(value), key=str):
        if found != symbol(found.name):
            yield f"its symbol {found} was not made by planish.ir.symbol, so it would equal no other of that name"


class _FunctionCheck:
    """The check of one function."""

    def __init__(self, module: Module, function: Function, owners: Mapping[Value, str]) -> None:
        self.module = module
        self.function = function
        self.owners = owners
        self.faults: list[Fault] = []
        self.bound = self._bound_symbols()
        self._printer: FunctionPrinter | None = None
        self._makers = function.producers()

    @property
    def printer(self) -> FunctionPrinter:
        """Made at the first fault: a correct function is not printed."""
        if self._printer is None:
            self._printer = FunctionPrinter(self.function)
        return self._printer

    def add(self, sentence: str, source: str = "") -> None:
        self.faults.append(Fault(f"function {self.function.name!r}{f', {source}' if source else ''}", sentence))

    def add_at(self, node: Node, mark: Mark, sentence: str) -> None:
        where = f"function {self.function.name!r}" + (f", {node.source}" if node.source else "")
        self.faults.append(Fault(where, sentence, self._line(node).pointing(mark)))

    def _name(self, value: Value) -> str:
        return self.printer.names.get(value) or format_name("%", value.name or "?")

    def _line(self, node: Node) -> Line:
        try:
            return self.printer.line(node)
        except IRError:  # an attribute without a text: the fault itself says so
            line = Line()
            line.add(f"{node.op.name}(...)", ("op",))
            return line

    def run(self) -> list[Fault]:
        function = self.function
        self._names("input", [v.name for v in function.inputs])
        self._names("output", list(function.output_names))
        defined: set[Value] = set()
        for value in function.inputs:
            if value in defined:
                self.add(f"the input {self._name(value)} stands twice in the list of inputs")
            defined.add(value)
            for sentence in _symbol_faults(value.type.shape):
                self.add(f"input {value.name!r}: {sentence}")
        for node in function.nodes:
            self._node(node, defined)
        self._results(defined)
        return self.faults

    def _names(self, what: str, names: list[str]) -> None:
        for name in dict.fromkeys(names):
            if not name:
                self.add(f"an {what} has no name")
            if names.count(name) > 1:
                self.add(f"{names.count(name)} {what}s are called {name!r}; give each its own name")

    def _bound_symbols(self) -> set[str]:
        """Symbols that a call can know: those of the inputs, and of the states that the function reads or updates."""
        named = {r.name for r in self.function.references() if isinstance(r, StateRef)} | set(self.function.updates)
        states = (self.module.states[name].type for name in named if name in self.module.states)
        types: Iterable[TensorType] = (*(v.type for v in self.function.inputs), *states)
        return {name for type in types for name in type.symbols}

    def _node(self, node: Node, defined: set[Value]) -> None:
        before = len(self.faults)
        for number, operand in enumerate(node.inputs):
            sentence = None if operand is None else self._operand_fault(operand, defined)
            if sentence:
                self.add_at(node, ("operand", number), sentence)
        fault = _attribute_fault(tuple(node.op.attributes().values())) or _field_fault(node.op)
        if fault:
            self.add_at(node, ("op",), f"{node.op.name}: {fault}")
        for number, value in enumerate(node.outputs):
            if value in defined:
                self.add_at(
                    node, ("result", number), f"{self._name(value)} is defined twice; each value is defined once"
                )
            defined.add(value)
        if len(self.faults) == before:
            self._types(node)
            self._encoding(node)
        unbound = sorted({s.name for s in _symbols(node.op)} - self.bound)
        unbound += sorted({s for v in node.outputs for s in v.type.symbols} - self.bound - set(unbound))
        if unbound:
            names = ", ".join(unbound)
            self.add_at(
                node, ("op",), f"no input and no state that the function uses has the symbol {names} in its shape"
            )

    def _operand_fault(self, operand: Operand, defined: set[Value]) -> str | None:
        """Why an operand may not be read here, or None."""
        if isinstance(operand, Value):
            if operand in defined:
                return None
            if operand in self._makers:
                return f"{self._name(operand)} is used before it is defined"
            owner = self.owners.get(operand)
            if owner is not None and owner != self.function.name:
                return f"{self._name(operand)} belongs to function {owner!r}; only parameters and states are shared"
            return f"{self._name(operand)} is defined by no input and no node of the function"
        kind, held = (
            ("parameter", self.module.params) if isinstance(operand, ParamRef) else ("state", self.module.states)
        )
        found: Any = held.get(operand.name)  # type: ignore[attr-defined]
        if found is None:
            return f"the module has no {kind} {operand.name!r}"
        if found.type != operand.type:
            return f"the {kind} {operand.name!r} is {found.type}, but its use here says {operand.type}"
        return None

    def _types(self, node: Node) -> None:
        try:
            check_operand_count(node.op, node.inputs)
            types = node.op.infer(*node.input_types)
        except IRError as error:
            self.add_at(node, ("op",), str(error))
            return
        if len(types) != len(node.outputs):
            self.add_at(node, ("op",), f"{node.op.name} has {len(types)} results, but {len(node.outputs)} are declared")
        for number, (inferred, value) in enumerate(zip(types, node.outputs)):
            if inferred != value.type:
                sentence = f"{node.op.name} gives {inferred}, but {value.type} is declared"
                self.add_at(node, ("result", number), sentence)

    def _encoding(self, node: Node) -> None:
        """What is appended to a state must be rounded as the state holds it."""
        cache = node.inputs[0] if isinstance(node.op, CacheAppend) else None
        if isinstance(cache, StateRef) and isinstance(node.op, CacheAppend):
            held = self.module.states[cache.name].encoding
            if node.op.encoding != held:
                self.add_at(
                    node, ("op",), f"it appends rows as {node.op.encoding} to the state {cache.name!r}, held as {held}"
                )

    def _holds(self, state: State, operand: Operand) -> bool:
        """Whether an encoded state can become an operand: the state itself, or rows that were rounded for it behind it."""
        if isinstance(operand, StateRef):
            return operand.name == state.name
        node = self._makers.get(operand) if isinstance(operand, Value) else None
        if node is None or not isinstance(node.op, CacheAppend) or node.inputs[0] is None:
            return False
        return node.op.encoding == state.encoding and self._holds(state, node.inputs[0])

    def _results(self, defined: set[Value]) -> None:
        def check(operand: Operand, mark: Mark, what: str, want: TensorType | None = None) -> None:
            sentence = self._operand_fault(operand, defined)
            if sentence is None and want is not None and operand.type != want:
                sentence = f"it is declared as {want}, but gets {operand.type}"
            if sentence:
                excerpt = self.printer.returned().pointing(mark)
                self.faults.append(Fault(f"function {self.function.name!r}", f"{what}: {sentence}", excerpt))

        for number, (name, operand) in enumerate(zip(self.function.output_names, self.function.outputs)):
            check(operand, ("output", number), f"output {name!r}")
        for name, operand in self.function.updates.items():
            if name not in self.module.states:
                self.add(f"the update of {name!r} names no state of the module")
                continue
            state = self.module.states[name]
            check(operand, ("update", name), f"the update of state {name!r}", state.type)
            if state.encoding is not None and not self._holds(state, operand):
                excerpt = self.printer.returned().pointing(("update", name))
                sentence = (
                    f"it is held as {state.encoding}, so it must be what cache_append with that encoding makes of it"
                )
                where = f"function {self.function.name!r}"
                self.faults.append(Fault(where, f"the update of state {name!r}: {sentence}", excerpt))
