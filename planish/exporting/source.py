"""What an exporter starts from: the weights of a model under the names of the checkpoint that it was traced from."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from planish.exporting.same_program import meaning
from planish.frontends.checkpoint_config import read_config
from planish.frontends.quantized import Method, quantization
from planish.frontends.stored import some, stored_tensors
from planish.ir import Dense, InFile, InMemory, InputError, Module, Param, ParamRef
from planish.ir.ops import Embedding, Linear, QuantizedLinear
from planish.ir.params import storage_digest
from planish.model import Model


@dataclass(frozen=True)
class Source:
    """Attributes:
    folder: the checkpoint's.
    config: its config.json as it is.
    settings: the same with what transformers fills in.
    kind: of the model, as its metadata say.
    weights: by the names of the checkpoint's tensors, in the module's order.
    linear, tables: names of those that linear maps read, and embeddings.
    """

    folder: Path
    config: Mapping[str, Any]
    settings: Mapping[str, Any]
    kind: str
    weights: Mapping[str, Param]
    linear: frozenset[str]
    tables: frozenset[str]


def source_of(model: Model) -> Source:
    """The weights to export.

    The checkpoint is traced again, and the model must compute the same of parameters of the same names.

    Raises:
        InputError: for a model that is from elsewhere, was rewritten, or whose parameters have no tensors of their own.
    """
    from planish.tracing import trace

    if model.folder is None:
        raise InputError(
            "the model was not traced from a checkpoint folder with a tokenizer, so there is no config to export with it; "
            "trace such a folder"
        )
    ours = model.module.functions["forward"]
    dtype = next(o.type.dtype for o in ours.outputs if o.type.dtype.is_floating_point)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = trace(model.folder, dtype=dtype, check=False).module
    if meaning(traced.functions["forward"]) != meaning(ours):
        raise InputError(
            f"the program was rewritten into something that no weights of a {traced.metadata['architecture']} express "
            "(parameters were joined, split or added, or operations changed); export before such passes run"
        )
    names = _names(traced, model.module)
    settings = read_config(model.folder)
    filled = settings.to_dict()
    _check_complete(model.folder, quantization(model.folder, settings), set(names.values()))
    linear, tables = _read_by(model.module, names)
    weights = {key: model.module.params[name] for name, key in names.items()}
    config = json.loads((model.folder / "config.json").read_text(encoding="utf-8"))
    return Source(model.folder, config, filled, str(traced.metadata["kind"]), weights, linear, tables)


def _names(traced: Module, module: Module) -> dict[str, str]:
    """The checkpoint's tensor of every parameter that the program reads; what a model computes by itself has none."""
    read = {r.name for r in traced.functions["forward"].references() if isinstance(r, ParamRef)}
    names = {}
    for name, param in traced.params.items():
        if name not in read:
            continue
        if isinstance(param.source, InMemory):
            if storage_digest(param.source.read()) != module.params[name].digest():
                raise InputError(f"the constant {name!r} was changed, and the checkpoint has no tensor for it")
        elif isinstance(param.source, InFile):
            names[name] = param.source.keys["values"]
        elif isinstance(param.encoding, Dense):
            raise InputError(
                f"the parameter {name!r} is computed from tensors of the checkpoint and is none itself; models with such "
                "weights cannot be exported"
            )
        else:
            names[name] = name
    return names


def _check_complete(folder: Path, method: Method | None, exported: set[str]) -> None:
    """Every tensor of the checkpoint is one of the exported."""
    stored = set(stored_tensors(folder) if method is None else method.gather(stored_tensors(folder)))
    if stored != exported:
        absent = sorted(stored ^ exported)
        raise InputError(
            f"the checkpoint's tensors {some(absent)} are no parameters of the model, or not under these names; models with "
            "such weights cannot be exported"
        )


def _read_by(module: Module, names: Mapping[str, str]) -> tuple[frozenset[str], frozenset[str]]:
    """Checkpoint names of the weights of linear maps and of embeddings."""
    linear, tables = set(), set()
    for node in module.functions["forward"].nodes:
        for operand in node.inputs:
            if isinstance(operand, ParamRef) and operand.name in names and len(operand.type.shape) == 2:
                if isinstance(node.op, Linear | QuantizedLinear):
                    linear.add(names[operand.name])
                elif isinstance(node.op, Embedding):
                    tables.add(names[operand.name])
    return frozenset(linear), frozenset(tables)


def refused(key: str, param: Param, format: str, advice: str) -> InputError:
    """The refusal of a weight whose encoding a format cannot hold."""
    return InputError(f"{format} cannot hold {key!r} as {param.encoding}; {advice}")
