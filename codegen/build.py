"""Building: a module and a target in, an artifact out."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from planish.codegen.artifact import TOKENIZER_FILES, Artifact, Writer
from planish.codegen.decompositions import DECOMPOSITIONS
from planish.codegen.family import Kernel, Packed, Site
from planish.codegen.legalise import Served, legalise
from planish.codegen.lower import Lowered, lower
from planish.codegen.pipeline import compile_module
from planish.codegen.registry import select
from planish.codegen.report import build_report
from planish.codegen.runtime.manifest import KERNELS, MODULE, WEIGHTS, identity
from planish.codegen.states import choose_layouts, layouts_of
from planish.codegen.target import Target
from planish.codegen.weights_file import write_weights
from planish.ir import Function, InputError, Module, Node, Param, TensorType
from planish.ir.text import print_module
from planish.ir.types import dtype_name


def build(
    module: Module,
    target: Target,
    *,
    recipe: Any = None,
    tokenizer: str | Path | None = None,
    progress: Callable[[float, str], None] = lambda fraction, phrase: None,
) -> Artifact:
    """Compile a module for a target.

    Args:
        module: any module; what no pass has raised is compiled operation by operation.
        target: the machine.
        recipe: what the artifact should record of how the module was made (JSON values).
        tokenizer: a folder whose tokenizer files go into the artifact.
        progress: called with a fraction between 0 and 1 and a phrase.

    Raises:
        UnsupportedError: listing every operation of a function that the target does not compile.
    """
    progress(0.0, "preparing")
    legal = prepare(module, target)
    progress(0.1, "lowering")
    lowered = lower(legal, target, select)
    progress(0.3, "compiling")
    library = compile_module(lowered.tvm_module, target)
    progress(0.9, "reporting")
    manifest = {
        **identity(),
        "target": {"name": target.name, "device": target.device, "features": sorted(target.features())},
        "weights": {key: _stored_type(p) for key, p in _packed(lowered).items()},
        "functions": {name: _signature(lowered, name) for name in lowered.functions},
        "states": {name: _state(lowered, legal, name) for name in legal.states},
        "metadata": {name: as_json(value) for name, value in module.metadata.items()},
        "recipe": recipe,
        "report": build_report(lowered, target),
    }
    packed = _packed(lowered)
    writers: dict[str, Writer] = {
        KERNELS: lambda path: library.export_library(str(path), fcompile=target.linker()),
        WEIGHTS: lambda path: _write_weights(path, packed),
        MODULE: lambda path: _write_text(path, print_module(module)),
        **_tokenizer_writers(tokenizer),
    }
    progress(1.0, "compiled")
    return Artifact(manifest, writers)


def prepare(module: Module, target: Target) -> Module:
    """The module in the form that lowering takes: IR to IR, with the same meaning."""

    def served(module: Module, function: Function) -> Served:
        layouts = layouts_of(function, choose_layouts(module, target))

        def asked(node: Node, added: Mapping[str, Param]) -> bool:
            site = Site(module.with_params(added.values()) if added else module, target, layouts)
            return isinstance(select(node, site), Kernel)

        return asked

    return legalise(module, DECOMPOSITIONS, served)


def _stored_type(packed: Packed) -> str:
    """A stored tensor's type; whole numbers of 16 bits are the bits of bfloat16."""
    dtype = torch.bfloat16 if packed.dtype == torch.uint16 else packed.dtype
    return str(TensorType(dtype, packed.shape))


def _packed(lowered: Lowered) -> dict[str, Packed]:
    """Every stored tensor, once."""
    return {p.key: p for function in lowered.functions.values() for p in function.weights}


def _write_weights(path: Path, packed: Mapping[str, Packed]) -> None:
    write_weights(path, list(packed.values()))


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def _tokenizer_writers(folder: str | Path | None) -> dict[str, Writer]:
    if folder is None:
        return {}
    found = [Path(folder) / name for name in TOKENIZER_FILES if (Path(folder) / name).is_file()]
    if not found:
        raise InputError(f"{folder} holds no tokenizer files")

    def copy(source: Path) -> Writer:
        return lambda path: _copy(source, path)

    return {source.name: copy(source) for source in found}


def _copy(source: Path, path: Path) -> None:
    shutil.copyfile(source, path)


def _signature(lowered: Lowered, name: str) -> dict[str, Any]:
    """How one function is called: its tensors in order, then its states, then its weights."""
    made = lowered.functions[name]
    function = made.plan.function
    return {
        "inputs": [{"name": v.name, "type": str(v.type)} for v in function.inputs],
        "outputs": [{"name": n, "type": str(o.type)} for n, o in zip(function.output_names, function.outputs)],
        "states": list(made.states),
        "updates": sorted(function.updates),
        "weights": [p.key for p in made.weights],
    }


def _state(lowered: Lowered, module: Module, name: str) -> dict[str, Any]:
    """A state's logical type, how it is held, and its type in memory."""
    state, layout = module.states[name], lowered.layouts[name]
    memory = TensorType(layout.dtype(state.type), layout.physical(state.type))
    held = dtype_name(state.type.dtype) if state.encoding is None else str(state.encoding)
    return {"type": str(state.type), "encoding": held, "memory": str(memory)}


def as_json(value: Any) -> Any:
    """An attribute as JSON holds it: tuples become lists, dtypes and dimensions their names."""
    if isinstance(value, (tuple, list)):
        return [as_json(v) for v in value]
    if isinstance(value, Mapping):
        return {str(k): as_json(v) for k, v in value.items()}
    if isinstance(value, torch.dtype):
        return dtype_name(value)
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)
