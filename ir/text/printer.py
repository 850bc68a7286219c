"""Printing modules and functions.

Each line is made of marked pieces, so that a message can point at the operand it speaks of. Names of values are hints:
a value without one gets a number, and a name taken before gets a suffix. Names that are not plain are quoted.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from planish.ir.dims import quote
from planish.ir.encodings import Encoding
from planish.ir.module import Function, Module, Node, Operand, ParamRef, State, Value
from planish.ir.op import Op
from planish.ir.ops.aten import Aten, Slot
from planish.ir.params import Param
from planish.ir.text.attributes import changed_fields, format_attribute, format_keywords

# A mark: ("op",), ("operand", number) or ("result", number).
Mark = tuple[Any, ...]
_PLAIN = re.compile(r"[\w.]+", re.ASCII)


class Line:
    """A line of text under construction, with the columns of its marked pieces."""

    def __init__(self) -> None:
        self.text = ""
        self.spans: dict[Mark, tuple[int, int]] = {}

    def add(self, text: str, mark: Mark | None = None) -> None:
        if mark is not None:
            self.spans.setdefault(mark, (len(self.text), len(self.text) + len(text)))
        self.text += text

    def add_list(self, pieces: Iterable[tuple[str, Mark | None]]) -> None:
        for number, (text, mark) in enumerate(pieces):
            self.add(", " if number else "")
            self.add(text, mark)

    def pointing(self, mark: Mark, indent: str = "    ") -> str:
        """The line with carets below a marked piece (below all of it when the mark is not on it)."""
        start, end = self.spans.get(mark, (0, len(self.text)))
        return f"{indent}{self.text}\n{indent}{' ' * start}{'^' * max(end - start, 1)}"


def format_name(sigil: str, name: str) -> str:
    """A name as the text writes it after its sigil: bare when plain, else quoted."""
    plain = _PLAIN.fullmatch(name) and not (sigil == "%" and name.isdigit())
    return sigil + (name if plain else quote(name))


def canonical_slots(op: Aten, operands: tuple[Operand | None, ...]) -> bool:
    """Whether the arguments mention the operands in order, once each, and all are there: then slots need no numbers."""
    return op.slots() == tuple(range(len(operands))) and None not in operands


class FunctionPrinter:
    """The text of one function. It prints functions that do not verify as well: messages show them."""

    def __init__(self, function: Function) -> None:
        self.function = function
        self.names: dict[Value, str] = {}
        self._taken: set[str] = set()
        self._numbered = 0
        for value in (*function.inputs, *(v for n in function.nodes for v in n.outputs)):
            if value not in self.names:
                self.names[value] = self._name(value)

    def _name(self, value: Value) -> str:
        if not value.name:
            name, self._numbered = f"%{self._numbered}", self._numbered + 1
        else:
            name, suffix = format_name("%", value.name), 0
            while name in self._taken:
                suffix += 1
                name = format_name("%", f"{value.name}.{suffix}")
        self._taken.add(name)
        return name

    def operand(self, operand: Operand | None) -> str:
        if operand is None:
            return "none"
        if isinstance(operand, Value):
            return self.names.get(operand) or format_name("%", operand.name or "?")
        return format_name("@" if isinstance(operand, ParamRef) else "$", operand.name)

    def line(self, node: Node) -> Line:
        """One node without its source."""
        line = Line()
        line.add_list(
            (f"{self.names.get(v, '%?')}: {v.type}", ("result", number)) for number, v in enumerate(node.outputs)
        )
        line.add(" = " if node.outputs else "")
        if isinstance(node.op, Aten):
            self._aten(line, node.op, node.inputs)
        else:
            line.add(node.op.name, ("op",))
            line.add("(")
            line.add_list((self.operand(o), ("operand", number)) for number, o in enumerate(node.inputs))
            line.add(f"){self._attributes(node.op)}")
        return line

    def _attributes(self, op: Op) -> str:
        changed = changed_fields(op)
        return f" {{{format_keywords(changed)}}}" if changed else ""

    def _aten(self, line: Line, op: Aten, operands: tuple[Operand | None, ...]) -> None:
        plain = canonical_slots(op, operands)
        mentioned: list[tuple[int, str]] = []

        def special(value: Any) -> str | None:
            if not isinstance(value, Slot):
                return None
            known = 0 <= value.index < len(operands)
            text = self.operand(operands[value.index]) if known else "<no operand>"
            mentioned.append((value.index, text))
            return text if plain else f"{text}#{value.index}"

        line.add(f"aten.{op.overload}", ("op",))
        line.add("(")
        for number, (keyword, value) in enumerate((*((None, a) for a in op.arguments), *op.keywords)):
            line.add(", " if number else "")
            line.add("" if keyword is None else f"{keyword} = ")
            mentioned.clear()
            start, text = len(line.text), format_attribute(value, special)
            line.add(text)
            end = 0
            for index, name in mentioned:
                found = text.find(name, end)
                end = found + len(name)
                line.spans.setdefault(("operand", index), (start + found, start + end))
        line.add(")")

    def header(self) -> str:
        inputs = ", ".join(f"{self.names[v]}: {v.type}" for v in self.function.inputs)
        outputs = ", ".join(
            f"{format_name('', n)}: {o.type}" for n, o in zip(self.function.output_names, self.function.outputs)
        )
        return f"func {format_name('@', self.function.name)}({inputs}) -> ({outputs}) {{"

    def returned(self) -> Line:
        """The last line. Its marks are ("output", number) and ("update", state name)."""
        line = Line()
        line.add("return")
        line.add(" " if self.function.outputs else "")
        line.add_list((self.operand(o), ("output", n)) for n, o in enumerate(self.function.outputs))
        if self.function.updates:
            line.add(" update ")
            line.add_list(
                (f"{format_name('$', name)} = {self.operand(o)}", ("update", name))
                for name, o in sorted(self.function.updates.items())
            )
        return line

    def text(self) -> str:
        body = [f"  {self.line(node).text}{_comment(node.source)}" for node in self.function.nodes]
        return "\n".join([self.header(), *body, f"  {self.returned().text}", "}"]) + "\n"


def _comment(source: str) -> str:
    """A source as a trailing comment on one line; the parser undoes the escapes."""
    if not source:
        return ""
    text = quote(source, "")
    stripped = text.rstrip()
    return f"  // {stripped}" + "\\u{20}" * (len(text) - len(stripped))


def print_function(function: Function) -> str:
    """The text of one function, without the parameters and states it names."""
    return FunctionPrinter(function).text()


def print_module(module: Module, *, digests: bool = False) -> str:
    """The whole module as text, from which `parse_module` builds a structurally equal one.

    With `digests`, each parameter shows the SHA-256 of its storage, for which all of it is read.
    Raises IRError for an attribute or a dimension that the text form does not hold.
    """
    head = [f"metadata {format_name('', k)} = {format_attribute(v)}" for k, v in sorted(module.metadata.items())]
    head += [_state(s) for _, s in sorted(module.states.items())]
    head += [_param(p, digests) for _, p in sorted(module.params.items())]
    functions = [print_function(f) for f in module.functions.values()]
    return "\n".join([*(line + "\n" for line in ["\n".join(head)] if head), *functions])


def _state(state: State) -> str:
    encoding = "" if state.encoding is None else f" as {_encoding(state.encoding)}"
    return f"state {format_name('$', state.name)}: {state.type}{encoding}"


def _encoding(encoding: Encoding) -> str:
    return f"{encoding.name} {{{format_keywords(encoding.attributes())}}}"


def _param(param: Param, digests: bool) -> str:
    text = f"param {format_name('@', param.name)}: {param.type} as {_encoding(param.encoding)}"
    return f"{text} sha256 {param.digest()}" if digests else text
