"""From a program that torch.export made to a module of the IR.

The program is made functional first; operators that say more than their decomposition (linear, layer_norm, softmax,
scaled_dot_product_attention, gelu...) stay whole. Only what the outputs depend on is imported, so that asserts, guards
and unused results vanish. Everything that cannot be imported is reported in one error.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import fx
from torch.export import ExportedProgram
from torch.export.graph_signature import ConstantArgument, InputKind, OutputKind
from torch.utils._pytree import keystr, tree_flatten_with_path, tree_unflatten

from planish.frontends.calls import CallTranslator, Result
from planish.frontends.functional import functional
from planish.frontends.sources import source_of
from planish.frontends.symbols import SymbolNames, dim_names, spec_leaves
from planish.ir import Builder, InputError, IRError, Module, Operand, Param, ParamRef, UnsupportedError, dense_param
from planish.ir.attributes import Attribute

_TENSOR_KINDS = (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR)


def import_exported(
    program: ExportedProgram,
    *,
    dynamic_shapes: Any = None,
    params: Mapping[str, Param] | None = None,
    output_names: Sequence[str] | None = None,
    root: str = "",
    metadata: Mapping[str, Attribute] | None = None,
) -> Module:
    """The module whose function "forward" is the exported program.

    Args:
        program: what torch.export.export or torch.export.load returned.
        dynamic_shapes: the specification the program was exported with; its Dims give the symbols their names.
            Without it a symbol is named after the first input and axis where it occurs ("x_0").
        params: parameters and buffers by name, where they are not the program's own tensors.
        output_names: names of the outputs; without it they follow from the structure the program returns.
        root: a prefix of module paths to leave out of parameter names and source locations.
        metadata: metadata of the module. "dim_ranges" is added to it: (symbol, lowest, highest or None) for each symbol
            whose values the trace took to be bounded; beyond these the program may be another one.

    Raises:
        UnsupportedError: with one line for each thing that cannot be imported, and its line in the source.
    """
    return _Import(functional(program), params, root).run(dynamic_shapes, output_names, metadata or {})


class _Import:
    """One import under way."""

    def __init__(self, program: ExportedProgram, params: Mapping[str, Param] | None, root: str) -> None:
        self.program = program
        self.given = params
        self.root = root
        self.builder = Builder("forward")
        self.names = SymbolNames()
        self.results: dict[fx.Node, Result] = {}
        self.params: dict[str, Param] = {}
        self.problems: dict[str, None] = {}
        self.specs = {spec.arg.name: spec for spec in program.graph_signature.input_specs}
        self.aliases = _aliases(program)

    def run(self, dynamic_shapes: Any, output_names: Sequence[str] | None, metadata: Mapping[str, Attribute]) -> Module:
        nodes = list(self.program.graph.nodes)
        outputs = self._outputs(nodes[-1])
        live = _reachable([node for node, _ in outputs])
        self._refuse_mutation(live)
        self._inputs([n for n in nodes if n.op == "placeholder"], dynamic_shapes)
        translator = CallTranslator(self.builder, self.names, self.results)
        for node in nodes:
            if node in live:
                self._node(node, translator)
        if self.problems:
            raise UnsupportedError("this program cannot be imported: " + "; ".join(self.problems))
        names = list(output_names or [name for _, name in outputs])
        if len(names) != len(outputs):
            count = f"{len(outputs)} output{'s' if len(outputs) != 1 else ''}"
            raise InputError(f"the program has {count}, but {len(names)} names were given")
        results = [self.results[node] for node, _ in outputs]
        function = self.builder.finish([_operand(r) for r in results], names)
        ranges = {"dim_ranges": self.names.ranges(self.program.range_constraints)}
        return Module({"forward": function}, self.params, {}, {**metadata, **ranges})

    def _node(self, node: fx.Node, translator: CallTranslator) -> None:
        try:
            if node.op == "placeholder":
                self._tensor_input(node)
            elif _is_number(node.meta.get("val")) or node.op == "get_attr":
                return
            elif all(n in self.results or _is_number(n.meta.get("val")) for n in node.all_input_nodes):
                self.results[node] = translator.translate(node, source_of(node, self.root))
            elif any(n.op == "get_attr" for n in node.all_input_nodes):
                raise UnsupportedError(f"{node.target} runs another program; control flow is not supported")
        except (UnsupportedError, IRError) as error:
            where = source_of(node, self.root)
            self.problems[f"{error} ({where})" if where else str(error)] = None

    def _inputs(self, placeholders: list[fx.Node], dynamic_shapes: Any) -> None:
        """Declare the user's tensors as inputs, and name the symbols in their sizes."""
        user = [n for n in placeholders if self.specs[n.name].kind == InputKind.USER_INPUT]
        specs: list[Any] = [None] * len(user)
        if dynamic_shapes is not None and self.program.example_inputs is not None:
            args, kwargs = self.program.example_inputs
            specs = [spec for _, spec in spec_leaves([*args, *kwargs.values()], dynamic_shapes)]
        tensors = [(n, s) for n, s in zip(user, specs) if isinstance(n.meta.get("val"), torch.Tensor)]
        for node, spec in tensors:
            self.names.add_input(node.name, node.meta["val"].shape, dim_names(spec))
        for node in user:
            traced = node.meta.get("val")
            if isinstance(traced, torch.Tensor):
                try:
                    self.results[node] = self.builder.input(node.name, self.names.type(traced))
                except (UnsupportedError, IRError) as error:
                    self.problems[f"input {node.name!r}: {error}"] = None
            elif isinstance(traced, (torch.SymInt, torch.SymFloat)):
                self.problems[f"input {node.name!r} is a symbolic number; pass it as a tensor"] = None
        self._refuse_unbound()

    def _refuse_unbound(self) -> None:
        """Every symbol must be the size of some axis by itself, or no call could give it a value."""
        shapes = [value.type.shape for value in self.builder.inputs]
        bound = {str(d) for shape in shapes for d in shape if not isinstance(d, int) and d.is_Symbol}
        for value in self.builder.inputs:
            for name in sorted(value.type.symbols - bound):
                self.problems[
                    f"input {value.name!r} is {value.type}, but no input has an axis of size {name}, so that {name} "
                    "has no value; let one axis have that size itself"
                ] = None

    def _tensor_input(self, node: fx.Node) -> None:
        """A parameter, buffer or constant that the program reads."""
        spec = self.specs[node.name]
        if spec.kind == InputKind.USER_INPUT:
            return
        if spec.kind not in _TENSOR_KINDS or spec.target is None:
            raise UnsupportedError(
                f"{node.name} is a {spec.kind.name.lower().replace('_', ' ')}, which is not supported"
            )
        name = self.aliases.get(spec.target, spec.target)
        param = self._param(name)
        if param.type != self.names.type(node.meta["val"]):
            raise UnsupportedError(
                f"parameter {param.name!r} is {param.type}, but {self.names.type(node.meta['val'])} was traced"
            )
        self.params[param.name] = param
        self.results[node] = ParamRef(param.name, param.type)

    def _param(self, target: str) -> Param:
        name = target.removeprefix(self.root)
        if name in self.params:
            return self.params[name]
        if self.given is not None and name in self.given:
            return self.given[name]
        tensor = self.program.state_dict.get(target, self.program.constants.get(target))
        if not isinstance(tensor, torch.Tensor) or tensor.is_meta or tensor.layout != torch.strided:
            raise UnsupportedError(f"{name!r} has no values; give the module with its weights loaded as plain tensors")
        return dense_param(name, tensor.cpu())

    def _outputs(self, output: fx.Node) -> list[tuple[fx.Node, str]]:
        """The nodes returned to the user and their names. A returned None is left out."""
        specs = self.program.graph_signature.output_specs
        nodes: Any = output.args[0]
        returned = [(n, spec) for n, spec in zip(nodes, specs) if spec.kind == OutputKind.USER_OUTPUT]
        names = _output_names(self.program, len(returned))
        kept = []
        for (node, spec), name in zip(returned, names):
            if isinstance(spec.arg, ConstantArgument) and spec.arg.value is None:
                continue
            if not isinstance(node, fx.Node) or not isinstance(node.meta.get("val"), torch.Tensor):
                self.problems[f"output {name!r} is not a tensor; return tensors only"] = None
            else:
                kept.append((node, name))
        return kept

    def _refuse_mutation(self, live: set[fx.Node]) -> None:
        """A buffer may change only if no output depends on it: a module's function has no memory between calls."""
        read = {self.specs[n.name].target for n in live if n.op == "placeholder"}
        for spec in self.program.graph_signature.output_specs:
            if spec.kind == OutputKind.BUFFER_MUTATION and spec.target in read:
                self.problems[
                    f"the program changes its buffer {str(spec.target).removeprefix(self.root)!r} and reads it; "
                    "pass that state in and return it instead"
                ] = None
            if spec.kind == OutputKind.USER_INPUT_MUTATION:
                self.problems[f"the program changes its input {spec.target!r} in place; return the result instead"] = (
                    None
                )


def _aliases(program: ExportedProgram) -> dict[str, str]:
    """For each parameter or buffer that shares all its memory with an earlier one, the name of that one."""
    first: dict[tuple[Any, ...], str] = {}
    aliases = {}
    for name, tensor in program.state_dict.items():
        key = (
            tensor.untyped_storage()._cdata, tensor.storage_offset(), tuple(tensor.shape), tensor.stride(), tensor.dtype,
        )  # fmt: skip
        aliases[name] = first.setdefault(key, name)
    return aliases


def _reachable(outputs: list[fx.Node]) -> set[fx.Node]:
    """Every node that the outputs depend on."""
    found: set[fx.Node] = set()
    waiting = list(outputs)
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            waiting.extend(node.all_input_nodes)
    return found


def _output_names(program: ExportedProgram, count: int) -> list[str]:
    """Names from the structure the program returns: "output", "output_0", "hidden_states_1"..."""
    structure = program.call_spec.out_spec
    if structure is None:
        return [f"output_{n}" for n in range(count)]
    paths = [path for path, _ in tree_flatten_with_path(tree_unflatten(list(range(count)), structure))[0]]
    words = ["".join(c if c.isalnum() else "_" for c in keystr(path)).strip("_") for path in paths]
    names = [w if w and not w[0].isdigit() else f"output_{w}".rstrip("_") for w in words]
    return [_single(name) for name in names]


def _single(name: str) -> str:
    while "__" in name:
        name = name.replace("__", "_")
    return name


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float, torch.SymInt, torch.SymFloat, torch.SymBool))


def _operand(result: Result) -> Operand:
    assert not isinstance(result, tuple)
    return result
