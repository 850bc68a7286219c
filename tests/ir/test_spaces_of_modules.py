"""Spaces of random modules: their groups hold, nothing larger does, and which axes share one depends on the graph alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from planish.ir import Builder, Function, Module, Operand, ParamRef, TensorType, Value, dense_param
from planish.ir.ops import Embedding, Linear, Slot, aten
from planish.ir.spaces.analysis import Axis, Space, Spaces, Tensor, find_spaces
from planish.ir.spaces.laws import Family
from planish.ir.spaces.terms import Atom, Product, Term, normal
from planish.testing.profiles import share
from planish.testing.spaced_modules import spaced_modules, trial
from planish.testing.trials import slack, violations

MORE = pytest.mark.full
SEEDS = st.integers(0, 1 << 16)
FAMILIES = {family.name for family in Family if family != Family.FIXED}


def searched(fraction: float, exact: bool, holds: Callable[[Module, int], None]) -> None:
    """A property of modules on that fraction of the profile's examples."""
    share(fraction)(given(spaced_modules(exact=exact), SEEDS)(holds))()


def kinds(space: Space) -> list[str]:
    """What there is to try of a space."""
    return [space.family.name, *(["scale"] if space.scales else []), *(["sign"] if space.signs else [])]


@pytest.mark.parametrize("fraction", [0.4, pytest.param(1.3, marks=MORE)])
@pytest.mark.parametrize("exact", [False, True], ids=["numbers", "integers"])
def test_elements_of_declared_groups_leave_functions_alone(exact: bool, fraction: float) -> None:
    """On integers permutations, signs and powers of two leave the same bits."""
    tried: Counter[str] = Counter()

    def holds(module: Module, seed: int) -> None:
        tries = trial(module, find_spaces(module), seed, exact)
        # What is multiplied by powers of two and summed up stays exact; sums have at most some dozen terms.
        assume(not exact or tries.largest < 2.0**48)
        for space in tries.tried:
            tried.update(kinds(space))
        found = [(space.parameters, kind) for space, kind in violations(tries, torch.Generator().manual_seed(seed))]
        assert not found

    searched(fraction, exact, holds)
    assert tried.keys() >= {"PERMUTATION" if exact else family for family in FAMILIES} | {"scale", "sign"}, tried


@pytest.mark.parametrize("fraction", [0.4, pytest.param(1, marks=MORE)])
def test_nothing_else_leaves_functions_alone(fraction: float) -> None:
    tried: Counter[str] = Counter()

    def holds(module: Module, seed: int) -> None:
        spaces = find_spaces(module)
        tries = [trial(module, spaces, seed + number) for number in range(6)]
        for space in tries[0].tried:
            tried.update(kinds(space))
        loose = [(s.parameters, *more) for s, *more in slack(tries, torch.Generator().manual_seed(seed))]
        assert not loose

    searched(fraction, False, holds)
    assert tried.keys() >= {"FIXED", *FAMILIES, "scale", "sign"}, tried


@pytest.mark.parametrize("fraction", [0.4, pytest.param(1, marks=MORE)])
def test_sharing_a_space_is_an_equivalence(fraction: float) -> None:
    """Every axis is in its spaces and they are its; its indices are theirs, each once."""
    axes: Counter[str] = Counter()

    def holds(module: Module, seed: int) -> None:
        spaces = find_spaces(module)
        of = {axis: spaces.of(axis.tensor, axis.number) for axis in every_axis(module)}
        for axis, found in of.items():
            size = shape(module, axis.tensor)[axis.number]
            places = coordinates(spaces.term(axis.tensor, axis.number))
            assert len(places) == len(set(places)) == size, "the indices of an axis are those of its spaces, each once"
            assert size == 1 or all(axis in space.axes for space in found)
            axes.update(["whole" if len(found) == 1 else "none" if not found else "several"])
        for space in spaces.spaces:
            assert {axis for axis in of if space in of[axis]} == set(space.axes)
            assert len(set(space.axes)) == len(space.axes)

    searched(fraction, False, holds)
    assert axes.keys() == {"whole", "none", "several"}, axes


@pytest.mark.parametrize("fraction", [0.4, pytest.param(1, marks=MORE)])
def test_neither_names_nor_the_order_of_independent_nodes_matter(fraction: float) -> None:
    moved: Counter[str] = Counter()

    def holds(module: Module, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        names = renaming(module, generator)
        other = rearranged(module, names, generator)
        one, two = find_spaces(module), find_spaces(other)
        # Where indices are cut in two ways, which is fixed, how far that reaches follows the order of nodes.
        assume(not is_cut_in_two_ways(one) and not is_cut_in_two_ways(two))
        of_one, of_two = occurrences(one, module, names), occurrences(two, other, {})
        assert of_one.keys() == of_two.keys(), "two axes share a space in one order and not in another"
        for where, space in of_one.items():
            assert alike(space, names) == alike(of_two[where], {})
        moved.update(["nodes"] if any(f.nodes != other.functions[n].nodes for n, f in module.functions.items()) else [])
        moved.update(family for space in of_one.values() for family in kinds(space))

    searched(fraction, False, holds)
    assert moved.keys() >= {"nodes", *FAMILIES, "scale", "sign"}, moved


def is_cut_in_two_ways(spaces: Spaces) -> bool:
    return any("read in another order" in limit.sentence for space in spaces.spaces for limit in space.limits)


def every_axis(module: Module) -> list[Axis]:
    params = {("param", r.name) for f in module.functions.values() for r in f.references() if isinstance(r, ParamRef)}
    values = [value for function in module.functions.values() for value in function.values]
    tensors: list[Tensor] = [*values, *sorted(params)]
    return [Axis(tensor, number) for tensor in tensors for number in range(len(shape(module, tensor)))]


def shape(module: Module, tensor: Tensor) -> tuple[int, ...]:
    kind = tensor.type if isinstance(tensor, Value) else module.params[tensor[1]].type
    return kind.concrete({})


def coordinates(term: Term) -> list[tuple[object, ...]]:
    """For each index of an axis: which part of its term it is in, and which index of each atom there."""
    term = normal(term)
    if isinstance(term, Atom):
        return [(term, number) for number in range(int(term.size))]  # type: ignore[call-overload]
    if isinstance(term, Product):
        found: list[tuple[object, ...]] = [()]
        for factor in term.factors:
            found = [(*outer, inner) for outer in found for inner in coordinates(factor)]
        return found
    return [(number, inner) for number, part in enumerate(term.parts) for inner in coordinates(part)]


def occurrences(spaces: Spaces, module: Module, names: dict[str, str]) -> dict[frozenset[object], Space]:
    """Spaces by where each of their indices is: at which place of which axis. How a term is written does not matter."""
    found: dict[Atom, set[object]] = {}

    def enter(place: object, where: tuple[object, ...]) -> None:
        if isinstance(place, tuple) and place and isinstance(place[0], Atom):
            found.setdefault(place[0], set()).add((*where, place[1]))
        elif isinstance(place, tuple):
            for inner in place:
                enter(inner, where)

    for axis in every_axis(module):
        for number, place in enumerate(coordinates(spaces.term(axis.tensor, axis.number))):
            enter(place, (renamed(axis.tensor, names), axis.number, number))
    return {frozenset(found[space.atom]): space for space in spaces.spaces}


def alike(space: Space, names: dict[str, str]) -> tuple[object, ...]:
    """What must be the same of a space, whatever its parameters are called."""
    # Of the nodes of a circle that turns a tensor over, the one that is read last is named.
    turned = "it multiplies the indices of a tensor with themselves"
    limits = {(s.family, s.sentence, s.node and s.sentence != turned and s.node.outputs) for s in space.limits}
    axes = {(renamed(axis.tensor, names), axis.number) for axis in space.axes}
    return space.size, space.family, limits, axes, space.scales, space.signs


def renamed(tensor: Tensor, names: dict[str, str]) -> Tensor:
    return tensor if isinstance(tensor, Value) else ("param", names.get(tensor[1], tensor[1]))


def renaming(module: Module, generator: torch.Generator) -> dict[str, str]:
    names = list(module.params)
    order = torch.randperm(len(names), generator=generator).tolist()
    return {name: f"w{number}" for name, number in zip(names, order)}


def rearranged(module: Module, names: dict[str, str], generator: torch.Generator) -> Module:
    """The module with other names, its parameters and functions listed in another order, and so its nodes as far as they
    do not depend on each other."""

    def operand(old: Operand | None) -> Operand | None:
        return ParamRef(names[old.name], old.type) if isinstance(old, ParamRef) else old

    functions = []
    for function in module.functions.values():
        known, waiting, nodes = set(function.inputs), list(function.nodes), []
        while waiting:
            ready = [n for n in waiting if all(i in known for i in n.inputs if isinstance(i, Value))]
            node = ready[int(torch.randint(len(ready), (), generator=generator))]
            waiting.remove(node)
            known.update(node.outputs)
            nodes.append(replace(node, inputs=tuple(map(operand, node.inputs))))
        functions.append(replace(function, nodes=tuple(nodes)))
    params = [replace(param, name=names[name]) for name, param in reversed(module.params.items())]
    listed: dict[str, Function] = {f.name: f for f in reversed(functions)}
    return Module(listed, {p.name: p for p in params})


def of_params(spaces: Spaces, name: str, axis: int) -> Space:
    (space,) = spaces.of(("param", name), axis)
    return space


def test_an_axis_without_a_law_is_fixed_though_it_shares_indices_with_one_that_has() -> None:
    """Rows of a table are read by their number, though the table is a square map of the stream, too."""
    module = Module({}, {"table": dense_param("table", torch.eye(4))})
    b, table = Builder("forward"), module.param_ref("table")
    stream = b.emit(Embedding(), b.input("ids", TensorType(torch.int64, (2, 3))), table)
    stream = b.emit(aten("add.Tensor", Slot(0), Slot(1)), stream, b.emit(Linear(), stream, table, None))
    y = b.emit(aten("sum.dim_IntList", Slot(0), (-1,)), b.emit(aten("relu.default", Slot(0)), stream))
    spaces = find_spaces(module.with_function(b.finish([y], ["y"])))
    assert of_params(spaces, "table", 0) is of_params(spaces, "table", 1)
    assert of_params(spaces, "table", 0).family == Family.FIXED
