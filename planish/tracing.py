"""From PyTorch to a model of model operations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from planish.ir import InputError, Module
from planish.model import Model
from planish.passes.pass_base import Context
from planish.standard import GENERATES, narrowing, raising

MASK = "attention_mask"


def trace(
    source: str | Path | torch.nn.Module | torch.export.ExportedProgram,
    example_inputs: Sequence[Any] | None = None,
    *,
    dynamic_shapes: Any = None,
    dtype: torch.dtype = torch.float32,
    check: bool = True,
    progress: Callable[[float, str], None] = lambda fraction, phrase: None,
) -> Model:
    """Import a program and raise it to model operations.

    Args:
        source: a transformers checkpoint folder, a `.pt2` file, an `nn.Module` (a `torch.fx.GraphModule` too) with
            example inputs, or an `ExportedProgram`.
        example_inputs: positional inputs of an `nn.Module`.
        dynamic_shapes: as `torch.export.export` takes them, for an `nn.Module`.
        dtype: the dtype in which a checkpoint computes; its weights keep their stored dtype.
        check: hold every raising pass to its contract.
        progress: called with a fraction between 0 and 1 and a phrase.

    Raises:
        InputError: for a source that is missing, damaged or of another kind.
        UnsupportedError: listing everything that cannot be represented, with source lines.
    """
    from planish.passes.manager import PassManager

    progress(0.0, "tracing")
    module, folder = _import(source, example_inputs, dynamic_shapes, dtype)
    masked = any(v.name == MASK and v.type.dtype == torch.bool for f in module.functions.values() for v in f.inputs)
    context = Context(progress=lambda fraction, phrase: progress(0.5 + fraction / 2, phrase))
    passes = [*raising(MASK if masked else None), *(narrowing() if module.metadata.get("kind") in GENERATES else [])]
    raised, report = PassManager(passes, check=check, context=context).run(module)
    return Model(module, folder).after(raised, report)


def _import(source: Any, example_inputs: Any, dynamic_shapes: Any, dtype: torch.dtype) -> tuple[Module, Path | None]:
    """The module, and the folder whose tokenizer belongs to it."""
    from planish import frontends

    if isinstance(source, torch.nn.Module):
        if example_inputs is None:
            raise InputError("tracing an nn.Module needs example inputs: trace(module, (tensor, ...))")
        return frontends.import_module(source, tuple(example_inputs), dynamic_shapes), None
    if isinstance(source, torch.export.ExportedProgram):
        return frontends.import_exported(source), None
    path = Path(source)
    if path.suffix == ".pt2":
        return frontends.import_pt2(path), None
    has_tokenizer = any((path / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json"))
    return frontends.import_checkpoint(path, dtype), path if has_tokenizer else None
