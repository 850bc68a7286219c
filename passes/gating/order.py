"""The order of channels, multiplied into the parameters that have them, where it is theirs to choose."""

from __future__ import annotations

import torch

from planish.ir.module import Module, Node, ParamRef, Value
from planish.ir.ops import Aten
from planish.ir.spaces.action import act
from planish.ir.spaces.analysis import Space, Spaces, find_spaces
from planish.ir.spaces.laws import Family
from planish.ir.spaces.terms import atoms
from planish.passes.param_changes import Change, changed
from planish.passes.pass_base import Correspondence, PassResult


def put_in_order(module: Module) -> PassResult:
    """Where a node only puts all indices in another order, and the space of its result may be permuted, everything that has
    the space is permuted so that the node leaves the order as it is."""
    spaces, result = find_spaces(module), module
    moved: set[Space] = set()
    for function in module.functions.values():
        for node in function.nodes:
            found = _order(result, node)
            if found is None:
                continue
            name, order = found
            of_index = spaces.of(("param", name), 0)
            # One permutation for a space: what a second node wants is another one.
            if len(of_index) == 1 and of_index[0].family >= Family.PERMUTATION and of_index[0] not in moved:
                moved.add(of_index[0])
                result = _permuted(result, spaces, of_index[0], order.argsort())
    if not moved:
        return PassResult(module, 0)
    gone = {space.atom for space in moved}
    same: dict[str, Correspondence] = {
        name: {v: v for v in function.values if gone.isdisjoint(_atoms(spaces, v))}
        for name, function in module.functions.items()
    }
    return PassResult(result, len(moved), same)


def _order(module: Module, node: Node) -> tuple[str, torch.Tensor] | None:
    """The parameter with which a node permutes all indices, and the permutation; None where it does not."""
    if not isinstance(node.op, Aten) or node.op.overload != "index_select.default":
        return None
    index = node.inputs[1]
    if not isinstance(index, ParamRef) or node.inputs[0] is None or node.inputs[0].type != node.output.type:
        return None
    order, every = module.params[index.name].value(), torch.arange(int(index.type.shape[0]))  # type: ignore[call-overload]
    return (index.name, order) if not torch.equal(order, every) and torch.equal(order.sort()[0], every) else None


def _permuted(module: Module, spaces: Spaces, space: Space, order: torch.Tensor) -> Module:
    """The module with a space's indices in another order in all parameters."""
    matrix = torch.eye(len(order), dtype=torch.float64)[order]

    def change(name: str) -> Change:
        terms = spaces.terms(("param", name))
        return Change(("order", space.atom), lambda value: act(value, terms, space.atom, matrix))

    names = dict.fromkeys(name for name, _ in space.parameters)
    return module.with_params([changed(module.params[name], name, (change(name),)) for name in names])


def _atoms(spaces: Spaces, value: Value) -> set[object]:
    return {atom for term in spaces.terms(value) for atom in atoms(term)}
