"""Parsing the text form.

    module   = { "metadata" name "=" attribute | state | param | function }
    state    = "state" $name ":" type [ "as" encoding "{" attributes "}" ]
    param    = "param" @name ":" type "as" encoding "{" attributes "}" [ "sha256" digest ]
    function = "func" @name "(" %name ":" type, ... ")" "->" "(" name ":" type, ... ")" "{" { node } return "}"
    node     = [ %name ":" type, ... "=" ] operation "(" operands ")" [ "{" attributes "}" ] [ "//" source ]
    return   = "return" operand, ... [ "update" $name "=" operand, ... ]

An ATen call has its arguments in place: `aten.view.default(%x, (B, S, 8))`. Parsing checks what it needs to build the
module; `verify` checks the rest.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from planish.ir.encodings import ENCODINGS, Encoding
from planish.ir.errors import IRError
from planish.ir.module import Function, Module, Node, Operand, ParamRef, State, StateRef, Value
from planish.ir.op import Op
from planish.ir.ops import op_class
from planish.ir.ops.aten import Aten, Slot
from planish.ir.params import Missing, Param
from planish.ir.text.expressions import ExpressionParser
from planish.ir.text.printer import format_name
from planish.ir.text.scanner import Scanner

Weights: TypeAlias = "Mapping[str, Param] | Callable[[str], Param | None]"

_DIGEST = re.compile(r"[0-9a-f]{64}\b")
_SLOT = re.compile(r"#(\d+)")
_NUMBERED = re.compile(r"%\d+(?![\w.])", re.ASCII)


def parse_module(text: str, weights: Weights | None = None, *, check_digests: bool = False) -> Module:
    """The module that a text describes.

    Args:
        text: as `print_module` writes it; lines that begin with `//` are skipped.
        weights: the parameters by name, or a function from names to parameters. Without it the parameters have no data,
            and reading one is refused.
        check_digests: read every parameter and compare the digests that the text states.

    Raises:
        IRError: the text is not well formed, names an operation that is not registered, or a parameter is not in
            `weights` with the stated type, encoding and digest. The message shows the line with a caret.
    """
    return _Parser(text, weights, check_digests).module()


class _Parser:
    def __init__(self, text: str, weights: Weights | None, check_digests: bool) -> None:
        self.scanner = Scanner(text)
        self.expressions = ExpressionParser(self.scanner)
        self.weights = weights
        self.check_digests = check_digests
        self.params: dict[str, Param] = {}
        self.states: dict[str, State] = {}
        self.metadata: dict[str, Any] = {}
        self.functions: dict[str, Function] = {}

    def module(self) -> Module:
        scanner = self.scanner
        parts: dict[str, Callable[[], None]] = {
            "metadata": self._metadata,
            "state": self._state,
            "param": self._param,
            "func": self._function,
        }
        while scanner.skip_comments() < len(scanner.text):
            word = next((w for w in parts if scanner.accept_word(w)), None)
            if word is None:
                raise scanner.error(f"expected one of {', '.join(parts)}")
            parts[word]()
        return Module(self.functions, self.params, self.states, self.metadata)

    def _new_name(self, what: str, sigil: str, taken: Mapping[str, Any]) -> tuple[str, int]:
        start = self.scanner.skip()
        name = self.scanner.name(f"the name of {what}", sigil)
        if name in taken:
            raise self.scanner.error(f"there is a second {what.split(' ', 1)[1]} {name!r}", start)
        return name, start

    def _metadata(self) -> None:
        name, _ = self._new_name("a metadata entry", "", self.metadata)
        self.scanner.expect("=", "the name of the metadata entry")
        self.metadata[name] = self.expressions.attribute()

    def _state(self) -> None:
        name, _ = self._new_name("a state", "$", self.states)
        self.scanner.expect(":", "the name of the state")
        type = self.expressions.tensor_type()
        encoding = self._encoding() if self.scanner.accept_word("as") else None
        self.states[name] = State(name, type, encoding)

    def _param(self) -> None:
        scanner = self.scanner
        name, start = self._new_name("a parameter", "@", self.params)
        scanner.expect(":", "the name of the parameter")
        type = self.expressions.tensor_type()
        scanner.expect("as", "the type of the parameter")
        encoding = self._encoding()
        digest = None
        if scanner.accept_word("sha256"):
            digest = scanner.match(_DIGEST)
            if digest is None:
                raise scanner.error("a digest is 64 hexadecimal digits")
        declared = Param(name, type, encoding, Missing(name, digest))
        self.params[name] = declared if self.weights is None else self._weight(declared, digest, start)

    def _encoding(self) -> Encoding:
        scanner = self.scanner
        at = scanner.skip()
        kind = scanner.name("the name of an encoding")
        if kind not in ENCODINGS:
            raise scanner.error(f"no encoding is called {kind!r}; known are {', '.join(ENCODINGS)}", at)
        scanner.expect("{", "the name of the encoding")
        encoding: Encoding = self.expressions.record(ENCODINGS[kind], "}", at)
        return encoding

    def _weight(self, declared: Param, digest: str | None, start: int) -> Param:
        assert self.weights is not None
        name = declared.name
        found = self.weights(name) if callable(self.weights) else self.weights.get(name)
        if found is None:
            raise self.scanner.error(f"the weights have no parameter {name!r}", start)
        if (found.name, found.type, found.encoding) != (name, declared.type, declared.encoding):
            got = f"{found.name!r}: {found.type} as {found.encoding}"
            raise self.scanner.error(f"the weights have {got}, but the text says otherwise", start)
        if self.check_digests and digest is not None and found.digest() != digest:
            raise self.scanner.error(f"the storage of parameter {name!r} is not the one whose digest is stated", start)
        return found

    def _function(self) -> None:
        name, _ = self._new_name("a function", "@", self.functions)
        self.functions[name] = _FunctionParser(self, name).function()


class _FunctionParser:
    """Parses one function after its name."""

    def __init__(self, module: _Parser, name: str) -> None:
        self.module = module
        self.scanner = module.scanner
        self.expressions = module.expressions
        self.name = name
        self.values: dict[str, Value] = {}

    def function(self) -> Function:
        scanner = self.scanner
        scanner.expect("(", "the name of the function")
        inputs = self._values(")")
        scanner.expect("->", "the inputs")
        scanner.expect("(", "'->'")
        declared: list[tuple[str, Any, int]] = []
        while not scanner.accept(")"):
            if declared:
                scanner.expect(",", "an output")
            start = scanner.skip()
            output = scanner.name("the name of an output")
            scanner.expect(":", "the name of the output")
            declared.append((output, self.expressions.tensor_type(), start))
        scanner.expect("{", "the outputs")
        nodes: list[Node] = []
        while scanner.skip_comments() < len(scanner.text) and not scanner.accept_word("return"):
            nodes.append(self._node())
        if scanner.position == len(scanner.text):
            raise scanner.error(f"function {self.name!r} ends without 'return'")
        outputs = self._outputs(declared)
        updates = self._updates()
        scanner.skip_comments()
        scanner.expect("}", "the last line of the function")
        names = tuple(name for name, _, _ in declared)
        return Function(self.name, tuple(inputs), tuple(nodes), tuple(outputs), names, updates)

    def _outputs(self, declared: list[tuple[str, Any, int]]) -> list[Operand]:
        scanner = self.scanner
        outputs: list[Operand] = []
        for number, (name, type, start) in enumerate(declared):
            if number:
                scanner.expect(",", f"{number} of {len(declared)} outputs")
            operand = self._present_operand()
            if operand.type != type:
                raise scanner.error(f"output {name!r} is declared as {type}, but {operand.type} is returned", start)
            outputs.append(operand)
        return outputs

    def _updates(self) -> dict[str, Operand]:
        scanner = self.scanner
        updates: dict[str, Operand] = {}
        if not scanner.accept_word("update"):
            return updates
        while not updates or scanner.accept(","):
            start = scanner.skip()
            state = scanner.name("the name of a state", "$")
            if state not in self.module.states:
                raise scanner.error(f"no state {state!r} is declared before", start)
            if state in updates:
                raise scanner.error(f"state {state!r} is updated twice", start)
            scanner.expect("=", "the name of the state")
            updates[state] = self._present_operand()
        return updates

    def _values(self, close: str) -> list[Value]:
        """Definitions `%name: type, ...` up to `close`."""
        values: list[Value] = []
        while not self.scanner.accept(close):
            if values:
                self.scanner.expect(",", "a value")
            start = self.scanner.skip()
            key, hint = self._value_name()
            if key in self.values:
                raise self.scanner.error(f"{key} is defined twice", start)
            self.scanner.expect(":", "the name of the value")
            self.values[key] = Value(self.expressions.tensor_type(), hint)
            values.append(self.values[key])
        return values

    def _value_name(self) -> tuple[str, str]:
        """The text of a value's name, and the name itself: empty when it is a number."""
        scanner = self.scanner
        found = _NUMBERED.match(scanner.text, scanner.skip())
        if found:
            scanner.position = found.end()
            return found.group(), ""
        name = scanner.name("the name of a value", "%")
        return format_name("%", name), name

    def _operand(self) -> Operand | None:
        """An operand, or `none`."""
        scanner = self.scanner
        start = scanner.skip()
        if scanner.accept_word("none"):
            return None
        if scanner.peek("%"):
            key, _ = self._value_name()
            if key not in self.values:
                raise scanner.error(f"{key} is not defined before", start)
            return self.values[key]
        if scanner.peek("@"):
            name = scanner.name("the name of a parameter", "@")
            if name not in self.module.params:
                raise scanner.error(f"no parameter {name!r} is declared before", start)
            return ParamRef(name, self.module.params[name].type)
        if scanner.peek("$"):
            name = scanner.name("the name of a state", "$")
            if name not in self.module.states:
                raise scanner.error(f"no state {name!r} is declared before", start)
            return StateRef(name, self.module.states[name].type)
        raise scanner.error("expected an operand: %value, @parameter, $state or none", start)

    def _present_operand(self) -> Operand:
        start = self.scanner.skip()
        operand = self._operand()
        if operand is None:
            raise self.scanner.error("none cannot leave a function", start)
        return operand

    def _node(self) -> Node:
        scanner = self.scanner
        outputs = self._values("=") if scanner.peek("%") else []
        start = scanner.skip()
        called = scanner.name("the name of an operation")
        scanner.expect("(", f"{called}")
        if called.startswith("aten."):
            op, operands = self._aten(called.removeprefix("aten."), start)
        else:
            op, operands = self._model_op(called, start)
        return Node(op, tuple(operands), tuple(outputs), scanner.comment())

    def _model_op(self, called: str, start: int) -> tuple[Op, list[Operand | None]]:
        scanner = self.scanner
        try:
            made = op_class(called)
        except IRError as error:
            raise scanner.error(str(error), start) from error
        operands: list[Operand | None] = []
        while not scanner.accept(")"):
            if operands:
                scanner.expect(",", "an operand")
            operands.append(self._operand())
        if scanner.accept("{"):
            return self.expressions.record(made, "}", start), operands
        return self.expressions.build(made, {}, start), operands

    def _aten(self, overload: str, start: int) -> tuple[Op, list[Operand | None]]:
        scanner = self.scanner
        operands: dict[int, Operand | None] = {}

        def slot() -> Slot:
            at = scanner.skip()
            operand = self._operand()
            explicit = scanner.match(_SLOT)
            number = int(explicit[1:]) if explicit else len(operands)
            if number in operands and operands[number] != operand:
                raise scanner.error(f"operand {number} of aten.{overload} is given twice and differs", at)
            operands[number] = operand
            return Slot(number)

        inner = ExpressionParser(scanner, None, slot)
        arguments: list[Any] = []
        keywords: dict[str, Any] = {}
        while not scanner.accept(")"):
            if arguments or keywords:
                scanner.expect(",", "an argument")
            keyword = scanner.match(re.compile(r"[A-Za-z_]\w*(?=\s*=)"))
            if keyword is None and keywords:
                raise scanner.error("an argument without a name follows one with a name")
            if keyword is None:
                arguments.append(inner.attribute())
                continue
            scanner.expect("=", "the name of an argument")
            if keyword in keywords:
                raise scanner.error(f"argument {keyword!r} is given twice")
            keywords[keyword] = inner.attribute()
        missing = sorted(set(range(len(operands))) - set(operands))
        if missing:
            raise scanner.error(f"operand {missing[0]} of aten.{overload} is nowhere given", start)
        return Aten(overload, tuple(arguments), tuple(keywords.items())), [operands[n] for n in range(len(operands))]
