"""The graph view, the ranges of inputs, and capabilities."""

from __future__ import annotations

import networkx as nx
import torch
from hypothesis import given
from hypothesis import strategies as st

from planish.ir import Capabilities, Dense, GroupedInt, Module, Node, Value, input_ranges, parse_module, symbol
from planish.ir.types import resolve, same_dim
from planish.ir.view import to_dot, to_networkx
from planish.testing.modules import modules
from planish.testing.profiles import share
from planish.testing.tensors import sizes_for


@share(0.15)
@given(modules())
def test_the_graph_has_an_edge_for_every_operand(module: Module) -> None:
    for function in module.functions.values():
        graph = to_networkx(function)
        assert nx.is_directed_acyclic_graph(graph)
        assert [v for v, kind in graph.nodes(data="kind") if kind == "node"] == list(function.nodes)
        reads = sum(len(r) for _, _, r in graph.edges(data="reads"))
        assert reads == sum(i is not None for n in function.nodes for i in n.inputs) + len(function.results)
        producers = function.producers()
        for maker, reader, entries in graph.edges(data="reads"):
            for number, operand in entries:
                assert maker == (producers.get(operand, operand) if isinstance(operand, Value) else operand)
                assert not isinstance(reader, Node) or reader.inputs[number] is operand
        dot = to_dot(function)
        assert dot.count("->") >= graph.number_of_edges() and dot.count('"') % 2 == 0


@share(0.15)
@given(st.data())
def test_ranges_of_inputs_are_never_empty_for_sizes_that_fit(data: st.DataObject) -> None:
    module = data.draw(modules())
    for function in module.functions.values():
        sizes = data.draw(sizes_for(module, function))
        for low, high in input_ranges(function).values():
            assert resolve(low, sizes) <= resolve(high, sizes)


def test_ranges_reach_inputs_through_what_only_moves_elements() -> None:
    text = """
state $k: f32[B, C, 2]
param @small: f32[7, 2] as dense {dtype = f32}
param @table: f32[9, 2] as dense {dtype = f32}
func @f(%ids: i32[B, S], %start: i64[B], %length: i64[B], %free: i64[B]) -> (y: f32[B, S, 2], z: f32[B, 1, S, 2]) {
  %wide: i64[B, S] = aten.to.dtype(%ids, i64)
  %y: f32[B, S, 2] = embedding(%wide, @table)
  %row: i64[B, 1, S] = aten.unsqueeze.default(%wide, 1)
  %z: f32[B, 1, S, 2] = aten.embedding.default(@small, %row)
  %k: f32[B, C, 2] = cache_append($k, %y, %start, %length)
  return %y, %z update $k = %k
}
"""
    ranges = input_ranges(parse_module(text).functions["f"])
    assert ranges["ids"] == (0, 6)
    assert same_dim(ranges["start"][1], symbol("C") - symbol("S")) and ranges["start"][0] == 0
    assert ranges["length"] == (0, symbol("S"))
    assert "free" not in ranges


def test_capabilities_are_plain_values() -> None:
    kernels = frozenset({("linear", Dense(torch.float32)), ("quantized_linear", GroupedInt(4, 32))})
    machine = Capabilities("host", cores=2, vector_bits=256, features=frozenset({"avx2"}), kernels=kernels)
    assert machine == Capabilities("host", 64, 2, 256, frozenset({"avx2"}), kernels)
    assert machine.has_kernel("quantized_linear", GroupedInt(4, 32))
    assert not machine.has_kernel("quantized_linear", GroupedInt(4, 64))
    assert hash(machine) == hash(machine)
