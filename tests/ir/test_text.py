"""The text form: exact for every module, and an error with a caret for every bad program."""

from __future__ import annotations

import contextlib
import math
import re
from typing import Any

import pytest
import sympy
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from planish.ir import (
    Builder,
    Dim,
    Function,
    InMemory,
    InputError,
    IRError,
    Missing,
    Module,
    Node,
    Param,
    ParamRef,
    TensorType,
    Value,
    dense_param,
    parse_module,
    print_module,
    structural_hash,
    symbol,
    verify,
)  # fmt: skip
from planish.ir.attributes import attribute_key
from planish.ir.encodings import Float8, GroupedInt
from planish.ir.ops import Aten, Linear, RmsNorm, Slot
from planish.ir.text import printer
from planish.ir.text.attributes import format_attribute
from planish.ir.text.expressions import ExpressionParser
from planish.ir.text.scanner import Scanner
from planish.ir.types import as_dim, dim_text
from planish.testing.attributes import attributes, dims, odd_symbols, types
from planish.testing.modules import modules
from planish.testing.profiles import share


def parse_attribute(text: str) -> Any:
    scanner = Scanner(text)
    value = ExpressionParser(scanner).attribute()
    assert scanner.skip() == len(text), "all of it is read"
    return value


@given(attributes())
@example((math.nan, -math.nan, math.inf, -math.inf, -0.0, 1e-300, 1e22))
@example(("\u2028\ud800", '"', "\\", "%x // y"))
def test_attributes_round_trip(value: Any) -> None:
    assert attribute_key(parse_attribute(format_attribute(value))) == attribute_key(value)


@given(dims(odd_symbols), st.integers(1, 3))
def test_dimensions_round_trip(dim: Dim, divisor: int) -> None:
    divided = as_dim(dim * sympy.Rational(1, divisor))
    assert attribute_key(parse_attribute(dim_text(divided))) == attribute_key(divided)


@given(types())
def test_types_round_trip(type: TensorType) -> None:
    parsed = ExpressionParser(Scanner(str(type))).tensor_type()
    assert parsed == type and str(parsed) == str(type)


def check_round_trip(module: Module) -> None:
    text = print_module(module)
    parsed = parse_module(text, module.params)
    assert structural_hash(parsed) == structural_hash(module)
    assert print_module(parsed) == text, "names and sources too"


@share(0.3)
@given(modules())
def test_modules_round_trip(module: Module) -> None:
    check_round_trip(module)


def test_every_module_of_the_suite_is_watched(round_trips: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A test that builds a module and does nothing else with it checks the text form all the same."""
    before = round_trips.count
    Module({})
    assert round_trips.count == before + 1
    monkeypatch.setattr(printer, "format_attribute", lambda value: "0")
    with pytest.raises(AssertionError, match="does not parse back"):
        Module({}, metadata={"context": 3})


def test_a_function_is_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a pass shares is known by the object: a new function beside it is still looked at."""

    def normed(name: str) -> Function:
        builder = Builder(name)
        x = builder.input("x", TensorType(torch.float32, (2, 3)))
        return builder.finish(builder.node(RmsNorm(0.25), x, None).outputs, ["y"])

    module = Module({"known": normed("known")})
    monkeypatch.setattr(printer, "format_keywords", lambda *given: "eps = 0.5")
    module.with_params([])
    with pytest.raises(AssertionError, match="does not parse back"):
        module.with_function(normed("new"))


@pytest.mark.nightly
@given(modules(size=30, functions=3))
def test_long_modules_round_trip(module: Module) -> None:
    check_round_trip(module)


NAMES = st.text(min_size=1, max_size=5)


@given(st.lists(NAMES, min_size=1, max_size=4), NAMES, st.text(), NAMES)
def test_any_name_and_source_round_trips(hints: list[str], weight: str, source: str, output: str) -> None:
    builder = Builder(output)
    param = dense_param(weight, torch.ones(2, 2))
    x = builder.input(hints[0], TensorType(torch.float32, (2, 2)))
    for hint in hints:
        x = builder.emit(Linear(), x, ParamRef(weight, param.type), None, source=source, name=hint)
    module = Module({output: builder.finish([x], [output])}, {weight: param}, {}, {output: weight})
    check_round_trip(module)
    (function,) = parse_module(print_module(module)).functions.values()
    assert function.inputs[0].name == hints[0]
    assert function.output_names == (output,)
    assert [node.source for node in function.nodes] == [source] * len(hints)


@given(st.lists(st.integers(0, 2), min_size=1, max_size=4), st.booleans())
def test_aten_slots_round_trip(order: list[int], absent: bool) -> None:
    """Operands out of order, mentioned twice or absent are told apart from the plain case."""
    kind = TensorType(torch.float32, (2,))
    a, b, c = (Value(kind, n) for n in "abc")
    operands: tuple[Value | None, ...] = (a, b, None if absent else c)[: max(order) + 1]
    arguments = (tuple(Slot(n) for n in (*order, *range(max(order) + 1))), 1, None)
    node = Node(Aten("cat.default", arguments), operands, (Value(kind),))
    builder = Builder("f")
    builder.inputs, builder.nodes = [a, b, c], [node]
    check_round_trip(Module({"f": builder.finish([a], ["y"])}))


TEXT = """\
metadata context = 128
state $cache: f32[B, C, 2]
param @packed: f32[4, 8] as grouped_int {bits = 4, group = 4, scale_dtype = f16, zero_points = false}
param @w: f32[3, 2] as dense {dtype = f32}

// A comment of its own is skipped.
func @forward(%x: f32[B, S, 2], %start: i64[B], %length: i64[B]) -> (y: f32[B, S, 3], z: f32[B*S, 2]) {
  %h: f32[B, S, 2] = rms_norm(%x, none) {eps = 1e-06}  // model.py:3
  %0: f32[B, S, 3] = linear(%h, @w, none)
  %1: f32[B*S, 2] = aten.view.default(%h, (B*S, 2))
  %2: f32[B, C, 2] = cache_append($cache, %h, %start, %length)
  return %0, %1 update $cache = %2
}
"""


def test_the_text_is_what_the_page_shows() -> None:
    plain = TEXT.replace("// A comment of its own is skipped.\n", "")
    assert print_module(parse_module(TEXT)) == plain
    assert str(parse_module(TEXT)) == plain
    assert str(parse_module(TEXT).functions["forward"]) == plain[plain.index("func") :]


HELD = """\
state $cache: f32[B, C, 2] as grouped_int {bits = 8, group = 2, scale_dtype = bf16, zero_points = true}
state $floats: f32[B, C, 1, 4] as float8 {scaled = "row"}

func @forward(%x: f32[B, S, 2], %start: i64[B], %length: i64[B]) -> () {
  %0: f32[B, C, 2] = cache_append($cache, %x, %start, %length) {encoding = GroupedInt(bits = 8, group = 2, scale_dtype = bf16, zero_points = true)}
  return update $cache = %0
}
"""  # noqa: E501


def test_how_states_are_held_is_kept() -> None:
    module = parse_module(HELD)
    verify(module)
    assert print_module(module) == HELD
    assert module.states["cache"].encoding == GroupedInt(8, 2, torch.bfloat16, zero_points=True)
    assert module.states["floats"].encoding == Float8()
    check_round_trip(module)
    with pytest.raises(IRError, match="no encoding is called 'sparse'"):
        parse_module(HELD.replace("as float8", "as sparse"))


ERRORS = [
    ("metadata context", "metdata context", "expected one of metadata, state, param, func"),
    ("= 128", "128", "expected '=' after the name of the metadata entry"),
    ("= 128", "= ?", "expected a value"),
    ("= 128", "= (1, 2", "expected ',' after an element"),
    ("= 128", '= "open', 'the closing " is missing'),
    ("= 128", '= "\\q"', "a backslash must start an escape"),
    ("= 128", '= "\\u{110000}"', "there is no character"),
    ("= 128", "= Slot(index = 1)", "neither a function of dimensions nor a record"),
    ("= 128", '= "a" + 1', '"a" is no dimension'),
    ("= 128", "= S // 0", "divided by zero"),
    ("= 128", "= S**B", "an exponent must be an integer"),
    ("= 128", "= Mod(-1, 2)", "Mod does not take these arguments"),
    ("= 128", "= nan(7)", "the bits of a NaN"),
    ("= 128", "= %x", "expected a value"),
    ("state $cache", "metadata context = 1\nstate $cache", "a second metadata entry 'context'"),
    ("param @w", "state $cache: f32[]\nparam @w", "a second state 'cache'"),
    ("param @w", "param @packed", "a second parameter 'packed'"),
    ("state $cache:", "state cache:", "expected the name of a state, which starts with '$'"),
    ("f32[B, C, 2]", "f33[B, C, 2]", "expected a type such as"),
    ("f32[B, C, 2]", "f32[B, 1.5]", "1.5 is no dimension"),
    ("f32[B, C, 2]", "f32[-1]", "cannot be negative"),
    ("f32[B, C, 2]", "f32(B)", "expected '[' after the dtype"),
    ("as dense", "as sparse", "no encoding is called 'sparse'"),
    ("{dtype = f32}", "{dtyp = f32}", "dense has no attribute 'dtyp'; it has dtype"),
    ("{dtype = f32}", "{dtype = 1}", "attribute 'dtype' of dense is dtype, got 1"),
    ("{dtype = f32}", "{}", "dense needs its attribute 'dtype'"),
    ("{dtype = f32}", "{dtype = f32} sha256 abc", "64 hexadecimal digits"),
    ("bits = 4", "bits = 9", "grouped integers of 9 bits are not supported"),
    ("%length: i64[B])", "%start: i64[B])", "%start is defined twice"),
    ("%1: f32", "%h: f32", "%h is defined twice"),
    ("rms_norm(", "rms(", "no operation is called 'rms'"),
    ("{eps = 1e-06}", "{eps = 1}", "attribute 'eps' of rms_norm is float, got 1"),
    ("{eps = 1e-06}", "{eps = 1e-06, eps = 1e-06}", "attribute 'eps' is given twice"),
    ("{eps = 1e-06}", "", "rms_norm needs its attribute 'eps'"),
    ("linear(%h", "linear(%later", "%later is not defined before"),
    ("@w, none", "@v, none", "no parameter 'v' is declared before"),
    ("($cache", "($other", "no state 'other' is declared before"),
    ("(%h, @w, none)", "(%h, 3, none)", "expected an operand"),
    ("(%h, @w, none)", "(%h @w, none)", "expected ',' after an operand"),
    ("(%h, (B*S, 2))", "(%h, (B*S, 2), x = 1, 2)", "an argument without a name follows one with a name"),
    ("(%h, (B*S, 2))", "(%h, x = 1, x = 2)", "argument 'x' is given twice"),
    ("(%h, (B*S, 2))", "(%h#1, (B*S, 2))", "operand 0 of aten.view.default is nowhere given"),
    ("(%h, (B*S, 2))", "(%h#0, %x#0)", "given twice and differs"),
    (
        "-> (y: f32[B, S, 3]",
        "-> (y: f32[B, S, 4]",
        "output 'y' is declared as f32[B, S, 4], but f32[B, S, 3] is returned",
    ),
    ("return %0, %1", "return %0", "expected ',' after 1 of 2 outputs"),
    ("return %0, %1", "return %0, none", "none cannot leave a function"),
    ("update $cache", "update $other", "no state 'other' is declared before"),
    ("update $cache = %2", "update $cache = %2, $cache = %2", "state 'cache' is updated twice"),
    ("  return %0, %1 update $cache = %2\n}\n", "", "function 'forward' ends without 'return'"),
    ("= %2\n}", "= %2\n", "expected '}' after the last line of the function"),
]


@pytest.mark.parametrize("old, new, message", ERRORS, ids=[message[:40] for _, _, message in ERRORS])
def test_each_error_shows_its_line(old: str, new: str, message: str) -> None:
    assert old in TEXT
    bad = TEXT.replace(old, new, 1)
    with pytest.raises(IRError, match=re.escape(message)) as caught:
        parse_module(bad)
    first, line, caret = str(caught.value).split("\n")
    number, column = map(int, re.findall(r"^line (\d+), column (\d+):", first)[0])
    assert line == "    " + (bad.split("\n")[number - 1])
    assert caret == " " * (4 + column - 1) + "^"


@given(st.data())
@share(0.5)
def test_no_damaged_text_escapes_the_root_error(data: st.DataObject) -> None:
    """A text with a piece cut out or doubled parses, or is refused as the IR refuses."""
    start = data.draw(st.integers(0, len(TEXT)))
    end = data.draw(st.integers(start, min(len(TEXT), start + 20)))
    bad = TEXT[:start] + TEXT[start:end] * data.draw(st.sampled_from([0, 2])) + TEXT[end:]
    with contextlib.suppress(IRError):
        print_module(parse_module(bad))


def test_parameters_without_data_refuse_to_be_read() -> None:
    param = parse_module(TEXT).params["w"]
    assert isinstance(param.source, Missing)
    with pytest.raises(InputError, match="parameter 'w' has no data"):
        param.value()


def test_weights_are_checked_against_the_text() -> None:
    w = dense_param("w", torch.ones(3, 2))
    storage = GroupedInt(4, 4).encode(torch.ones(4, 8))
    packed = Param("packed", TensorType(torch.float32, (4, 8)), GroupedInt(4, 4), InMemory(storage))
    weights = {"w": w, "packed": packed}
    module = parse_module(TEXT, weights)
    assert module.params["w"] is w
    stated = print_module(module, digests=True)
    assert parse_module(stated, weights.get, check_digests=True).params["packed"] is packed
    assert print_module(parse_module(stated), digests=True) == stated, "the digest is kept without the data"
    with pytest.raises(IRError, match="the weights have no parameter 'packed'"):
        parse_module(TEXT, {"w": w})
    with pytest.raises(IRError, match="but the text says otherwise"):
        parse_module(TEXT, {"w": dense_param("w", torch.ones(2, 3)), "packed": packed})
    other = {"w": dense_param("w", torch.zeros(3, 2)), "packed": packed}
    assert parse_module(stated, other).params["w"] is other["w"]
    with pytest.raises(IRError, match="not the one whose digest is stated"):
        parse_module(stated, other, check_digests=True)


def test_what_has_no_text_is_refused() -> None:
    builder = Builder("f")
    x = builder.input("x", TensorType(torch.float32, (2,)))
    builder.nodes.append(Node(RmsNorm([1]), (x, None), (Value(x.type),)))  # type: ignore[arg-type]
    with pytest.raises(IRError, match="cannot be an attribute"):
        print_module(Module({"f": builder.finish([x], ["y"])}))
    with pytest.raises(IRError, match="gamma is not one of its functions"):
        dim_text(sympy.gamma(symbol("B")))
