"""The tensors of a checkpoint folder as lazily read parameters, under the names that the model gives them.

Only headers are read here. Names pass through transformers' own conversion mapping: most are renamings, some parameters
are computed from several stored tensors (stacked experts, split projections) each time they are read.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors import safe_open
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key, rename_source_key

from planish.ir import Computed, Dense, InFile, InputError, Param, TensorType
from planish.ir.types import DTYPES, dtype_name

_STORED_DTYPES = {
    "F64": "f64", "F32": "f32", "F16": "f16", "BF16": "bf16", "I64": "i64", "I32": "i32", "I16": "i16", "I8": "i8",
    "U8": "u8", "BOOL": "bool",
}  # fmt: skip
_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a safetensors file, known by its header."""

    path: Path
    key: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    def read(self) -> torch.Tensor:
        return InFile(self.path, {"values": self.key}).read()["values"]


def stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Every tensor stored in the folder, by name. Raises InputError for a missing, truncated or unreadable file."""
    tensors: dict[str, StoredTensor] = {}
    for path, listed in _shards(folder).items():
        found = _read_header(path)
        missing = sorted(set(listed) - found.keys())
        if missing:
            raise InputError(f"{path} does not hold {_some(missing)}, which {_INDEX} says it does; download it again")
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
            raise InputError(f"{folder} lacks {_some(absent)}, which {_INDEX} lists; download the missing shards")
        return shards
    if (folder / _SINGLE).is_file():
        return {folder / _SINGLE: []}
    pickled = sorted(p.name for p in folder.iterdir() if p.suffix in (".bin", ".pt", ".pth", ".ckpt"))
    if pickled:
        raise InputError(
            f"{folder} holds its weights as {_some(pickled)}, which could run code when loaded; "
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
    return {k: StoredTensor(path, k, DTYPES[_STORED_DTYPES[dtype]], shape) for k, (dtype, shape) in headers.items()}


@dataclass(frozen=True)
class _Group:
    """Stored tensors that one converter turns into one or several parameters."""

    converter: WeightConverter
    patterns: dict[str, list[StoredTensor]]
    first_target: str
    model: Any

    def convert(self, on_meta: bool) -> dict[str, torch.Tensor]:
        """The converted tensors by parameter name; shapes and dtypes only when `on_meta`."""
        converter = copy.deepcopy(self.converter)
        for pattern, tensors in self.patterns.items():
            for tensor in tensors:
                loaded = torch.empty(tensor.shape, dtype=tensor.dtype, device="meta") if on_meta else tensor.read()
                converter.add_tensor(self.first_target, tensor.key, pattern, loaded)
        realized = converter.convert(self.first_target, model=self.model, config=self.model.config)
        return {name: value[0] if isinstance(value, list) else value for name, value in realized.items()}


def checkpoint_params(folder: Path, model: Any, ignore_unexpected: bool = False) -> dict[str, Param]:
    """A lazily read parameter for each parameter and persistent buffer of the model (on meta or fake tensors).

    The logical dtype is the model's, the encoding is dense in the stored dtype. Tensors that the model has no place for
    are left out with `ignore_unexpected`, and those that transformers knows to be harmless always.

    Raises:
        InputError: for tensors that are missing, left over, of the wrong shape, or not convertible, naming them.
    """
    stored = stored_tensors(folder)
    wanted = dict(model.state_dict())
    mapping = get_model_conversion_mapping(model)
    renamings = [m for m in mapping if isinstance(m, WeightRenaming)]
    converters = [m for m in mapping if isinstance(m, WeightConverter)]
    by_pattern = {pattern: c for c in converters for pattern in c.source_patterns}
    direct: dict[str, StoredTensor] = {}
    groups: dict[str, _Group] = {}
    unexpected: list[str] = []
    for key in sorted(stored, key=dot_natural_key):
        name, pattern = rename_source_key(key, renamings, converters, model.base_model_prefix, wanted)
        if name not in wanted and key in wanted:
            name, pattern = rename_source_key(key, [], [], model.base_model_prefix, wanted)
        if name not in wanted:
            unexpected.append(name)
        elif pattern is None:
            direct[name] = stored[key]
        else:
            group = groups.setdefault(name, _Group(by_pattern[pattern], {}, name, model))
            group.patterns.setdefault(pattern, []).append(stored[key])
    params = {name: _direct_param(name, tensor, wanted[name]) for name, tensor in direct.items()}
    for group in groups.values():
        params.update(_computed_params(group, wanted))
    _tie(model, params)
    _check_names(folder, model, set(wanted) - set(params), [] if ignore_unexpected else unexpected)
    return params


def _direct_param(name: str, stored: StoredTensor, wanted: torch.Tensor) -> Param:
    _check_shape(name, stored.shape, wanted, f"{stored.path.name}")
    if stored.dtype.is_floating_point != wanted.dtype.is_floating_point:
        raise InputError(
            f"parameter {name!r} is stored as {dtype_name(stored.dtype)} in {stored.path.name}, but the model computes "
            f"with {dtype_name(wanted.dtype)}; a checkpoint quantised elsewhere must be converted to BF16 first"
        )
    kind = TensorType(wanted.dtype, stored.shape)
    return Param(name, kind, Dense(stored.dtype), InFile(stored.path, {"values": stored.key}))


def _computed_params(group: _Group, wanted: Mapping[str, torch.Tensor]) -> dict[str, Param]:
    try:
        converted = group.convert(on_meta=True)
    except Exception as error:
        keys = sorted(t.key for tensors in group.patterns.values() for t in tensors)
        raise InputError(f"{_some(keys)} cannot be converted to {group.first_target!r}: {error}") from error
    params = {}
    for name, tensor in converted.items():
        if name in wanted:
            _check_shape(name, tuple(tensor.shape), wanted[name], "its stored parts")

            def compute(name: str = name) -> dict[str, torch.Tensor]:
                return {"values": group.convert(on_meta=False)[name].contiguous()}

            kind = TensorType(wanted[name].dtype, tuple(tensor.shape))
            params[name] = Param(name, kind, Dense(tensor.dtype), Computed(compute))
    return params


def _check_shape(name: str, shape: tuple[int, ...], wanted: torch.Tensor, where: str) -> None:
    if shape != tuple(wanted.shape):
        raise InputError(
            f"parameter {name!r} has shape {list(shape)} in {where}, but the config asks for {list(wanted.shape)}"
        )


def _tie(model: Any, params: dict[str, Param]) -> None:
    """Let every name of a tied weight stand for the one parameter that is stored, its own name if it is stored twice."""
    for name, other in model.all_tied_weights_keys.items():
        if other in params:
            params[name] = params[other]
        elif name in params:
            params[other] = params[name]


def _check_names(folder: Path, model: Any, missing: set[str], unexpected: list[str]) -> None:
    # What transformers itself knows to be harmless: buffers that older versions stored, heads that are tied.
    names = SimpleNamespace(missing_keys=missing, unexpected_keys=set(unexpected))
    model._adjust_missing_and_unexpected_keys(names)
    if names.missing_keys:
        raise InputError(f"{folder} lacks the weights {_some(sorted(names.missing_keys))} of {type(model).__name__}")
    if names.unexpected_keys:
        raise InputError(
            f"{folder} holds weights that {type(model).__name__} has no place for ({_some(sorted(names.unexpected_keys))}); "
            "pass ignore_unexpected=True to leave them out"
        )


def check_finite(params: Mapping[str, Param]) -> None:
    """Read every floating parameter once, one at a time; raises InputError naming those with NaN or infinity."""
    bad = []
    for name, param in {id(p): (p.name, p) for p in params.values()}.values():
        if param.type.dtype.is_floating_point:
            for tensor in param.storage().values():
                if tensor.dtype.is_floating_point and not bool(torch.isfinite(tensor).all()):
                    bad.append(name)
    if bad:
        raise InputError(f"the weights {_some(bad)} hold NaN or infinity; get an intact copy of the checkpoint")


def _some(names: list[str]) -> str:
    """The first few of many names."""
    shown = ", ".join(names[:5])
    return f"{shown} and {len(names) - 5} more" if len(names) > 5 else shown


__all__ = ["StoredTensor", "check_finite", "checkpoint_params", "stored_tensors"]
