"""Parameters: a logical tensor, the encoding of its storage, and where its bytes live.

Nothing is read until `Param.storage` or `Param.value` is called, and nothing is kept afterwards: no step needs all the
weights in memory at once.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from safetensors import safe_open

from planish.ir.encodings import Dense, Encoding
from planish.ir.errors import InputError
from planish.ir.types import TensorType, dtype_name

Storage = Mapping[str, torch.Tensor]


class Source(Protocol):
    """Where the bytes of a parameter live."""

    def read(self) -> Storage:
        """The storage tensors by field name, as the parameter's encoding lays them out."""
        ...


@dataclass(frozen=True, eq=False)
class InMemory:
    """Storage that is already in memory."""

    tensors: Storage

    def read(self) -> Storage:
        return self.tensors


@dataclass(frozen=True, eq=False)
class InFile:
    """Storage in a safetensors file, memory-mapped and read on demand; `keys` maps each field to its tensor's name."""

    path: Path
    keys: Mapping[str, str]

    def read(self) -> Storage:
        try:
            with safe_open(self.path, framework="pt") as file:
                return {field: file.get_tensor(key) for field, key in self.keys.items()}
        except Exception as error:
            raise InputError(f"cannot read {', '.join(self.keys.values())} from {self.path}: {error}") from error


@dataclass(frozen=True, eq=False)
class Computed:
    """Storage computed from other parameters each time it is read; `compute` must be a pure function of its inputs.

    A computation that rounds also gives `wide`: its logical tensor with everything floating computed in float64.
    """

    compute: Callable[[], Storage]
    wide: Callable[[], torch.Tensor] | None = None

    def read(self) -> Storage:
        return self.compute()


@dataclass(frozen=True, eq=False)
class Missing:
    """No storage: the parameter was read from a text without its weights. Its digest is known if the text states it."""

    name: str
    sha256: str | None = None

    def read(self) -> Storage:
        raise InputError(
            f"parameter {self.name!r} has no data: the module was read from its text alone; "
            f"pass the weights to parse_module to compute with it"
        )


@dataclass(frozen=True, eq=False)
class Param:
    """A named constant tensor of the module.

    Attributes:
        name: unique in the module.
        type: dtype and fixed shape of the logical tensor, as operations see it.
        encoding: how its storage represents it; decoding the storage gives the logical tensor.
        source: where the storage is read from.
    """

    name: str
    type: TensorType
    encoding: Encoding
    source: Source

    @property
    def nbytes(self) -> int:
        """Exact bytes of the storage."""
        return self.encoding.nbytes(self.type)

    @property
    def elements(self) -> int:
        """Elements of the logical tensor."""
        return math.prod(self.type.concrete({}))

    def storage(self) -> Storage:
        """Read the storage tensors; raises InputError when they are not what the encoding prescribes."""
        storage = self.source.read()
        expected = self.encoding.layout(self.type)
        if storage.keys() != expected.keys():
            raise InputError(
                f"parameter {self.name!r} has storage fields {sorted(storage)}, but its encoding {self.encoding} "
                f"needs {sorted(expected)}"
            )
        for key, tensor in storage.items():
            want = expected[key]
            if tensor.dtype != want.dtype or tuple(tensor.shape) != want.shape:
                got = f"{dtype_name(tensor.dtype)}{list(tensor.shape)}"
                raise InputError(f"field {key!r} of parameter {self.name!r} is {got}, but {want} was expected")
        return storage

    def value(self) -> torch.Tensor:
        """The logical tensor, decoded."""
        return self.encoding.decode(self.storage(), self.type)

    def wide_value(self) -> torch.Tensor:
        """The logical tensor, float64 if it is floating: exactly what `value` holds, except that a parameter computed
        from others (see `Computed.wide`) is computed without the roundings in between."""
        if isinstance(self.source, Computed) and self.source.wide is not None:
            return self.source.wide()
        value = self.value()
        return value.to(torch.float64) if value.dtype.is_floating_point else value

    def digest(self) -> str:
        """SHA-256 over the storage's field names, dtypes, shapes and bytes."""
        if isinstance(self.source, Missing) and self.source.sha256 is not None:
            return self.source.sha256
        return storage_digest(self.storage())


def storage_digest(storage: Storage) -> str:
    """SHA-256 over the field names, dtypes, shapes and bytes of storage tensors."""
    digest = hashlib.sha256()
    for key, tensor in sorted(storage.items()):
        digest.update(f"{key}:{dtype_name(tensor.dtype)}{list(tensor.shape)};".encode())
        digest.update(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def dense_param(name: str, tensor: torch.Tensor) -> Param:
    """A parameter stored as it is, in memory."""
    tensor = tensor.detach().contiguous()
    kind = TensorType(tensor.dtype, tuple(tensor.shape))
    return Param(name, kind, Dense(tensor.dtype), InMemory({"values": tensor}))
