"""From a torch.fx graph to a module of the IR."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from planish.frontends.nn_module import import_module
from planish.ir import InputError, Module


def import_graph_module(
    graph_module: fx.GraphModule,
    example_inputs: torch.Tensor | Sequence[Any],
    dynamic_shapes: Any = None,
    *,
    output_names: Sequence[str] | None = None,
) -> Module:
    """The graph traced once more by torch.export, which gives it shapes, dtypes and one set of operators.

    Arguments are those of `import_module`; its Dims are given by the names of the graph's placeholders.

    Raises:
        InputError: when the graph is not well formed.
        UnsupportedError: when it cannot be traced or imported, listing what stands in the way.
    """
    if not isinstance(graph_module, fx.GraphModule):
        raise InputError(f"a torch.fx.GraphModule is needed, got {type(graph_module).__name__}")
    try:
        graph_module.graph.lint()
    except RuntimeError as error:
        raise InputError(f"the graph is not well formed: {error}") from error
    return import_module(graph_module, example_inputs, dynamic_shapes, output_names=output_names)
