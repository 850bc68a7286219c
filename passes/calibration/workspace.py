"""Finished weights of a long run, kept as they come so that a run which was killed can go on.

A workspace holds `run.json`, the fingerprints of what the run is made of, and one safetensors file for each finished
parameter. A file appears whole or not at all. A run made of something else is refused.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file

from planish.ir.errors import InputError
from planish.ir.params import InFile, Param, Storage

FORMAT = "1"
RUN = "run.json"


class Workspace:
    """The folder of one run.

    Args:
        folder: made if it is not there.
        made_of: what the run depends on, as fingerprints by the words in which a mismatch is reported.

    Raises:
        InputError: when the folder holds a run made of something else, or cannot be used.
    """

    def __init__(self, folder: Path, made_of: Mapping[str, str]) -> None:
        self.folder = folder
        wanted = {"format": FORMAT, **made_of}
        path = folder / RUN
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if path.exists():
                found = json.loads(path.read_text(encoding="utf-8"))
                other = [key for key in wanted if not isinstance(found, dict) or found.get(key) != wanted[key]]
                if other:
                    raise InputError(
                        f"the workspace {folder} belongs to a run with another {' and another '.join(other)}; "
                        f"choose another folder, or remove it to start again"
                    )
            else:
                _write(path, json.dumps(wanted, indent=1).encode())
        except (OSError, ValueError) as error:
            raise InputError(f"the workspace {folder} cannot be used: {error}") from error

    def load(self, param: Param) -> tuple[Param, float] | None:
        """`param` (its encoding is that of the result) with its finished storage, and its loss; None if it is not there."""
        path = self._path(param.name)
        if not path.exists():
            return None
        finished = Param(param.name, param.type, param.encoding, self._source(param))
        finished.storage()
        with safe_open(path, framework="pt") as file:
            return finished, float(file.metadata()["loss"])

    def save(self, param: Param, storage: Storage, loss: float) -> Param:
        """Keep a finished parameter; returns it with its storage in the file."""
        path = self._path(param.name)
        fresh = path.with_suffix(".part")
        save_file({field: tensor.contiguous() for field, tensor in storage.items()}, fresh, {"loss": repr(loss)})
        _flush(fresh)
        os.replace(fresh, path)
        return Param(param.name, param.type, param.encoding, self._source(param))

    def _source(self, param: Param) -> InFile:
        return InFile(self._path(param.name), {field: field for field in param.encoding.layout(param.type)})

    def _path(self, name: str) -> Path:
        # Names may hold what file names must not.
        return self.folder / f"{hashlib.sha256(name.encode()).hexdigest()[:24]}.safetensors"


def _write(path: Path, content: bytes) -> None:
    fresh = path.with_suffix(".part")
    fresh.write_bytes(content)
    _flush(fresh)
    os.replace(fresh, path)


def _flush(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
