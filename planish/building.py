"""From a model to an artifact, and from an artifact back to something that runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from planish.ir import Module
from planish.model import Model
from planish.passes.pass_base import Context
from planish.standard import GENERATES, generation, lowering

if TYPE_CHECKING:
    from planish.codegen.artifact import Artifact
    from planish.codegen.runtime.device import Device
    from planish.codegen.runtime.executable import Executable
    from planish.codegen.target import Target

Progress = Callable[[float, str], None]


def _quiet(fraction: float, phrase: str) -> None:
    """Progress that nobody watches."""


def prepare(model: Model | Module, target: str = "host", *, check: bool = True, progress: Progress = _quiet) -> Model:
    """The model as it will be compiled, with the report of the passes that made it so.

    Generation programs are derived when the model is a language model, with an encoder or without, and what pays off on
    every machine is done (linear maps of one input joined, batch norms folded, what nothing reads dropped). Preparing twice
    changes nothing. `build` does this by itself; see it for the arguments and errors.
    """
    from planish.targets import open_target

    return _prepared(model, open_target(target), check, progress)


def _prepared(model: Model | Module, machine: Target, check: bool, progress: Progress) -> Model:
    from planish.passes.manager import PassManager

    given = model if isinstance(model, Model) else Model(model)
    kind = given.module.metadata.get("kind")
    derives = kind in GENERATES and "decode" not in given.module.functions
    passes = [*(generation(str(kind)) if derives else []), *lowering()]
    context = Context(capabilities=machine.capabilities(), progress=progress)
    module, report = PassManager(passes, check=check, context=context).run(given.module)
    return given.after(module, report)


def build(model: Model | Module, target: str = "host", *, check: bool = True, progress: Progress = _quiet) -> Artifact:
    """Compile a model, prepared first (see `prepare`).

    Args:
        model: what `trace`, `compress` or `prepare` returned, or a module.
        target: "host", or another registered target's name.
        check: hold the preparing passes to their contracts, as `compress` does.
        progress: called with a fraction between 0 and 1 and a phrase.

    Raises:
        UnsupportedError: listing every operation that the target does not compile.
        InputError: for an unknown target, naming the nearest known one.
    """
    from planish.codegen.build import build as compile_module
    from planish.targets import open_target

    machine = open_target(target)
    ready = _prepared(model, machine, check, lambda f, phrase: progress(f * 0.3, phrase))
    return compile_module(
        ready.module,
        machine,
        recipe=list(ready.recipe),
        tokenizer=_tokenizer_folder(ready.folder),
        progress=lambda f, phrase: progress(0.3 + f * 0.7, phrase),
    )


def _tokenizer_folder(folder: Path | None) -> Path | None:
    """The folder if it holds a tokenizer; a model without one takes token ids."""
    from planish.codegen.artifact import TOKENIZER_FILES

    return folder if folder is not None and any((folder / name).is_file() for name in TOKENIZER_FILES) else None


def load(folder: str | Path, *, threads: int | None = None, device: str | Device | None = None) -> Executable:
    """Open an artifact: check its versions, hashes and machine, map its weights.

    Args:
        folder: the artifact.
        threads: how many threads compiled code uses at most; as many as there are cores when None. Fewer are used while
            other processes keep cores busy, which changes no bit of a result.
        device: where to run it: this process when None, "rpc:HOST:PORT" for a machine with TVM's RPC server, or an
            opened device.

    Raises:
        InputError: when it is no artifact, was changed, or was built for another version or machine; when the device
            does not answer.
    """
    from planish.codegen.runtime.executable import open_artifact

    if isinstance(device, str):
        from planish.codegen.remote import connect

        device = connect(device)
    return open_artifact(Path(folder), threads=threads, device=device)
