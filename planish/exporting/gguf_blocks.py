"""Weights as the blocks of ggml: a scale and the codes of 32, 64 or 256 consecutive elements of a row, byte by byte.

Codes and scales are moved, never rounded. A group of several blocks repeats its scale in each. Source: ggml-quants of
llama.cpp, by its Python package gguf 0.19 (`gguf.quants`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from planish.exporting.source import refused
from planish.ir import Dense, GroupedInt, InputError, Levels, MxFp4, NvFp4, Param
from planish.ir.encodings import Grouped
from planish.ir.encodings.float_blocks import FOURS
from planish.ir.params import Storage

_ADVICE = (
    "quantise it to integers of 4, 5 or 8 bits around zero in groups of a multiple of 32, to ternary levels in groups of a "
    "multiple of 256, or to MXFP4 or NVFP4"
)
Pack = Callable[[Storage, Param], torch.Tensor]


@dataclass(frozen=True)
class Blocks:
    """A type of ggml, by its name there, and what makes its bytes, uint8 [rows, bytes].

    `size` elements make a block of `bytes` bytes. `whole` reads a scale over all of the tensor, where the type has none.
    """

    name: str
    size: int
    bytes: int
    make: Callable[[], torch.Tensor]
    whole: Callable[[], torch.Tensor] | None = None


def blocks(key: str, param: Param, rows: torch.Tensor | None) -> Blocks:
    """The weight `key` as ggml holds it; `rows`, if given, are the rows to write, in order.

    Raises:
        InputError: for an encoding that no type holds exactly.
    """
    found = _find(param)
    if found is None or (isinstance(param.encoding, Grouped) and param.encoding.scale_dtype == torch.int8):
        raise refused(key, param, "GGUF", _ADVICE)
    name, size, width, pack = found

    def make() -> torch.Tensor:
        storage = _chosen(param, rows)
        if isinstance(param.encoding, Grouped):
            storage = {**storage, "scales": _half(key, param, storage["scales"])}
        return pack(storage, param)

    last = int(param.type.shape[-1])
    if last % size:
        raise InputError(f"GGUF holds {name} in blocks of {size}, which do not divide the {last} inputs of {key!r}")
    whole = (lambda: param.storage()["tensor_scale"].reshape(1)) if isinstance(param.encoding, NvFp4) else None
    return Blocks(name, size, width, make, whole)


def _find(param: Param) -> tuple[str, int, int, Pack] | None:
    """Name, elements and bytes of a block, and the packer of the type that holds an encoding."""
    encoding = param.encoding
    if isinstance(encoding, Dense) and encoding.dtype in _FLOATS:
        # Vectors are float32 in every file: llama.cpp adds and multiplies by them as such.
        dtype = torch.float32 if param.type.rank == 1 else encoding.dtype
        name = _FLOATS[dtype]
        return name, 1, dtype.itemsize, lambda storage, _: _bytes(storage["values"].to(dtype))
    if isinstance(encoding, GroupedInt) and not encoding.zero_points and encoding.group % 32 == 0:
        return _INTEGERS.get(encoding.bits)
    if isinstance(encoding, Levels) and encoding.group % 256 == 0:
        return _TERNARY.get(encoding.kind)
    return _FOUR_BIT_FLOATS.get(type(encoding))


def _chosen(param: Param, rows: torch.Tensor | None) -> Storage:
    """The storage of chosen rows; a scale of the whole tensor has none."""
    storage = param.storage()
    if rows is None:
        return storage
    return {field: tensor[rows] if tensor.dim() else tensor for field, tensor in storage.items()}


def _half(key: str, param: Param, scales: torch.Tensor) -> torch.Tensor:
    """Scales as float16, which is what blocks hold; raises InputError where that would round."""
    halves = scales.to(torch.float16)
    if not torch.equal(halves.to(torch.float32), scales.to(torch.float32)):
        raise InputError(
            f"GGUF holds scales as float16, which cannot hold those of {key!r} ({param.encoding}); quantise it with "
            "scales of float16"
        )
    return halves


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    """The bytes of the last axis."""
    return tensor.contiguous().view(torch.uint8)


def _in_blocks(storage: Storage, param: Param, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes uint8 [rows, blocks, size] and the bytes of their float16 scales [rows, blocks, 2]."""
    encoding, last = param.encoding, int(param.type.shape[-1])
    assert isinstance(encoding, Grouped)
    codes = encoding.packing.unpack(storage["values"], last).unflatten(-1, (-1, size))
    scales = storage["scales"].repeat_interleave(encoding.group // size, -1)
    return codes, _bytes(scales.unsqueeze(-1))


def _nibbles(codes: torch.Tensor) -> torch.Tensor:
    """Codes [..., size] in the halves of bytes: the first half of a block in the lower ones, the second in the upper."""
    low, high = codes.chunk(2, -1)
    return (low & 15) | (high << 4)


def _q4_0(storage: Storage, param: Param) -> torch.Tensor:
    codes, scales = _in_blocks(storage, param, 32)
    return torch.cat([scales, _nibbles(codes)], -1).flatten(-2)


def _q5_0(storage: Storage, param: Param) -> torch.Tensor:
    codes, scales = _in_blocks(storage, param, 32)
    places = torch.arange(8, dtype=torch.uint8)
    fifth = ((codes >> 4).unflatten(-1, (4, 8)) << places).sum(-1, dtype=torch.uint8)
    return torch.cat([scales, fifth, _nibbles(codes & 15)], -1).flatten(-2)


def _q8_0(storage: Storage, param: Param) -> torch.Tensor:
    codes, scales = _in_blocks(storage, param, 32)
    # 128 less, in two's complement.
    return torch.cat([scales, codes ^ 128], -1).flatten(-2)


def _tq1_0(storage: Storage, param: Param) -> torch.Tensor:
    """Five trits to a byte as a fraction of 243 in 256 parts, rounded up: the first is what overflows when it is tripled."""
    codes, scales = _in_blocks(storage, param, 256)
    parts = [
        codes[..., :160].unflatten(-1, (1, 5, 32)),
        codes[..., 160:240].unflatten(-1, (1, 5, 16)),
        codes[..., 240:].unflatten(-1, (1, 4, 4)),
    ]
    digits = torch.tensor([81, 27, 9, 3, 1], dtype=torch.int32)
    packed = [
        (p.int() * digits[: p.shape[-2]].unsqueeze(-1)).sum(-2, dtype=torch.int32).flatten(-2).mul(256).add(242) // 243
        for p in parts
    ]
    return torch.cat([*(p.to(torch.uint8) for p in packed), scales], -1).flatten(-2)


def _tq2_0(storage: Storage, param: Param) -> torch.Tensor:
    codes, scales = _in_blocks(storage, param, 256)
    places = torch.tensor([0, 2, 4, 6], dtype=torch.uint8).unsqueeze(-1)
    packed = (codes.unflatten(-1, (2, 4, 32)) << places).sum(-2, dtype=torch.uint8)
    return torch.cat([packed.flatten(-2), scales], -1).flatten(-2)


def _mxfp4(storage: Storage, param: Param) -> torch.Tensor:
    codes = FOURS.unpack(storage["values"], int(param.type.shape[-1])).unflatten(-1, (-1, 32))
    return torch.cat([storage["scales"].unsqueeze(-1), _nibbles(codes)], -1).flatten(-2)


def _nvfp4(storage: Storage, param: Param) -> torch.Tensor:
    if bool((storage["scales"] >= 0x7F).any()):
        raise InputError(f"GGUF holds block scales without a sign, and {param.name!r} has negative ones or NaN")
    codes = FOURS.unpack(storage["values"], int(param.type.shape[-1])).unflatten(-1, (-1, 4, 16))
    scales = storage["scales"].unflatten(-1, (-1, 4))
    return torch.cat([scales, _nibbles(codes).flatten(-2)], -1).flatten(-2)


_FLOATS = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
_INTEGERS: dict[int, tuple[str, int, int, Pack]] = {
    4: ("Q4_0", 32, 18, _q4_0),
    5: ("Q5_0", 32, 22, _q5_0),
    8: ("Q8_0", 32, 34, _q8_0),
}
_TERNARY: dict[str, tuple[str, int, int, Pack]] = {
    "ternary": ("TQ1_0", 256, 54, _tq1_0),
    "ternary2": ("TQ2_0", 256, 66, _tq2_0),
}
_FOUR_BIT_FLOATS: dict[type, tuple[str, int, int, Pack]] = {
    MxFp4: ("MXFP4", 32, 17, _mxfp4),
    NvFp4: ("NVFP4", 64, 36, _nvfp4),
}
