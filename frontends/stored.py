"""The tensors of a checkpoint folder, known by the headers of its safetensors files."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open

from planish.ir import InFile, InputError

_STORED_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
    # Only inside quantised weights: no parameter is dense in it.
    "F8_E4M3": torch.float8_e4m3fn,
}  # fmt: skip
_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a safetensors file, known by its header."""

    path: Path
    key: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{str(self.dtype).removeprefix('torch.')}{list(self.shape)}"

    def read(self) -> torch.Tensor:
        return InFile(self.path, {"values": self.key}).read()["values"]


def stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Every tensor stored in the folder, by name. Raises InputError for a missing, truncated or unreadable file."""
    tensors: dict[str, StoredTensor] = {}
    for path, listed in _shards(folder).items():
        found = _read_header(path)
        missing = sorted(set(listed) - found.keys())
        if missing:
            raise InputError(f"{path} does not hold {some(missing)}, which {_INDEX} says it does; download it again")
        tensors.update(found)
    return tensors


def _shards(folder: Path) -> dict[Path, list[str]]:
    """The files that hold the weights, each with the names that the index expects in it."""
    if (folder / _INDEX).is_file():
        try:
            where = json.loads((folder / _INDEX).read_text(encoding="utf-8"))["weight_map"]
            shards: dict[Path, list[str]] = {}
            for key, name in where.items():
                shards.setdefault(folder / Path(name).name, []).append(key)
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise InputError(f"{folder / _INDEX} is not a valid index of shards: {error}") from error
        absent = sorted(p.name for p in shards if not p.is_file())
        if absent:
            raise InputError(f"{folder} lacks {some(absent)}, which {_INDEX} lists; download the missing shards")
        return shards
    if (folder / _SINGLE).is_file():
        return {folder / _SINGLE: []}
    pickled = sorted(p.name for p in folder.iterdir() if p.suffix in (".bin", ".pt", ".pth", ".ckpt"))
    if pickled:
        raise InputError(
            f"{folder} holds its weights as {some(pickled)}, which could run code when loaded; "
            "convert them to safetensors first"
        )
    raise InputError(f"{folder} holds no weights: neither {_SINGLE} nor {_INDEX} is there")


def _read_header(path: Path) -> dict[str, StoredTensor]:
    try:
        with safe_open(path, framework="pt") as file:
            parts = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118
            headers = {key: (part.get_dtype(), tuple(part.get_shape())) for key, part in parts.items()}
    except Exception as error:
        raise InputError(f"{path} is truncated or not a safetensors file ({error}); download it again") from error
    for key, (stored, _) in headers.items():
        if stored not in _STORED_DTYPES:
            raise InputError(f"tensor {key!r} in {path} has dtype {stored}, which is not supported; convert it to BF16")
    return {k: StoredTensor(path, k, _STORED_DTYPES[dtype], shape) for k, (dtype, shape) in headers.items()}


def some(names: list[str]) -> str:
    """The first few of many names."""
    shown = ", ".join(names[:5])
    return f"{shown} and {len(names) - 5} more" if len(names) > 5 else shown
