"""Which passes exist: one line each, loaded when asked for. Others register as `planish.passes` entry points."""

from __future__ import annotations

import importlib
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points

from planish.ir.errors import InputError
from planish.passes.pass_base import Pass, nearest

PASSES: dict[str, str] = {
    "canonicalise": "planish.passes.canonicalise:Canonicalise",
    "common-subexpressions": "planish.passes.common_subexpressions:CommonSubexpressions",
    "compact": "planish.passes.compact:Compact",
    "dead-code": "planish.passes.dead_code:DeadCode",
    "derive-programs": "planish.passes.derive_programs:DerivePrograms",
    "drop-indices": "planish.passes.drop_indices:DropIndices",
    "drop-layers": "planish.passes.drop_layers:DropLayers",
    "equalize": "planish.passes.equalize:Equalize",
    "fold-batch-norm": "planish.passes.fold_batch_norm:FoldBatchNorm",
    "fold-constants": "planish.passes.fold_constants:FoldConstants",
    "fold-norm-gains": "planish.passes.fold_norm_gains:FoldNormGains",
    "freeze-gates": "planish.passes.freeze_gates:FreezeGates",
    "fuse-horizontal": "planish.passes.fuse_horizontal:FuseHorizontal",
    "narrow-attention": "planish.passes.narrow_attention:NarrowAttention",
    "online-hadamard": "planish.passes.online_hadamard:OnlineHadamard",
    "prune-vocabulary": "planish.passes.prune_vocabulary:PruneVocabulary",
    "quantize": "planish.passes.quantize:Quantize",
    "quantize-activations": "planish.passes.quantize_activations:QuantizeActivations",
    "quantize-cache": "planish.passes.quantize_cache:QuantizeCache",
    "raise-model-ops": "planish.passes.raise_model_ops:RaiseModelOps",
    "rotation-fusion": "planish.passes.rotation_fusion:RotationFusion",
}


@lru_cache(maxsize=1)
def _outside_passes() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group="planish.passes")}


def pass_names() -> list[str]:
    """Every name that a recipe may use, sorted."""
    return sorted({*PASSES, *_outside_passes()})


def pass_class(name: str, where: str = "") -> type[Pass]:
    """The pass of that name; raises InputError naming the nearest known one, or saying why it could not be loaded."""
    if name in PASSES:
        module, _, attribute = PASSES[name].partition(":")
        found: object = getattr(importlib.import_module(module), attribute)
    elif name in _outside_passes():
        point = _outside_passes()[name]
        try:
            found = point.load()
        except Exception as error:
            raise InputError(f"pass {name!r} of entry point {point.value!r} cannot be loaded: {error}") from error
    else:
        raise InputError(f"no pass is called {name!r}{f' in {where}' if where else ''}; {nearest(name, pass_names())}")
    if not (isinstance(found, type) and issubclass(found, Pass)) or found.name != name:
        raise InputError(f"what is registered as pass {name!r} is {found!r}, not a pass of that name")
    return found
