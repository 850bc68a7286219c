"""The tensors of a checkpoint folder as lazily read parameters, under the names that the model gives them.

Only headers are read here. Names pass through transformers' own conversion mapping: most are renamings, some parameters
are computed from several stored tensors (stacked experts, split projections) each time they are read.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key, rename_source_key

from planish.frontends.quantized.base import Method, QuantizedWeight
from planish.frontends.stored import StoredTensor, some, stored_tensors
from planish.ir import Computed, Dense, InFile, InputError, Param, TensorType, UnsupportedError
from planish.ir.types import DTYPE_NAMES, dtype_name


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


def checkpoint_params(
    folder: Path, model: Any, ignore_unexpected: bool = False, method: Method | None = None
) -> dict[str, Param]:
    """A lazily read parameter for each parameter and persistent buffer of the model (on meta or fake tensors).

    The logical dtype is the model's, the encoding is dense in the stored dtype, or for a weight that `method` quantised
    the one that holds its codes and scales as they are. Tensors that the model has no place for are left out with
    `ignore_unexpected`, and those that transformers knows to be harmless always.

    Raises:
        InputError: for tensors that are missing, left over, of the wrong shape, or not convertible, naming them.
        UnsupportedError: for a quantised weight that no encoding holds.
    """
    stored: dict[str, StoredTensor | QuantizedWeight] = {**stored_tensors(folder)}
    if method is not None:
        stored = method.gather(stored_tensors(folder))
    wanted = dict(model.state_dict())
    mapping = get_model_conversion_mapping(model)
    renamings = [m for m in mapping if isinstance(m, WeightRenaming)]
    converters = [m for m in mapping if isinstance(m, WeightConverter)]
    by_pattern = {pattern: c for c in converters for pattern in c.source_patterns}
    direct: dict[str, StoredTensor | QuantizedWeight] = {}
    groups: dict[str, _Group] = {}
    unexpected: list[str] = []
    for key in sorted(stored, key=dot_natural_key):
        name, pattern = rename_source_key(key, renamings, converters, model.base_model_prefix, wanted)
        if name not in wanted and key in wanted:
            name, pattern = rename_source_key(key, [], [], model.base_model_prefix, wanted)
        if name not in wanted:
            if method is None or isinstance(extra := stored[key], QuantizedWeight) or not method.says_nothing(extra):
                unexpected.append(name)
        elif pattern is None:
            direct[name] = stored[key]
        elif isinstance(found := stored[key], QuantizedWeight):
            raise UnsupportedError(
                f"parameter {name!r} is put together from several stored tensors, of which {key!r} is quantised; "
                "give the checkpoint in floating point"
            )
        else:
            group = groups.setdefault(name, _Group(by_pattern[pattern], {}, name, model))
            group.patterns.setdefault(pattern, []).append(found)
    params = {
        name: found.param(name, wanted[name], model.get_submodule(name.rpartition(".")[0]))
        if isinstance(found, QuantizedWeight)
        else _direct_param(name, found, wanted[name])
        for name, found in direct.items()
    }
    for group in groups.values():
        params.update(_computed_params(group, wanted))
    _tie(model, params)
    _check_names(folder, model, set(wanted) - set(params), [] if ignore_unexpected else unexpected)
    return params


def _direct_param(name: str, stored: StoredTensor, wanted: torch.Tensor) -> Param:
    _check_shape(name, stored.shape, wanted, f"{stored.path.name}")
    if stored.dtype not in DTYPE_NAMES or stored.dtype.is_floating_point != wanted.dtype.is_floating_point:
        raise InputError(
            f"parameter {name!r} is stored as {stored} in {stored.path.name} without the scales of a quantised weight, "
            f"but the model computes with {dtype_name(wanted.dtype)}; convert it to BF16 first"
        )
    kind = TensorType(wanted.dtype, stored.shape)
    return Param(name, kind, Dense(stored.dtype), InFile(stored.path, {"values": stored.key}))


def _computed_params(group: _Group, wanted: Mapping[str, torch.Tensor]) -> dict[str, Param]:
    try:
        converted = group.convert(on_meta=True)
    except Exception as error:
        keys = sorted(t.key for tensors in group.patterns.values() for t in tensors)
        raise InputError(f"{some(keys)} cannot be converted to {group.first_target!r}: {error}") from error
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
        raise InputError(f"{folder} lacks the weights {some(sorted(names.missing_keys))} of {type(model).__name__}")
    if names.unexpected_keys:
        raise InputError(
            f"{folder} holds weights that {type(model).__name__} has no place for ({some(sorted(names.unexpected_keys))}); "
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
        raise InputError(f"the weights {some(bad)} hold NaN or infinity; get an intact copy of the checkpoint")
