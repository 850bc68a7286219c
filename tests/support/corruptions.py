"""Ways to break a correct module, one for each fault that the verifier names."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import sympy
import torch

from planish.ir import (
    Chooser,
    Function,
    GroupedInt,
    InMemory,
    Module,
    Node,
    Param,
    ParamRef,
    State,
    StateRef,
    TensorType,
    Value,
    symbol,
)  # fmt: skip
from planish.ir.ops import Positions, RmsNorm, Slot, aten

Corruption = Callable[[Module, Chooser], Module]
SCALAR = TensorType(torch.float32, ())


def main_function(module: Module) -> Function:
    return module.functions["forward"]


def changed(module: Module, **changes: Any) -> Module:
    """The module with its main function changed."""
    return module.with_function(replace(main_function(module), **changes))


def with_node(module: Module, node: Node) -> Module:
    """The module with one more node at the end."""
    return changed(module, nodes=(*main_function(module).nodes, node))


def edit_node(module: Module, choose: Chooser, edit: Callable[[Node], Node], fits: Callable[[Node], bool]) -> Module:
    """One fitting node of the main function, replaced by what `edit` makes of it (its results stay the same values)."""
    nodes = list(main_function(module).nodes)
    number = choose.choice([n for n, node in enumerate(nodes) if fits(node)])
    nodes[number] = edit(nodes[number])
    return changed(module, nodes=tuple(nodes))


def _reads_value(node: Node) -> bool:
    return any(isinstance(i, Value) for i in node.inputs)


def _always(node: Node) -> bool:
    return True


def _swap_operand(node: Node, new: Any, kind: type) -> Node:
    """The node with its first operand of a kind replaced."""
    number = next(n for n, i in enumerate(node.inputs) if isinstance(i, kind))
    return replace(node, inputs=(*node.inputs[:number], new, *node.inputs[number + 1 :]))


def _reads_param(node: Node) -> bool:
    return any(isinstance(i, ParamRef) for i in node.inputs)


def _before_definition(module: Module, choose: Chooser) -> Module:
    """The first node reads the result of the last one."""
    function = main_function(module)
    last = function.nodes[-1].outputs[0]
    first = Node(aten("neg.default", Slot(0)), (last,), (Value(last.type),))
    return changed(module, nodes=(first, *function.nodes))


def _foreign(module: Module, choose: Chooser) -> Module:
    other = main_function(module).nodes[0].outputs[0]
    node = Node(aten("neg.default", Slot(0)), (other,), (result := Value(other.type),))
    return module.with_function(Function("thief", (), (node,), (result,), ("y",)))


def _stray(module: Module, choose: Chooser) -> Module:
    return edit_node(module, choose, lambda n: _swap_operand(n, Value(SCALAR, "stray"), Value), _reads_value)


def _twice(module: Module, choose: Chooser) -> Module:
    return with_node(module, choose.choice(list(main_function(module).nodes)))


def _missing_param(module: Module, choose: Chooser) -> Module:
    return edit_node(module, choose, lambda n: _swap_operand(n, ParamRef("gone", SCALAR), ParamRef), _reads_param)


def _retyped_param(module: Module, choose: Chooser) -> Module:
    name = choose.choice([i.name for n in main_function(module).nodes for i in n.inputs if isinstance(i, ParamRef)])
    param = module.params[name]
    return module.with_params([replace(param, type=param.type.with_shape((*param.type.shape, 1)))])


def _missing_state(module: Module, choose: Chooser) -> Module:
    node = Node(aten("neg.default", Slot(0)), (StateRef("gone", SCALAR),), (Value(SCALAR),))
    return with_node(module, node)


def _declared_type(module: Module, choose: Chooser) -> Module:
    def edit(node: Node) -> Node:
        first, *rest = node.outputs
        wrong = choose.choice([first.type.with_shape((*first.type.shape, 1)), first.type.with_dtype(torch.int16)])
        return replace(node, outputs=(Value(wrong, first.name), *rest))

    return edit_node(module, choose, edit, _always)


def _more_results(module: Module, choose: Chooser) -> Module:
    return edit_node(module, choose, lambda n: replace(n, outputs=(*n.outputs, Value(SCALAR))), _always)


def _more_operands(module: Module, choose: Chooser) -> Module:
    return edit_node(module, choose, lambda n: replace(n, inputs=(*n.inputs, None)), lambda n: n.op.name == "embedding")


def _absent_operand(module: Module, choose: Chooser) -> Module:
    def edit(node: Node) -> Node:
        return replace(node, inputs=(None, *node.inputs[1:]))

    return edit_node(module, choose, edit, lambda n: n.op.name == "embedding")


def _unfit_operand(module: Module, choose: Chooser) -> Module:
    function = main_function(module)
    ids = function.inputs[0]
    return with_node(module, Node(RmsNorm(1e-5), (ids, None), (Value(ids.type),)))


def _attribute_type(module: Module, choose: Chooser) -> Module:
    x = main_function(module).nodes[0].outputs[0]
    eps: Any = choose.choice([1, True, "1"])
    return with_node(module, Node(RmsNorm(eps), (x, None), (Value(x.type),)))


def _no_attribute(module: Module, choose: Chooser) -> Module:
    x = main_function(module).nodes[0].outputs[0]
    eps: Any = [1e-5]
    return with_node(module, Node(RmsNorm(eps), (x, None), (Value(x.type),)))


def _unbound_symbol(module: Module, choose: Chooser) -> Module:
    z = symbol("Z")
    return with_node(module, Node(Positions(z, 3), (None, None), (Value(TensorType(torch.int64, (z, 3))),)))


def _foreign_symbol(module: Module, choose: Chooser) -> Module:
    stray = TensorType(torch.float32, (sympy.Symbol("B", integer=True),))
    return changed(module, inputs=(*main_function(module).inputs, Value(stray, "odd")))


def _twice_an_input(module: Module, choose: Chooser) -> Module:
    inputs = main_function(module).inputs
    return changed(module, inputs=(*inputs, inputs[0]))


def _same_input_name(module: Module, choose: Chooser) -> Module:
    inputs = main_function(module).inputs
    return changed(module, inputs=(*inputs, Value(SCALAR, inputs[0].name)))


def _same_output_name(module: Module, choose: Chooser) -> Module:
    function = main_function(module)
    outputs, names = (*function.outputs, function.outputs[0]), (*function.output_names, function.output_names[0])
    return changed(module, outputs=outputs, output_names=names)


def _nameless(module: Module, choose: Chooser) -> Module:
    return changed(module, inputs=(*main_function(module).inputs, Value(SCALAR)))


def _undefined_output(module: Module, choose: Chooser) -> Module:
    return changed(module, outputs=(Value(SCALAR, "nowhere"),), output_names=("y",))


def _unknown_update(module: Module, choose: Chooser) -> Module:
    return changed(module, updates={"gone": main_function(module).nodes[0].outputs[0]})


def _ill_typed_update(module: Module, choose: Chooser) -> Module:
    state = State("fixed", SCALAR)
    held = replace(module, states={**module.states, "fixed": state})
    return changed(held, updates={"fixed": main_function(module).nodes[0].outputs[0]})


def _misnamed(kind: str) -> Corruption:
    def corrupt(module: Module, choose: Chooser) -> Module:
        if kind == "states":
            return replace(module, states={**module.states, "key": State("name", SCALAR)})
        held = dict(getattr(module, kind))
        return replace(module, **{kind: {**held, "key": next(iter(held.values()))}})

    return corrupt


def _metadata(value: Any) -> Corruption:
    return lambda module, choose: replace(module, metadata={"odd": value})


def _symbolic_param(module: Module, choose: Chooser) -> Module:
    first = next(iter(module.params.values()))
    return module.with_params([replace(first, type=first.type.with_shape((symbol("B"), 4)))])


def _unholdable(module: Module, choose: Chooser) -> Module:
    storage = InMemory({"values": torch.zeros(1)})
    return module.with_params([Param("odd", TensorType(torch.float32, (5,)), GroupedInt(4, 2), storage)])


# A pattern of the sentence that names the fault, and how to plant it.
CORRUPTIONS: dict[str, tuple[str, Corruption]] = {
    "use before definition": (r"is used before it is defined", _before_definition),
    "value of another function": (r"belongs to function 'forward'", _foreign),
    "value from nowhere": (r"%stray is defined by no input and no node", _stray),
    "definition twice": (r"is defined twice", _twice),
    "missing parameter": (r"the module has no parameter 'gone'", _missing_param),
    "parameter of another type": (r"the parameter '.*' is .*, but its use here says", _retyped_param),
    "missing state": (r"the module has no state 'gone'", _missing_state),
    "declared type": (r"gives .*, but .* is declared", _declared_type),
    "number of results": (r"has \d results, but \d are declared", _more_results),
    "number of operands": (r"embedding takes 2 operands \(ids, table\), got 3", _more_operands),
    "absent operand": (r"embedding needs its operand 'ids'", _absent_operand),
    "type rule": (r"rms_norm: the input must be a float tensor", _unfit_operand),
    "attribute of another type": (r"attribute 'eps' must be float, got", _attribute_type),
    "no attribute": (r"cannot be an attribute of an operation", _no_attribute),
    "unbound symbol": (r"has the symbol Z in its shape", _unbound_symbol),
    "symbol from elsewhere": (r"its symbol B was not made by planish.ir.symbol", _foreign_symbol),
    "input twice": (r"stands twice in the list of inputs", _twice_an_input),
    "input name twice": (r"2 inputs are called 'input_ids'", _same_input_name),
    "output name twice": (r"2 outputs are called 'out0'", _same_output_name),
    "input without a name": (r"an input has no name", _nameless),
    "output from nowhere": (r"output 'y': %nowhere is defined by no", _undefined_output),
    "update of no state": (r"the update of 'gone' names no state", _unknown_update),
    "update of another type": (r"the update of state 'fixed': it is declared as f32\[\], but gets", _ill_typed_update),
    "function under another name": (r"functions\['key'\] is called", _misnamed("functions")),
    "parameter under another name": (r"params\['key'\] is called", _misnamed("params")),
    "state under another name": (r"states\['key'\] is called 'name'", _misnamed("states")),
    "metadata that is no attribute": (r"metadata 'odd' cannot be held: \[1\]", _metadata([1])),
    "metadata with a record": (r"metadata 'odd' cannot be held: it holds a dataclass", _metadata((Slot(1),))),
    "parameter of symbolic shape": (r"a parameter has a fixed shape", _symbolic_param),
    "encoding that cannot hold": (r"its encoding int4g2sf16 cannot hold f32\[5\]", _unholdable),
}

__all__ = ["CORRUPTIONS", "Corruption", "main_function"]
