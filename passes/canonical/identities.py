"""Calls that give back their operand.

`x + 0.0` is not among them: it turns -0.0 into 0.0. `x + (-0.0)`, `x - 0.0`, `x * 1`, `x / 1` and, on integers, `x + 0`
keep every value, NaN and the sign of zero included.
"""

from __future__ import annotations

import math

import torch

from planish.ir.module import Node
from planish.ir.op import Chooser
from planish.ir.types import TensorType
from planish.passes.canonical.support import Arguments, draw_type, identity_rule

COPIES = (
    "clone.default", "alias.default", "contiguous.default", "detach.default", "lift_fresh.default",
    "lift_fresh_copy.default",
)  # fmt: skip
CASTS = ("_to_copy.default", "to.dtype", "to.dtype_layout", "to.device", "to.other", "type_as.default")
RESHAPES = (
    "view.default", "reshape.default", "_unsafe_view.default", "flatten.using_ints", "squeeze.dim", "squeeze.default",
    "squeeze.dims", "expand.default", "view_as.default", "expand_as.default",
)  # fmt: skip
PERMUTATIONS = ("permute.default", "transpose.int", "t.default")


def _draw_copy(choose: Chooser) -> tuple[str, TensorType, Arguments]:
    return choose.choice(["clone.default", "alias.default", "detach.default"]), draw_type(choose), {}


COPY = identity_rule("copy", COPIES, lambda arguments, node: False, _draw_copy)


def _draw_cast(choose: Chooser) -> tuple[str, TensorType, Arguments]:
    kind = draw_type(choose)
    return "_to_copy.default", kind, {"dtype": kind.dtype}


CAST = identity_rule("cast to its own type", CASTS, lambda arguments, node: False, _draw_cast)


def _draw_reshape(choose: Chooser) -> tuple[str, TensorType, Arguments]:
    kind = draw_type(choose)
    overload = choose.choice(["view.default", "reshape.default", "expand.default"])
    return overload, kind, {"shape" if overload == "reshape.default" else "size": kind.shape}


# A reshape or an expansion to the operand's own shape moves nothing.
RESHAPE = identity_rule("reshape to its own shape", RESHAPES, lambda arguments, node: False, _draw_reshape)


def _moves(arguments: Arguments, node: Node) -> bool:
    rank = node.output.type.rank
    if "dims" in arguments:
        return [d % rank for d in arguments["dims"]] != list(range(rank))
    if "dim0" in arguments:
        return bool((arguments["dim0"] - arguments["dim1"]) % rank) if rank else False
    return rank > 1  # t()


def _draw_permutation(choose: Chooser) -> tuple[str, TensorType, Arguments]:
    kind = draw_type(choose)
    if choose.boolean():
        return "permute.default", kind, {"dims": tuple(range(kind.rank))}
    return "transpose.int", kind, {"dim0": -1, "dim1": kind.rank - 1}


PERMUTATION = identity_rule("identity permutation", PERMUTATIONS, _moves, _draw_permutation)


def _cuts(arguments: Arguments, node: Node) -> bool:
    # With the operand's own type and a step of one, all of the axis is kept.
    return bool(arguments["step"] != 1)


def _draw_slice(choose: Chooser) -> tuple[str, TensorType, Arguments]:
    kind = draw_type(choose)
    axis = choose.integer(0, kind.rank - 1)
    return "slice.Tensor", kind, {"dim": axis, "start": 0, "end": choose.choice([kind.shape[axis], 2**63 - 1])}


SLICE = identity_rule("whole slice", ("slice.Tensor",), _cuts, _draw_slice)


def _is_number(value: object, wanted: float) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value == wanted


def _changes_sum(arguments: Arguments, node: Node) -> str | bool:
    value, alpha = arguments["other"], arguments.get("alpha", 1)
    is_float = node.output.type.dtype.is_floating_point
    if not _is_number(value, 0) or (not is_float and isinstance(value, float)):
        return True
    subtracts = str(node.op.attributes()["overload"]).startswith("sub.")
    adds_negative_zero = (_sign(value) < 0) ^ (_sign(alpha) < 0) ^ subtracts
    return "adding 0.0 turns -0.0 into 0.0" if is_float and not adds_negative_zero else False


def _sign(value: float) -> float:
    return math.copysign(1.0, value)


def _draw_sum(choose: Chooser) -> tuple[str, TensorType, Arguments]:
    if choose.boolean():
        return choose.choice(["add.Tensor", "sub.Tensor"]), draw_type(choose, dtype=torch.int64), {"other": 0}
    overload, zero = choose.choice([("add.Tensor", -0.0), ("sub.Tensor", 0.0)])
    return overload, draw_type(choose), {"other": zero}


SUM = identity_rule("plus zero", ("add.Tensor", "sub.Tensor", "add.Scalar", "sub.Scalar"), _changes_sum, _draw_sum)


def _changes_product(arguments: Arguments, node: Node) -> bool:
    return not _is_number(arguments.get("other", arguments.get("exponent")), 1) or "rounding_mode" in arguments


def _draw_product(choose: Chooser) -> tuple[str, TensorType, Arguments]:
    overload = choose.choice(["mul.Tensor", "div.Tensor", "pow.Tensor_Scalar"])
    return overload, draw_type(choose), {"exponent" if overload.startswith("pow") else "other": choose.choice([1, 1.0])}


PRODUCT = identity_rule(
    "times one",
    ("mul.Tensor", "div.Tensor", "mul.Scalar", "div.Scalar", "pow.Tensor_Scalar"),
    _changes_product,
    _draw_product,
)


def _draw_dropout(choose: Chooser) -> tuple[str, TensorType, Arguments]:
    return "dropout.default", draw_type(choose), {"p": 0.5, "train": False}


DROPOUT = identity_rule(
    "dropout in evaluation", ("dropout.default",), lambda arguments, node: bool(arguments["train"]), _draw_dropout, "input"
)  # fmt: skip

RULES = (COPY, CAST, RESHAPE, PERMUTATION, SLICE, SUM, PRODUCT, DROPOUT)
