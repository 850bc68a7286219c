"""Linear maps, products, convolutions and attention of ATen: as the operations that have kernels."""

from __future__ import annotations

from typing import Any

import torch

from planish.codegen.dims import product
from planish.codegen.legalise import Arguments, Decomposition, Legaliser
from planish.ir import Dim, Node, Operand, TensorType, UnsupportedError
from planish.ir.ops import Attention, Conv2d, Linear
from planish.ir.types import same_dim


def _reshape(to: Legaliser, x: Operand, shape: list[Dim]) -> Operand:
    return x if TensorType(x.type.dtype, tuple(shape)) == x.type else to.call("reshape.default", x, shape)


def _linear(to: Legaliser, arguments: Arguments, node: Node) -> Operand:
    x, weight, bias = (arguments.get(n) for n in ("input", "weight", "bias"))
    x = arguments.get("x") if x is None else x
    assert x is not None and weight is not None
    if to.is_constant(weight):
        return _linear_op(to, x, weight, bias)
    result = _matmul_of(to, x, to.call("t.default", weight))
    return result if bias is None else to.call("add.Tensor", result, bias)


def _linear_op(to: Legaliser, x: Operand, weight: Operand, bias: Operand | None) -> Operand:
    """The model operation; a bias that is computed is added afterwards."""
    inside = bias if bias is None or to.is_constant(bias) else None
    node = to.node(Linear(), x, weight, inside, source=to.source)
    return node.output if bias is inside else to.call("add.Tensor", node.output, bias)


def _addmm(to: Legaliser, arguments: Arguments, node: Node) -> Operand:
    added, product_ = arguments["self"], _matmul_of(to, arguments["mat1"], arguments["mat2"])
    return _sum(to, added, product_, arguments)


def _baddbmm(to: Legaliser, arguments: Arguments, node: Node) -> Operand:
    return _sum(to, arguments["self"], _matmul_of(to, arguments["batch1"], arguments["batch2"]), arguments)


def _sum(to: Legaliser, added: Operand, multiplied: Operand, arguments: Arguments) -> Operand:
    """beta * added + alpha * multiplied."""
    beta, alpha = arguments["beta"], arguments["alpha"]
    if alpha != 1:
        multiplied = to.call("mul.Scalar", multiplied, alpha)
    if beta == 0:
        return multiplied
    return to.call("add.Tensor", multiplied, added, alpha=beta)


def _matmul(to: Legaliser, arguments: Arguments, node: Node) -> Operand:
    right = next(arguments[name] for name in ("mat2", "other", "vec", "tensor") if name in arguments)
    return _matmul_of(to, arguments["self"], right)


def _matmul_of(to: Legaliser, a: Operand, b: Operand) -> Operand:
    """torch.matmul of two operands, as `linear` of a constant right factor or as `bmm` of batches."""
    if a.type.rank == 1 and b.type.rank == 1:
        return to.call("sum.dim_IntList", to.call("mul.Tensor", a, b), [0])
    if a.type.rank == 1:
        return to.call("squeeze.dim", _matmul_of(to, to.call("unsqueeze.default", a, 0), b), -2)
    if b.type.rank == 1:
        return to.call("squeeze.dim", _matmul_of(to, a, to.call("unsqueeze.default", b, 1)), -1)
    if b.type.rank == 2 and to.is_constant(b):
        return _linear_op(to, a, to.call("t.default", b), None)
    result = [*_broadcast(a.type.shape[:-2], b.type.shape[:-2]), a.type.shape[-2], b.type.shape[-1]]
    if b.type.rank == 2:
        rows = product(a.type.shape[:-1])
        joined = _bmm(to, _reshape(to, a, [1, rows, a.type.shape[-1]]), _reshape(to, b, [1, *b.type.shape]))
        return _reshape(to, joined, result)
    return _reshape(to, _bmm(to, _batched(to, a, result[:-2]), _batched(to, b, result[:-2])), result)


def _broadcast(a: tuple[Dim, ...], b: tuple[Dim, ...]) -> list[Dim]:
    rank = max(len(a), len(b))
    first, second = (1,) * (rank - len(a)) + a, (1,) * (rank - len(b)) + b
    return [y if x == 1 else x for x, y in zip(first, second)]


def _batched(to: Legaliser, x: Operand, batch: list[Dim]) -> Operand:
    """x [..., m, k] expanded to the batch axes, which are joined."""
    full = [*batch, *x.type.shape[-2:]]
    if not all(same_dim(p, q) for p, q in zip(((1,) * len(full) + x.type.shape)[-len(full) :], full)):
        x = to.call("expand.default", x, full)
    return _reshape(to, x, [product(batch), *x.type.shape[-2:]])


def _bmm(to: Legaliser, a: Operand, b: Operand) -> Operand:
    return to.call("bmm.default", a, b)


def _bmm_without_kernel(to: Legaliser, arguments: Arguments, node: Node) -> Operand:
    """A product without a kernel: of 16-bit floats in float32, of anything else as a fold of products."""
    a, b = arguments["self"], arguments["mat2"]
    if a.type.dtype in (torch.float16, torch.bfloat16):
        return to.call("to.dtype", to.call("bmm.default", to.widen(a), to.widen(b)), a.type.dtype)
    products = to.call("mul.Tensor", to.call("unsqueeze.default", a, 3), to.call("unsqueeze.default", b, 1))
    return to.call("sum.dim_IntList", products, [2], dtype=a.type.dtype)


def _convolution(to: Legaliser, arguments: Arguments, node: Node) -> Operand:
    """One- and two-dimensional convolutions as `conv2d`."""
    x, weight, bias = arguments["input"], arguments["weight"], arguments["bias"]
    spatial = x.type.rank - 2
    unbatched = weight.type.rank == x.type.rank + 1
    if unbatched:
        x, spatial = to.call("unsqueeze.default", x, 0), spatial + 1
    if arguments.get("transposed") or spatial not in (1, 2):
        raise UnsupportedError(f"a transposed or {spatial}-dimensional convolution has no kernel")
    pair = [_spread(arguments[n], spatial) for n in ("stride", "dilation")]
    padding = arguments["padding"]
    if isinstance(padding, str):
        padding = _named_padding(padding, weight.type.shape[2:], pair[1][-spatial:])
    padded = _spread(padding, spatial, 0)
    if spatial == 1:
        x, weight = (to.call("unsqueeze.default", t, 2) for t in (x, weight))
    op = Conv2d(pair[0], padded, pair[1], arguments["groups"])
    result = to.place(op, (x, weight, bias))[0]
    result = to.call("squeeze.dim", result, 2) if spatial == 1 else result
    return to.call("squeeze.dim", result, 0) if unbatched else result


def _spread(value: Any, spatial: int, other: int = 1) -> tuple[int, int]:
    """A setting for two axes; a one-dimensional one applies to the last."""
    values = list(value) if isinstance(value, (list, tuple)) else [value]
    values = values * spatial if len(values) == 1 else values
    return (other, values[0]) if spatial == 1 else (values[0], values[1])


def _named_padding(name: str, kernel: tuple[Dim, ...], dilation: tuple[int, ...]) -> list[int]:
    if name == "valid":
        return [0] * len(kernel)
    reach = [d * (int(k) - 1) for k, d in zip(kernel, dilation)]
    if any(r % 2 for r in reach):
        raise UnsupportedError(
            "a convolution that pads one side more than the other has no kernel; pad its input first"
        )
    return [r // 2 for r in reach]


def _attention(to: Legaliser, arguments: Arguments, node: Node) -> Operand:
    """scaled_dot_product_attention [..., heads, length, size] that no pass has raised: its mask becomes a bias."""
    q, k, v = (arguments[n] for n in ("query", "key", "value"))
    mask, causal = arguments.get("attn_mask"), arguments.get("is_causal", False)
    shape = q.type.shape
    q, k, v = (_four_axes(to, t) for t in (q, k, v))
    q, k, v = (to.call("transpose.int", t, 1, 2) for t in (q, k, v))
    scale = arguments.get("scale")
    size = q.type.shape[3]
    op = Attention(scale=float(size) ** -0.5 if scale is None else scale, causal=bool(causal))
    bias = None if mask is None else _bias(to, mask, q.type.dtype)
    result = to.place(op, (q, k, v, None, None, None, None, None, bias))[0]
    result = to.call("transpose.int", result, 1, 2)
    return _reshape(to, result, [*shape[:-1], v.type.shape[3]])


def _four_axes(to: Legaliser, x: Operand) -> Operand:
    *batch, heads, length, size = (1,) * (3 - x.type.rank) + x.type.shape
    return _reshape(to, x, [product(batch), heads, length, size])


def _bias(to: Legaliser, mask: Operand, dtype: torch.dtype) -> Operand:
    """A mask as what is added to the scores: [batch or 1, heads or 1, length, keys]."""
    if mask.type.dtype == torch.bool:
        zero = to.call("scalar_tensor.default", 0.0, dtype=dtype)
        mask = to.call("where.ScalarOther", mask, zero, float("-inf"))
    while mask.type.rank < 4:
        mask = to.call("unsqueeze.default", mask, 0)
    return mask


LINEAR_ALGEBRA: dict[str, Decomposition] = {
    "linear": _linear,
    "linear.default": _linear,
    "addmm.default": _addmm,
    "baddbmm.default": _baddbmm,
    "mm.default": _matmul,
    "mv.default": _matmul,
    "dot.default": _matmul,
    "bmm.default": _bmm_without_kernel,
    "matmul.default": _matmul,
    "conv1d.default": _convolution,
    "conv1d.padding": _convolution,
    "conv2d.default": _convolution,
    "conv2d.padding": _convolution,
    "convolution.default": _convolution,
    "scaled_dot_product_attention.default": _attention,
}
