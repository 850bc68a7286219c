"""Each operation's meaning once more, from its docstring, in numpy and float64, index by index where that is clearest.

Independent of `evaluate`: nothing here calls torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

Array = Any
Reference = Callable[..., tuple[Array, ...]]


def _linear(op: Any, x: Array, weight: Array, bias: Array | None) -> tuple[Array, ...]:
    y = np.einsum("...k,nk->...n", x, weight)
    return (y if bias is None else y + bias,)


def _quantize(op: Any, x: Array) -> tuple[Array, ...]:
    codes, scales = np.zeros(x.shape), np.zeros((*x.shape[:-1], 1))
    largest = 2 ** (op.bits - 1) - 1
    for row in np.ndindex(*x.shape[:-1]):
        peak = max(abs(v) for v in x[row])
        scales[row] = peak / largest
        if peak:
            codes[row] = [round(v / (peak / largest)) for v in x[row]]
    return codes, scales


def _quantized_linear(op: Any, codes: Array, scale: Array, weight: Array, bias: Array | None) -> tuple[Array, ...]:
    y = scale * np.einsum("...k,nk->...n", codes, weight)
    return (y if bias is None else y + bias,)


def _rms_norm(op: Any, x: Array, weight: Array | None) -> tuple[Array, ...]:
    y = x / np.sqrt((x * x).sum(-1, keepdims=True) / x.shape[-1] + op.eps)
    return (y if weight is None else y * weight,)


def _layer_norm(op: Any, x: Array, weight: Array | None, bias: Array | None) -> tuple[Array, ...]:
    mean, var = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    y = (x - mean) / np.sqrt(var + op.eps)
    y = y if weight is None else y * weight
    return (y if bias is None else y + bias,)


def _gelu(v: float) -> float:
    return 0.5 * v * (1 + math.erf(v / math.sqrt(2)))


def _gelu_tanh(v: float) -> float:
    return 0.5 * v * (1 + math.tanh(math.sqrt(2 / math.pi) * (v + 0.044715 * v**3)))


_ACTIVATIONS: dict[str, Callable[[float], float]] = {
    "silu": lambda v: v / (1 + math.exp(-v)),
    "gelu": _gelu,
    "gelu_tanh": _gelu_tanh,
    "relu": lambda v: max(v, 0.0),
}


def _gated(op: Any, gate: Array, up: Array | None) -> tuple[Array, ...]:
    if up is None:
        half = gate.shape[-1] // 2
        gate, up = gate[..., :half], gate[..., half:]
    return (np.vectorize(_ACTIVATIONS[op.activation], otypes=[float])(gate) * up,)


def _hadamard(op: Any, x: Array) -> tuple[Array, ...]:
    """Of orders that are a power of two, times a prime plus one where that is 3 modulo 4 (Paley's first construction)."""
    prime = 11 if op.block % 3 == 0 else 19 if op.block % 5 == 0 else 0
    squares = {n * n % prime for n in range(1, prime)} if prime else set()

    def paley(k: int, n: int) -> int:
        if k == n or k == 0 or n == 0:
            return -1 if k > n == 0 else 1
        return 1 if (k - n) % prime in squares else -1

    power = op.block // (prime + 1) if prime else op.block
    matrix = np.array([
        [
            (-1) ** bin(i % power & j % power).count("1") * (paley(i // power, j // power) if prime else 1)
            for j in range(op.block)
        ]
        for i in range(op.block)
    ])  # fmt: skip
    blocks = x.reshape(*x.shape[:-1], -1, op.block)
    return (np.einsum("ij,...j->...i", matrix, blocks).reshape(x.shape) / math.sqrt(op.block),)


def _embedding(op: Any, ids: Array, table: Array) -> tuple[Array, ...]:
    return (np.stack([table[int(i)] for i in ids.reshape(-1)]).reshape(*ids.shape, table.shape[1]),)


def _positions(op: Any, start: Array | None, padding: Array | None) -> tuple[Array, ...]:
    y = np.zeros((op.batch, op.length))
    for b in range(op.batch):
        first, count = 0 if start is None else start[b], 0
        for i in range(op.length):
            real = padding is None or padding[b, i] != 0
            y[b, i] = first + count if real else op.padding_value
            count += int(real)
    return (y,)


def _rope(op: Any, x: Array, positions: Array, inv_freq: Array) -> tuple[Array, ...]:
    y, pairs = x.copy(), len(inv_freq)
    for b, i, h in np.ndindex(*x.shape[:3]):
        for j in range(pairs):
            a, c = (j, j + pairs) if op.style == "half" else (2 * j, 2 * j + 1)
            turn = op.scale * np.exp(1j * positions[b, i] * inv_freq[j]) * complex(x[b, i, h, a], x[b, i, h, c])
            y[b, i, h, a], y[b, i, h, c] = turn.real, turn.imag
    return (y,)


def _attention(op: Any, q: Array, k: Array, v: Array, *rest: Array | None) -> tuple[Array, ...]:
    padding, start, kv_length, slopes, sinks, bias = rest
    y = np.zeros((*q.shape[:3], v.shape[3]))
    group = q.shape[2] // k.shape[2]
    for b, i, h in np.ndindex(*q.shape[:3]):
        p = i + (0 if start is None else int(start[b]))
        weights: dict[int, float] = {}
        for j in range(k.shape[1]):
            seen = (
                (not op.causal or j <= p)
                and (op.window is None or j > p - op.window)
                and (op.chunk is None or j // op.chunk == p // op.chunk)
                and (kv_length is None or j < kv_length[b])
                and (padding is None or bool(padding[b, j]))
            )
            if not seen:
                continue
            score = op.scale * float(q[b, i, h] @ k[b, j, h // group])
            if op.softcap is not None:
                score = op.softcap * math.tanh(score / op.softcap)
            if slopes is not None:
                score += slopes[h] * (j - p)
            if bias is not None:
                score += np.broadcast_to(bias, (q.shape[0], q.shape[2], q.shape[1], k.shape[1]))[b, h, i, j]
            weights[j] = score
        if weights:
            top = max([*weights.values(), *([] if sinks is None else [sinks[h]])])
            total = sum(math.exp(s - top) for s in weights.values())
            total += 0 if sinks is None else math.exp(sinks[h] - top)
            for j, score in weights.items():
                y[b, i, h] += math.exp(score - top) / total * v[b, j, h // group]
    return (y,)


def _cache_append(op: Any, cache: Array, new: Array, start: Array, length: Array) -> tuple[Array, ...]:
    y = cache.copy()
    for b in range(cache.shape[0]):
        for i in range(int(length[b])):
            rows = new[b, i] if op.encoding is None else np.apply_along_axis(_held, -1, new[b, i], op.encoding)
            y[b, int(start[b]) + i] = rows
    return (y,)


def _held(row: Array, encoding: Any) -> Array:
    """A row on the grid that its largest elements choose: integers, integers from a zero point, or floats of eight bits."""
    if encoding.name == "float8":
        scale = np.float64(np.float32(np.abs(row).max() / 448)) or 1.0
        grid = np.array(
            [m * 2.0**-9 for m in range(8)] + [(8 + m) * 2.0 ** (e - 10) for e in range(1, 16) for m in range(8)]
        )
        distance = np.abs(np.abs(row / scale)[:, None] - grid[:127])
        # Halfway between two, the even one.
        nearest = [min(np.flatnonzero(d == d.min()), key=lambda n: n % 2) for d in distance]
        held: Array = np.sign(row) * grid[nearest] * scale
        return held
    kept: Any = {"torch.float16": np.float16, "torch.float32": np.float32}[str(encoding.scale_dtype)]
    if encoding.zero_points:
        low, high = min(0.0, row.min()), max(0.0, row.max())
        scale, first, last = float(kept((high - low) / (2**encoding.bits - 1))), 0, 2**encoding.bits - 1
        zero = np.rint(-low / scale) if scale else 0.0
    else:
        first, last, zero = -(2 ** (encoding.bits - 1)), 2 ** (encoding.bits - 1) - 1, 0.0
        scale = float(kept(row[np.abs(row).argmax()] / first))
    levels = np.clip(np.rint(row / scale + zero), first, last) - zero if scale else 0 * row
    return levels * scale


def _last_token(op: Any, x: Array, length: Array) -> tuple[Array, ...]:
    return (np.stack([x[b, int(n) - 1 : int(n)] for b, n in enumerate(length)]),)


def _conv2d(op: Any, x: Array, weight: Array, bias: Array | None) -> tuple[Array, ...]:
    (up, left), (step_y, step_x), (gap_y, gap_x) = op.padding, op.stride, op.dilation
    padded = np.pad(x, ((0, 0), (0, 0), (up, up), (left, left)))
    outs, ins, kh, kw = weight.shape
    high = (padded.shape[2] - gap_y * (kh - 1) - 1) // step_y + 1
    wide = (padded.shape[3] - gap_x * (kw - 1) - 1) // step_x + 1
    y = np.zeros((x.shape[0], outs, high, wide))
    for o, i, j in np.ndindex(outs, high, wide):
        first = o // (outs // op.groups) * ins
        top, side = i * step_y, j * step_x
        rows = slice(top, top + gap_y * (kh - 1) + 1, gap_y)
        columns = slice(side, side + gap_x * (kw - 1) + 1, gap_x)
        y[:, o, i, j] = (padded[:, first : first + ins, rows, columns] * weight[o]).sum((1, 2, 3))
    return (y if bias is None else y + bias.reshape(1, -1, 1, 1),)


REFERENCES: dict[str, Reference] = {
    "attention": _attention,
    "cache_append": _cache_append,
    "conv2d": _conv2d,
    "embedding": _embedding,
    "gated_activation": _gated,
    "hadamard": _hadamard,
    "last_token": _last_token,
    "layer_norm": _layer_norm,
    "linear": _linear,
    "positions": _positions,
    "quantize_activation": _quantize,
    "quantized_linear": _quantized_linear,
    "rms_norm": _rms_norm,
    "rope": _rope,
}

ATEN_REFERENCES: dict[str, Callable[..., Array]] = {
    "neg.default": lambda x: 0 - x,
    "relu.default": lambda x: np.where(x > 0, x, 0),
    "add.Tensor": lambda x, y: x + y,
    "sub.Tensor": lambda x, y: x - y,
    "mul.Tensor": lambda x, y: x * y,
    "rsub.Scalar": lambda x, y: y - x,
    "maximum.default": np.maximum,
    "where.self": np.where,
    "transpose.int": np.swapaxes,
    "permute.default": np.transpose,
    "cat.default": lambda xs, axis: np.concatenate(xs, axis),
    "stack.default": lambda xs, axis: np.stack(xs, axis),
    "cumsum.default": np.cumsum,
    "sum.dim_IntList": lambda x, axes, keep: x.sum(axis=tuple(axes), keepdims=keep),
    "amax.default": lambda x, axes, keep: x.max(axis=tuple(axes), keepdims=keep),
    "matmul.default": lambda x, y: np.einsum("...mk,...kn->...mn", x, y),
    "view.default": lambda x, shape: x.reshape(shape),
    "clamp.default": lambda x, low, high: np.minimum(np.maximum(x, low), high),
}
