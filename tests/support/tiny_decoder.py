"""A small decoder-only transformer built by hand from model operations: the shape of a language model without a frontend."""

from __future__ import annotations

import torch

from planish.ir import Builder, Module, TensorType, Value, dense_param, symbol
from planish.ir.ops import Attention, Embedding, GatedActivation, Linear, Positions, RmsNorm, Rope, Slot, aten

BATCH, TOKENS = symbol("B"), symbol("S")


def tiny_decoder(
    *,
    vocabulary: int = 11,
    hidden: int = 16,
    heads: int = 4,
    kv_heads: int = 2,
    size: int = 4,
    inner: int = 24,
    layers: int = 2,
    window: int | None = None,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Module:
    """A module with `forward(input_ids, attention_mask) -> logits`, random weights from `seed`."""
    generator = torch.Generator().manual_seed(seed)
    shapes: dict[str, tuple[int, ...]] = {"embedding": (vocabulary, hidden), "norm": (hidden,)}
    for layer in range(layers):
        shapes |= {
            f"{layer}.norm.attention": (hidden,),
            f"{layer}.norm.mlp": (hidden,),
            f"{layer}.q": (heads * size, hidden),
            f"{layer}.k": (kv_heads * size, hidden),
            f"{layer}.v": (kv_heads * size, hidden),
            f"{layer}.o": (hidden, heads * size),
            f"{layer}.gate": (inner, hidden),
            f"{layer}.up": (inner, hidden),
            f"{layer}.down": (hidden, inner),
        }
    params = [dense_param(n, torch.randn(s, generator=generator).to(dtype) * 0.4) for n, s in shapes.items()]
    params.append(dense_param("inv_freq", 100.0 ** (-torch.arange(size // 2, dtype=dtype) / (size // 2))))
    module = Module({}, {p.name: p for p in params})

    b = Builder("forward")
    ref = module.param_ref
    ids = b.input("input_ids", TensorType(torch.int64, (BATCH, TOKENS)))
    mask = b.input("attention_mask", TensorType(torch.bool, (BATCH, TOKENS)))
    positions = b.emit(Positions(BATCH, TOKENS), None, mask)

    def heads_of(x: Value, weight: str, count: int) -> Value:
        y = b.emit(Linear(), x, ref(weight), None)
        return b.emit(aten("view.default", Slot(0), [BATCH, TOKENS, count, size]), y)

    def add(x: Value, y: Value) -> Value:
        return b.emit(aten("add.Tensor", Slot(0), Slot(1)), x, y)

    h = b.emit(Embedding(), ids, ref("embedding"))
    for layer in range(layers):
        x = b.emit(RmsNorm(1e-5), h, ref(f"{layer}.norm.attention"))
        q, k, v = (heads_of(x, f"{layer}.{n}", c) for n, c in (("q", heads), ("k", kv_heads), ("v", kv_heads)))
        q, k = (b.emit(Rope(), t, positions, ref("inv_freq")) for t in (q, k))
        attended = b.emit(Attention(scale=size**-0.5, window=window), q, k, v, mask, *[None] * 5)
        joined = b.emit(aten("view.default", Slot(0), [BATCH, TOKENS, heads * size]), attended)
        h = add(h, b.emit(Linear(), joined, ref(f"{layer}.o"), None))
        x = b.emit(RmsNorm(1e-5), h, ref(f"{layer}.norm.mlp"))
        gate, up = (b.emit(Linear(), x, ref(f"{layer}.{n}"), None) for n in ("gate", "up"))
        h = add(h, b.emit(Linear(), b.emit(GatedActivation("silu"), gate, up), ref(f"{layer}.down"), None))
    logits = b.emit(Linear(), b.emit(RmsNorm(1e-5), h, ref("norm")), ref("embedding"), None)
    return module.with_function(b.finish([logits], ["logits"]))
