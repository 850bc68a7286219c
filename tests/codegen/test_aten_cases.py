"""ATen operators without a sampler, and settings that samplers seldom draw, against the interpreter."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from planish.ir import Module, TensorType
from planish.ir.ops import Aten, Slot, aten
from planish.testing.compiled import call, compiled, faults, one_call

F32, F64, I64, BOOL = torch.float32, torch.float64, torch.int64, torch.bool
IMAGE = TensorType(F32, (2, 3, 9, 7))
ROWS = TensorType(F32, (3, 5, 37))
VECTOR = TensorType(F32, (5,))
X = Slot(0)

# name -> (call, operand types); indices are drawn below 3, so every indexed axis has at least 3 elements
CASES: dict[str, tuple[Aten, list[TensorType]]] = {
    "max_pool": (aten("max_pool2d.default", X, [3, 2], [2, 2], [1, 0]), [IMAGE]),
    "max_pool_dilated": (aten("max_pool2d.default", X, [2, 2], [1, 1], [0, 0], [2, 3]), [IMAGE]),
    "max_pool_1d": (aten("max_pool1d.default", X, [3], [2], [1]), [TensorType(F32, (2, 3, 11))]),
    "avg_pool": (aten("avg_pool2d.default", X, [3, 3], [2, 1], [1, 1]), [IMAGE]),
    "avg_pool_inside": (aten("avg_pool2d.default", X, [2, 3], [], [1, 1], False, False), [IMAGE]),
    "avg_pool_ceil": (aten("avg_pool2d.default", X, [2, 2], [2, 2], [0, 0], True), [IMAGE]),
    "adaptive_uneven": (aten("adaptive_avg_pool2d.default", X, [4, 3]), [IMAGE]),
    "adaptive_one": (aten("adaptive_avg_pool2d.default", X, [1, 1]), [IMAGE]),
    "argmax_last": (aten("argmax.default", X, -1), [ROWS]),
    "argmax_first_kept": (aten("argmax.default", X, 0, True), [ROWS]),
    "argmin_all": (aten("argmin.default", X), [ROWS]),
    "max_with_index": (aten("max.dim", X, 1), [ROWS]),
    "min_with_index": (aten("min.dim", X, -1, True), [ROWS]),
    "top_values": (aten("topk.default", X, 4, -1), [TensorType(F32, (2, 6))]),
    "sorted": (aten("sort.stable", X, stable=True, dim=1, descending=True), [TensorType(I64, (2, 6))]),
    "cumsum_middle": (aten("cumsum.default", X, 1), [ROWS]),
    "cumsum_bool": (aten("cumsum.default", X, -1), [TensorType(BOOL, (2, 9))]),
    "cumprod": (aten("cumprod.default", X, 0), [TensorType(F32, (4, 3))]),
    "index_two": (aten("index.Tensor", X, [Slot(1), None, Slot(2)]), [ROWS, *[TensorType(I64, (4,))] * 2]),
    "index_middle": (aten("index.Tensor", X, [None, Slot(1)]), [ROWS, TensorType(I64, (2, 4))]),
    "index_negative": (aten("index.Tensor", X, [Slot(1)]), [VECTOR, TensorType(I64, ())]),
    "index_select": (aten("index_select.default", X, 1, Slot(1)), [ROWS, TensorType(I64, (6,))]),
    "gather": (aten("gather.default", X, 2, Slot(1)), [ROWS, TensorType(I64, (3, 5, 2))]),
    "embedding": (aten("embedding.default", X, Slot(1)), [TensorType(F32, (4, 6)), TensorType(I64, (2, 3))]),
    "pad": (aten("constant_pad_nd.default", X, [1, 2, 0, 3], 1.5), [ROWS]),
    "pad_cut": (aten("constant_pad_nd.default", X, [-1, 2]), [ROWS]),
    "roll": (aten("roll.default", X, [2, -1], [0, 2]), [ROWS]),
    "repeat": (aten("repeat.default", X, [2, 1, 3]), [TensorType(F32, (2, 3))]),
    "repeat_interleave": (aten("repeat_interleave.self_int", X, 3, 1), [ROWS]),
    "repeat_interleave_flat": (aten("repeat_interleave.self_int", X, 3), [ROWS]),
    "tril": (aten("tril.default", X, -1), [ROWS]),
    "triu": (aten("triu.default", X, 2), [ROWS]),
    "unbind": (aten("unbind.int", X, 1), [ROWS]),
    "narrow": (aten("narrow.default", X, 2, 3, 11), [ROWS]),
    "slice_to_end": (aten("slice.Tensor", X, -1, -5, 9223372036854775807, 2), [ROWS]),
    "arange_step": (aten("arange.start_step", 3, 20, 4), []),
    "arange_float": (aten("arange.start_step", 0.5, 3, 0.25, dtype=F32), []),
    "full": (aten("full.default", [2, 3], -1.25, dtype=F64), []),
    "eye": (aten("eye.default", 4), []),
    "sum_all": (aten("sum.default", X), [ROWS]),
    "sum_of_bools": (aten("sum.dim_IntList", X, [0]), [TensorType(BOOL, (7, 20))]),
    "mean_of_ends": (aten("mean.dim", X, [0, 2]), [ROWS]),
    "mean_of_first": (aten("mean.dim", X, [0]), [TensorType(F32, (6, 700))]),
    "any_last": (aten("any.dim", X, -1), [TensorType(BOOL, (5, 40))]),
    "all_all": (aten("all.default", X), [TensorType(BOOL, (5, 4))]),
    "prod": (aten("prod.dim_int", X, 1), [TensorType(F32, (3, 4))]),
    "logsumexp": (aten("logsumexp.default", X, [1, 2]), [ROWS]),
    "var_mean": (aten("var_mean.correction", X, [-1], correction=0, keepdim=True), [ROWS]),
    "std": (aten("std.dim", X, [1], True), [ROWS]),
    "vector_norm": (aten("linalg_vector_norm.default", X, 2, [-1], True), [ROWS]),
    "layer_norm_two_axes": (
        aten("layer_norm.default", X, [5, 37], Slot(1), Slot(2)),
        [ROWS, *[ROWS.with_shape((5, 37))] * 2],
    ),
    "group_norm": (
        aten("group_norm.default", X, 2, Slot(1), Slot(2)),
        [TensorType(F32, (2, 4, 5, 3)), *[TensorType(F32, (4,))] * 2],
    ),
    "batch_norm": (
        aten("batch_norm.default", X, Slot(1), None, Slot(2), Slot(3), False, 0.1, 1e-5, False),
        [IMAGE, TensorType(F32, (3,)), TensorType(F32, (3,)), TensorType(BOOL, (3,))],
    ),
    "addmm": (
        aten("addmm.default", X, Slot(1), Slot(2), beta=2, alpha=3),
        [VECTOR, TensorType(F32, (4, 6)), TensorType(F32, (6, 5))],
    ),
    "matmul_vectors": (aten("matmul.default", X, Slot(1)), [VECTOR, VECTOR]),
    "matmul_vector_matrix": (aten("matmul.default", X, Slot(1)), [VECTOR, TensorType(F32, (2, 5, 3))]),
    "matmul_broadcast": (
        aten("matmul.default", X, Slot(1)),
        [TensorType(F32, (3, 1, 4, 5)), TensorType(F32, (2, 5, 6))],
    ),
    "linear_computed": (
        aten("linear.default", X, Slot(1), Slot(2)),
        [ROWS, TensorType(F32, (4, 37)), TensorType(F32, (4,))],
    ),
    "pow_integers": (aten("pow.Tensor_Scalar", X, 3), [TensorType(I64, (4,))]),
    "pow_fraction": (aten("pow.Tensor_Scalar", X, 1.7), [TensorType(F32, (4,))]),
    "fmod": (aten("fmod.Scalar", X, 1.5), [ROWS]),
    "softplus_sharp": (aten("softplus.default", X, 4, 6), [ROWS]),
    "elu_scaled": (aten("elu.default", X, 1.5, 2.0, 0.5), [ROWS]),
    "gelu_tanh": (aten("gelu.default", X, approximate="tanh"), [ROWS]),
    "hardtanh": (aten("hardtanh.default", X, -0.5, 2.0), [ROWS]),
    "xor": (aten("bitwise_xor.Tensor", X, Slot(1)), [TensorType(I64, (7,))] * 2),
    "ne_special": (aten("ne.Scalar", X, 0), [ROWS]),
    "scalar": (aten("mul.Tensor", X, Slot(1)), [TensorType(F32, ()), TensorType(F32, ())]),
}


def _operand(name: str, type: TensorType, generator: torch.Generator) -> torch.Tensor:
    shape = type.concrete({})
    if type.dtype == BOOL:
        return torch.randint(0, 2, shape, generator=generator).to(BOOL)
    if type.dtype == I64:
        low = -2 if name in ("index_negative", "pow_integers") else 0
        return torch.randint(low, 3, shape, generator=generator)
    return torch.randn(shape, generator=generator).to(type.dtype)


def _typed(name: str, op: Aten, types: list[TensorType]) -> list[TensorType]:
    """Batch statistics are floats; their variance is drawn as a bool so that it is not negative."""
    return [t.with_dtype(F32) for t in types] if name == "batch_norm" else types


@pytest.mark.full
def test_cases() -> None:
    functions = {name: one_call(name, op, _typed(name, op, types)) for name, (op, types) in CASES.items()}
    module = Module(functions)
    executable = compiled(module)
    generator = torch.Generator().manual_seed(0)
    broken: list[str] = []
    for name, (op, types) in CASES.items():
        tensors = [_operand(name, t, generator) for t in types]
        tensors = [t.to(w.dtype) for t, w in zip(tensors, _typed(name, op, types))]
        broken += [f"{name}: {fault}" for fault in faults(module, name, tensors, call(executable, name, tensors))]
    assert not broken, "\n".join(broken)


SPECIAL = torch.tensor([0.0, -0.0, float("inf"), -float("inf"), float("nan"), 1.5, -1.5, 1e-42, 3e38])


@pytest.mark.parametrize(
    "op",
    [
        *(aten(f"{n}.default", X) for n in ("relu", "tanh", "sigmoid", "silu", "exp", "erf", "sign", "neg", "floor")),
        *(aten(f"{n}.Tensor", X, Slot(1)) for n in ("div", "ne", "eq", "lt", "mul")),
        *(aten(f"{n}.default", X, Slot(1)) for n in ("maximum", "minimum")),
        aten("clamp.default", X, -1.0, 1.0),
        aten("to.dtype", X, BOOL),
        aten("to.dtype", X, torch.bfloat16),
        aten("to.dtype", X, torch.float16),
        aten("amax.default", X, [0]),
        aten("argmax.default", X, 0),
    ],
    ids=lambda op: op.overload.replace(".", "_"),
)  # fmt: skip
def test_special_values(op: Any) -> None:
    """Zeros of both signs, infinities, NaN and subnormals, each against each."""
    count = len(op.slots())
    a = SPECIAL.repeat_interleave(len(SPECIAL)) if count == 2 else SPECIAL
    b = SPECIAL.repeat(len(SPECIAL))
    inputs = [a, b][:count]
    module = Module({"forward": one_call("forward", op, [TensorType(F32, tuple(t.shape)) for t in inputs])})
    assert not faults(module, "forward", inputs, call(compiled(module), "forward", inputs))
