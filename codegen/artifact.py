"""The artifact: a folder with everything that a run needs, written whole or not at all, checked when it is opened.

manifest.json         versions, SHA-256 and size of every file, target, signatures, states, metadata, recipe, report
kernels.so            compiled code
weights.safetensors   packed weights, aligned for mapping
module.ir             the compiled module's text form
tokenizer files       as the checkpoint has them, when it has any
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from planish.codegen.runtime.manifest import MANIFEST, reason, sha256
from planish.ir import InputError

if TYPE_CHECKING:
    from planish.codegen.runtime.executable import Executable

TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja", "vocab.json", "merges.txt",
    "added_tokens.json", "tokenizer.model", "vocab.txt", "generation_config.json",
)  # fmt: skip

Writer = Callable[[Path], None]


@dataclass(frozen=True, eq=False)
class Artifact:
    """A compiled module that may not be on disk yet.

    Attributes:
        manifest: its content but for the files, which are known once written.
        writers: by file name, what writes the file.
    """

    manifest: Mapping[str, Any]
    writers: Mapping[str, Writer] = field(repr=False)

    @property
    def report(self) -> Mapping[str, Any]:
        """What every operation became, and what it should cost."""
        report: Mapping[str, Any] = self.manifest["report"]
        return report

    def save(self, folder: str | Path) -> Path:
        """Write the artifact to a folder; an artifact that is there is replaced, any other folder must be empty.

        Raises:
            InputError: when the folder holds something else or cannot be written. Nothing is left half-written.
        """
        target = Path(folder)
        _check_replaceable(target)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            fresh = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
        except OSError as error:
            raise InputError(f"cannot save the artifact to {target}: {reason(error)}") from error
        try:
            self._write(fresh)
            _swap(fresh, target)
        except OSError as error:
            raise InputError(f"cannot save the artifact to {target}: {reason(error)}; nothing was written") from error
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
        return target

    def load(self) -> Executable:
        """Run it from a temporary folder, which is deleted when the executable is no longer used."""
        from planish.codegen.runtime.executable import open_artifact

        holder = tempfile.TemporaryDirectory(prefix="planish-")
        return open_artifact(self.save(Path(holder.name) / "artifact"), keep=holder, check=False)

    def _write(self, folder: Path) -> None:
        files = {}
        for name, write in self.writers.items():
            write(folder / name)
            files[name] = {"sha256": sha256(folder / name), "bytes": (folder / name).stat().st_size}
        text = json.dumps({**self.manifest, "files": files}, indent=1, ensure_ascii=False, allow_nan=False)
        (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")
        folder.chmod(0o755)


def _check_replaceable(target: Path) -> None:
    if target.is_dir():
        if any(target.iterdir()) and not (target / MANIFEST).is_file():
            raise InputError(f"{target} is not empty and holds no artifact; choose another folder")
    elif target.exists():
        raise InputError(f"{target} exists and is no folder; choose another name")


def _swap(fresh: Path, target: Path) -> None:
    """Put the finished folder in place; an old artifact goes only once the new one stands."""
    if not target.exists():
        fresh.rename(target)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{target.name}.old.", dir=target.parent))
    os.replace(target, old)
    try:
        fresh.rename(target)
    except OSError:
        os.replace(old, target)
        raise
    with suppress(OSError):
        shutil.rmtree(old)
