"""The generators themselves: a generator that never draws a thing makes every test of that thing green."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings

from planish.ir import GroupedInt, Module, Node, ParamRef
from planish.ir.ops import OPS
from planish.testing.modules import modules

pytestmark = pytest.mark.full

EXAMPLES = 200


def nodes(module: Module) -> list[Node]:
    return [node for function in module.functions.values() for node in function.nodes]


def overloads(module: Module) -> set[str]:
    return {n.op.attributes()["overload"] for n in nodes(module) if n.op.name == "aten"}


def twins(module: Module) -> bool:
    """The same operation twice on the same operands."""
    for function in module.functions.values():
        calls = Counter((n.op.key(), n.inputs) for n in function.nodes if any(i is not None for i in n.inputs))
        if max(calls.values()) > 1:
            return True
    return False


def lookalikes(module: Module) -> bool:
    """Two calls of one overload whose attributes are equal in Python and not the same: 1 and 1.0."""
    calls = {n.op: tuple(n.op.attributes().values()) for n in nodes(module) if n.op.name == "aten"}
    return len(set(calls.values())) < len(calls)


def unused(module: Module) -> bool:
    for function in module.functions.values():
        used = {*function.users(), *function.results}
        if any(not used & set(node.outputs) for node in function.nodes):
            return True
    return False


def tied(module: Module) -> bool:
    reads = Counter(r.name for f in module.functions.values() for r in f.references() if isinstance(r, ParamRef))
    return max(reads.values()) > 1


# What must be drawn, and in what share of the modules at least.
WANTED: dict[str, tuple[float, Callable[[Module], bool]]] = {
    "six nodes and more": (0.3, lambda m: len(nodes(m)) >= 6),
    "twelve nodes and more": (0.1, lambda m: len(nodes(m)) >= 12),
    "two functions": (0.2, lambda m: len(m.functions) > 1),
    "a state": (0.02, lambda m: bool(m.states)),
    "twins": (0.1, twins),
    "twins but for a type": (0.02, lookalikes),
    "an unused node": (0.2, unused),
    "a tied weight": (0.05, tied),
    "a packed weight": (0.1, lambda m: any(isinstance(p.encoding, GroupedInt) for p in m.params.values())),
    "an absent operand": (0.1, lambda m: any(None in n.inputs for n in nodes(m))),
    "a merged symbolic axis": (0.02, lambda m: any("*" in str(v.type) for n in nodes(m) for v in n.outputs)),
    "transposes": (0.1, lambda m: "transpose.int" in overloads(m)),
    "scalars": (0.1, lambda m: bool({"add.Scalar", "mul.Scalar", "sub.Scalar"} & overloads(m))),
    "attention": (0.02, lambda m: any(n.op.name == "attention" for n in nodes(m))),
    "quantised linear": (0.02, lambda m: any(n.op.name == "quantized_linear" for n in nodes(m))),
}


@pytest.fixture(scope="module")
def drawn() -> list[Module]:
    found: list[Module] = []

    @settings(
        max_examples=EXAMPLES, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck)
    )
    @given(modules())
    def collect(module: Module) -> None:
        found.append(module)

    collect()
    return found


@pytest.mark.parametrize("what", sorted(WANTED))
def test_modules_hold_what_tests_need(what: str, drawn: list[Module]) -> None:
    share, holds = WANTED[what]
    count = sum(map(holds, drawn))
    assert count >= share * len(drawn), f"{count} of {len(drawn)} modules"


def test_every_operation_is_drawn_somewhere(drawn: list[Module]) -> None:
    """Each is drawn by its own record in the tests of operations; in modules, most are met even in this few."""
    seen = {node.op.name for module in drawn for node in nodes(module)}
    assert len(seen) >= len(OPS) - 2, sorted(set(OPS) - seen)
