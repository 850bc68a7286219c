"""Functional programs: no operation changes a tensor that another one may look at.

torch's own pass makes any program functional by tracing it again, which takes longer than the first trace did. Most
programs are functional as they are exported, and are left alone.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import fx
from torch.export import ExportedProgram
from torch.export.graph_signature import OutputKind

from planish.frontends.normal_forms import NORMAL_FORMS, overload_name

_MUTATIONS = (OutputKind.BUFFER_MUTATION, OutputKind.USER_INPUT_MUTATION)


def functional(program: ExportedProgram) -> ExportedProgram:
    """The program without mutation and without the view operators that torch composes of others.

    Operators that say more than their decomposition (linear, layer_norm, softmax, scaled_dot_product_attention...) stay.
    """
    changes = any(spec.kind in _MUTATIONS for spec in program.graph_signature.output_specs)
    if not changes and all(_is_settled(node) for node in program.graph.nodes):
        return program
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        decomposed: ExportedProgram = program.run_decompositions({})
        return decomposed


def _is_settled(node: fx.Node) -> bool:
    """Whether the importer knows this node as it is."""
    target: Any = node.target
    if node.op != "call_function":
        return node.op != "get_attr"
    if not isinstance(target, torch._ops.OpOverload):
        # Arithmetic on sizes and picking of results; anything else is control flow.
        return not isinstance(target, torch._ops.OperatorBase)
    if target.namespace == "aten" and overload_name(target) in NORMAL_FORMS:
        return not _trains(node)
    if target._schema.is_mutable:
        return False
    composite = torch._C._dispatch_has_kernel_for_dispatch_key(target.name(), "CompositeImplicitAutograd")
    views = any(returned.alias_info is not None for returned in target._schema.returns)
    return not (composite and views) and not _trains(node)


def _trains(node: fx.Node) -> bool:
    """Whether a norm updates its running statistics, which its schema does not say."""
    names = [a.name for a in node.target._schema.arguments]  # type: ignore[union-attr]
    given = {**dict(zip(names, node.args)), **node.kwargs}
    return given.get("running_mean") is not None and bool(given.get("training") or given.get("use_input_stats"))
