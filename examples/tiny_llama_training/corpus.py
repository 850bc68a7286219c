"""Owns the text: which standard library files are read, and which of them the model never sees.

The standard library is on every machine that runs Python, so that the training needs no download. A file is held out
by the hash of its name alone: adding or removing another file, or another Python version, moves no file across.
"""

from __future__ import annotations

import hashlib
import sysconfig
import tokenize
from dataclasses import dataclass
from pathlib import Path

# Tests, tables and generated text teach little about the language, `idlelib` is an application, and the rest is not
# the library's own text.
EXCLUDED_FOLDERS = frozenset(
    {
        "__pycache__",
        "encodings",
        "ensurepip",
        "idle_test",
        "idlelib",
        "pydoc_data",
        "site-packages",
        "dist-packages",
        "test",
        "tests",
    }
)
HELDOUT_OF_256 = 6  # about one file in 43
HELDOUT_BYTES = 160_000  # the committed text stops before it would exceed this


@dataclass(frozen=True)
class SourceFile:
    """One file: its path below the library folder, with forward slashes, and its decoded text."""

    name: str
    text: str

    @property
    def held_out(self) -> bool:
        return hashlib.sha256(self.name.encode()).digest()[0] < HELDOUT_OF_256


@dataclass(frozen=True)
class Corpus:
    """`train` and `heldout` are disjoint and each in the order of names."""

    train: tuple[SourceFile, ...]
    heldout: tuple[SourceFile, ...]

    def digest(self) -> str:
        """Name the training text, so that a checkpoint is not continued on another one."""
        hasher = hashlib.sha256()
        for source in self.train:
            hasher.update(f"{source.name}\0{source.text}\0".encode())
        return hasher.hexdigest()


def _read(path: Path) -> str | None:
    """Return the text in the encoding the file declares, or None where it does not decode (test data does not)."""
    try:
        with tokenize.open(path) as handle:
            return handle.read()
    except (SyntaxError, UnicodeDecodeError):
        return None


def standard_library(folder: Path | None = None) -> Corpus:
    """Read the sources of the running Python's standard library, or of `folder`."""
    root = folder if folder is not None else Path(sysconfig.get_path("stdlib"))
    sources: list[SourceFile] = []
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root)
        generated = relative.name.startswith("_sysconfigdata")
        if generated or any(part in EXCLUDED_FOLDERS or part.startswith("config-") for part in relative.parts[:-1]):
            continue
        text = _read(path)
        if text:
            sources.append(SourceFile(relative.as_posix(), text))
    return Corpus(
        train=tuple(source for source in sources if not source.held_out),
        heldout=tuple(source for source in sources if source.held_out),
    )


def heldout_text(corpus: Corpus) -> tuple[str, list[str]]:
    """Join whole held-out files in the order of their names' hashes, and return the text and the names it took.

    The order of hashes mixes the packages; a file that would carry the text past `HELDOUT_BYTES` is left out.
    """
    taken: list[SourceFile] = []
    size = 0
    for source in sorted(corpus.heldout, key=lambda file: hashlib.sha256(file.name.encode()).digest()):
        length = len(source.text.encode())
        if size + length <= HELDOUT_BYTES:
            taken.append(source)
            size += length
    return "".join(source.text for source in taken), [source.name for source in taken]
