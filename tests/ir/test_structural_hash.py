"""The structural hash sees the program and its storage, and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from safetensors.torch import save_file

from planish.ir import (
    Computed,
    Dense,
    Float8,
    Function,
    GroupedInt,
    InFile,
    InMemory,
    Module,
    Node,
    Operand,
    Param,
    ParamRef,
    State,
    TensorType,
    Value,
    dense_param,
    parse_module,
    print_module,
    structural_hash,
)  # fmt: skip
from planish.ir.structural_hash import content_hash
from planish.testing.modules import modules
from planish.testing.profiles import share
from planish.testing.tiny_decoder import tiny_decoder

TEXT = """\
metadata context = 128
state $cache: f32[B, C, 2]
param @v: f32[2, 2] as dense {dtype = f32}
param @w: f32[2, 2] as dense {dtype = f32}

func @forward(%x: f32[B, S, 2], %start: i64[B], %length: i64[B]) -> (y: f32[B, S, 2]) {
  %a: f32[B, S, 2] = linear(%x, @w, none)
  %b: f32[B, S, 2] = aten.mul.Scalar(%a, 2)
  %c: f32[B, S, 2] = aten.sub.Tensor(%a, %b)
  %unused: f32[B, S, 2] = rms_norm(%c, none) {eps = 1e-06}
  %d: f32[B, C, 2] = cache_append($cache, %c, %start, %length)
  return %c update $cache = %d
}
"""


def renamed(module: Module) -> Module:
    """The module with other names of inner values, other sources, and its mappings in another order."""

    def copy(function: Function) -> Function:
        values: dict[Value, Value] = {v: v for v in function.inputs}

        def operand(old: Operand) -> Operand:
            return values.get(old, old) if isinstance(old, Value) else old

        nodes = []
        for number, node in enumerate(function.nodes):
            outputs = tuple(Value(v.type, f"{v.name}{number}") for v in node.outputs)
            inputs = tuple(None if i is None else operand(i) for i in node.inputs)
            nodes.append(Node(node.op, inputs, outputs, f"elsewhere.py:{number}"))
            values.update(zip(node.outputs, outputs))
        updates = {name: operand(o) for name, o in reversed(list(function.updates.items()))}
        results = tuple(operand(o) for o in function.outputs)
        return Function(function.name, function.inputs, tuple(nodes), results, function.output_names, updates)

    def turned(mapping: Mapping[str, Any]) -> dict[str, Any]:
        return dict(reversed(list(mapping.items())))

    functions = {name: copy(f) for name, f in module.functions.items()}
    return Module(turned(functions), turned(module.params), turned(module.states), turned(module.metadata))


@share(0.2)
@given(modules())
def test_names_sources_and_orders_of_mappings_do_not_matter(module: Module) -> None:
    assert structural_hash(renamed(module)) == structural_hash(module)
    for function in module.functions.values():
        assert structural_hash(renamed(module).functions[function.name]) == structural_hash(function)


CHANGES = [
    ("context = 128", "context = 128.0"),
    ("context =", "contexts ="),
    ("$cache", "$store"),
    ("@w", "@u"),
    ("%x", "%input"),
    ("(y:", "(z:"),
    ("@forward", "@backward"),
    ("2)\n  %c", "2.0)\n  %c"),
    ("(%a, %b)", "(%b, %a)"),
    ("%unused: f32[B, S, 2]", "%unused: f32[B, S, 3]"),
    ("linear(%x, @w", "linear(%x, @v"),
    ("sub.Tensor", "add.Tensor"),
    ("eps = 1e-06", "eps = 1e-05"),
    ("return %c", "return %b"),
    ("$cache = %d", "$cache = $cache"),
    (" update $cache = %d", ""),
    ("@v: f32[2, 2] as dense {dtype = f32}", "@v: f32[2, 2] as dense {dtype = f16}"),
    ("@v: f32[2, 2]", "@v: f32[4]"),
    ("B, C, 2]", "B, 2*C, 2]"),
    ("  %unused: f32[B, S, 2] = rms_norm(%c, none) {eps = 1e-06}\n", ""),
    ("(%c, none) {eps", "(%b, none) {eps"),
]


@pytest.mark.parametrize("old, new", CHANGES)
def test_every_change_of_the_program_is_seen(old: str, new: str) -> None:
    assert old in TEXT
    assert structural_hash(parse_module(TEXT)) == structural_hash(parse_module(TEXT))
    assert structural_hash(parse_module(TEXT.replace(old, new))) != structural_hash(parse_module(TEXT))


def test_the_order_of_independent_nodes_matters() -> None:
    lines = TEXT.split("\n")
    lines[9], lines[10] = lines[10], lines[9]
    assert structural_hash(parse_module("\n".join(lines))) != structural_hash(parse_module(TEXT))


def with_source(change: Callable[[Param], Param]) -> str:
    module = Module({}, {"w": dense_param("w", torch.ones(2))})
    return structural_hash(module.with_params([change(module.params["w"])]))


def test_storage_counts_by_identity_and_big_files_are_not_read() -> None:
    values = {"values": torch.ones(2)}
    compute = Computed(lambda: values)
    hashes = [
        with_source(lambda p: p),
        with_source(lambda p: replace(p, source=InMemory({"values": torch.zeros(2)}))),
        with_source(lambda p: replace(p, source=InFile(Path("nowhere"), {"values": "w"}))),
        with_source(lambda p: replace(p, source=InFile(Path("nowhere"), {"values": "v"}))),
        with_source(lambda p: replace(p, source=InFile(Path("elsewhere"), {"values": "w"}))),
        with_source(lambda p: replace(p, source=compute)),
        with_source(lambda p: replace(p, source=Computed(lambda: values))),
    ]
    assert len(set(hashes)) == len(hashes)
    assert with_source(lambda p: replace(p, source=InMemory(values))) == hashes[0], "the same bytes in memory"
    assert with_source(lambda p: replace(p, source=compute)) == hashes[5]


def test_how_a_state_is_held_is_seen() -> None:
    kind = TensorType(torch.float32, (2, 3, 8))
    encodings = [None, Dense(torch.float32), GroupedInt(8, 8), GroupedInt(8, 4), GroupedInt(4, 8), Float8()]
    hashes = {structural_hash(Module({}, {}, {"s": State("s", kind, encoding)})) for encoding in encodings}
    assert len(hashes) == len(encodings)


def test_an_unused_state_is_seen() -> None:
    state = State("s", TensorType(torch.float32, (2,)))
    assert structural_hash(Module({}, {}, {"s": state})) != structural_hash(Module({}))


def test_tied_weights_differ_from_equal_ones() -> None:
    tied = parse_module(TEXT.replace("mul.Scalar(%a, 2)", "mul.Tensor(%a, @w)"))
    apart = parse_module(TEXT.replace("mul.Scalar(%a, 2)", "mul.Tensor(%a, @v)"))
    assert structural_hash(tied) != structural_hash(apart)
    assert isinstance(tied.functions["forward"].nodes[1].inputs[1], ParamRef)
    assert Dense(torch.float32) == tied.params["w"].encoding
    assert print_module(tied) != print_module(apart)


def test_the_content_hash_sees_weights_wherever_they_are(tmp_path: Path) -> None:
    module = tiny_decoder()
    weight = module.params["0.q"]
    save_file({"q": weight.value()}, tmp_path / "w.safetensors")
    moved = Param("0.q", weight.type, weight.encoding, InFile(tmp_path / "w.safetensors", {"values": "q"}))
    computed = Param("0.q", weight.type, weight.encoding, Computed(weight.storage))
    one = content_hash(module, "forward")
    assert {content_hash(module.with_params([p]), "forward") for p in (moved, computed)} == {one}
    other = dense_param("0.q", weight.value() + 1)
    assert content_hash(module.with_params([other]), "forward") != one
