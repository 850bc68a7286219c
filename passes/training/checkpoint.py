"""The state of a training run in one file: tensors as safetensors, the rest as JSON in the file's header.

The file is written whole or not at all, and states what its run is made of, so that it cannot go on as another one.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from planish.ir.errors import InputError

FORMAT = "planish-training-1"


@dataclass(frozen=True)
class Saved:
    """A run after so many steps.

    Attributes:
        step: finished steps.
        seen: a digest of the batches that they were trained on.
        tensors: what else the run has, by name.
    """

    step: int
    seen: str
    tensors: Mapping[str, torch.Tensor]


def save_checkpoint(path: Path, saved: Saved, made_of: Mapping[str, str]) -> None:
    """Write a checkpoint in place of the one before; raises InputError when it cannot be written."""
    state = json.dumps({"step": saved.step, "seen": saved.seen, "made_of": dict(made_of)})
    tensors = {name: tensor.detach().contiguous() for name, tensor in saved.tensors.items()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        os.close(handle)
        fresh = Path(name)
        try:
            save_file(tensors, fresh, {"format": FORMAT, "state": state})
            with fresh.open("rb") as file:
                os.fsync(file.fileno())
            os.replace(fresh, path)
        finally:
            fresh.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"the checkpoint {path} cannot be written: {error}") from error


def load_checkpoint(path: Path, made_of: Mapping[str, str]) -> Saved:
    """Read a checkpoint; raises InputError when it cannot be read or belongs to a run made of something else."""
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            if header.get("format") != FORMAT:
                raise InputError(f"{path} is no checkpoint of a training run; choose another file")
            state = json.loads(header["state"])
            found, step, seen = dict(state["made_of"]), int(state["step"]), str(state["seen"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"the checkpoint {path} cannot be read: {error}; remove it to start again") from error
    other = [key for key in {**made_of, **found} if found.get(key) != made_of.get(key)]
    if other:
        raise InputError(
            f"the checkpoint {path} belongs to a run with {' and '.join(f'other {key}' for key in other)}; "
            f"choose another file, or remove it to start again"
        )
    return Saved(step, seen, tensors)
