"""States on the narrowest tensors: repeated heads are read once, latents are absorbed where that pays, and nowhere else."""

from __future__ import annotations

import pytest
import torch

from planish.ir import Builder, Interpreter, Module, TensorType, Value, dense_param, symbol, verify
from planish.ir.ops import Attention, Embedding, Linear, Positions, RmsNorm, Rope, Slot, aten
from planish.passes.derive_programs import DerivePrograms
from planish.passes.narrow_attention import NarrowAttention
from planish.passes.pass_base import Context

BATCH, TOKENS = symbol("B"), symbol("S")
HEADS, PART, ROTARY, VALUE, HIDDEN, VOCABULARY = 4, 6, 4, 5, 16, 11


def latent_decoder(rank: int, *, bias: bool = False, repeats: int = 1) -> Module:
    """One layer whose keys and values are projected from a normed latent of `rank`, keys with a rotary part that all heads
    share; `repeats` heads in a row are alike."""
    generator = torch.Generator().manual_seed(0)
    rows = HEADS // repeats * (PART + VALUE)
    shapes: dict[str, tuple[int, ...]] = {
        "embedding": (VOCABULARY, HIDDEN), "down": (rank, HIDDEN), "norm": (rank,), "rotary": (ROTARY, HIDDEN),
        "up": (rows, rank), "q": (HEADS * (PART + ROTARY), HIDDEN), "o": (HIDDEN, HEADS * VALUE), "up.bias": (rows,),
    }  # fmt: skip
    params = [dense_param(n, torch.randn(s, generator=generator) * 0.4) for n, s in shapes.items()]
    params.append(dense_param("inv_freq", 100.0 ** (-torch.arange(ROTARY // 2) / (ROTARY // 2))))
    module = Module({}, {p.name: p for p in params})
    b, ref = Builder("forward"), module.param_ref

    def call(overload: str, *arguments: object, on: tuple[Value, ...]) -> Value:
        return b.emit(aten(overload, *arguments), *on)

    ids = b.input("input_ids", TensorType(torch.int64, (BATCH, TOKENS)))
    mask = b.input("attention_mask", TensorType(torch.bool, (BATCH, TOKENS)))
    positions = b.emit(Positions(BATCH, TOKENS), None, mask)
    h = b.emit(Embedding(), ids, ref("embedding"))
    q = call(
        "reshape.default", Slot(0), [BATCH, TOKENS, HEADS, PART + ROTARY], on=(b.emit(Linear(), h, ref("q"), None),)
    )
    plain, turned = b.node(aten("split_with_sizes.default", Slot(0), [PART, ROTARY], -1), q).outputs
    turned = b.emit(Rope(), turned, positions, ref("inv_freq"))
    q = call("cat.default", (Slot(0), Slot(1)), -1, on=(plain, turned))
    latent = b.emit(RmsNorm(1e-5), b.emit(Linear(), h, ref("down"), None), ref("norm"))
    up = b.emit(Linear(), latent, ref("up"), ref("up.bias") if bias else None)
    up = call("reshape.default", Slot(0), [BATCH, TOKENS, HEADS // repeats, PART + VALUE], on=(up,))
    if repeats > 1:
        up = call("repeat_interleave.self_int", Slot(0), repeats, 2, on=(up,))
    k, v = b.node(aten("split_with_sizes.default", Slot(0), [PART, VALUE], -1), up).outputs
    rotary = call("unsqueeze.default", Slot(0), 2, on=(b.emit(Linear(), h, ref("rotary"), None),))
    rotary = b.emit(Rope(), rotary, positions, ref("inv_freq"))
    k = call(
        "cat.default",
        (Slot(0), Slot(1)),
        -1,
        on=(k, call("expand.default", Slot(0), [-1, -1, HEADS, -1], on=(rotary,))),
    )
    y = b.emit(Attention(scale=0.3), q, k, v, mask, *[None] * 5)
    y = b.emit(Linear(), call("reshape.default", Slot(0), [BATCH, TOKENS, HEADS * VALUE], on=(y,)), ref("o"), None)
    logits = b.emit(Linear(), call("add.Tensor", Slot(0), Slot(1), on=(h, y)), ref("embedding"), None)
    return module.with_function(b.finish([logits], ["logits"]))


def narrowed(module: Module) -> tuple[Module, tuple[str, ...]]:
    result = NarrowAttention().apply(module, Context())
    verify(result.module)
    return result.module, result.refusals


def states_of(module: Module) -> dict[str, str]:
    derived = DerivePrograms().apply(module, Context()).module
    assert DerivePrograms().ensures(module, derived, Context()) == ()
    return {name: str(state.type) for name, state in derived.states.items()}


def test_a_latent_is_cached_in_place_of_keys_and_values() -> None:
    module = latent_decoder(rank=7)
    wide = states_of(module)
    assert wide == {"cache.0.k": f"f32[B, C, {HEADS}, {PART + ROTARY}]", "cache.0.v": f"f32[B, C, {HEADS}, {VALUE}]"}
    narrow, refusals = narrowed(module)
    assert not refusals
    assert states_of(narrow) == {"cache.0.kv": f"f32[B, C, 1, {7 + ROTARY}]"}


def test_meaning_is_kept() -> None:
    module = latent_decoder(rank=7)
    ids = torch.randint(0, VOCABULARY, (2, 6), generator=torch.Generator().manual_seed(1))
    inputs = [ids, torch.ones(2, 6, dtype=torch.bool)]
    before, after = (Interpreter(m, promote=True).run("forward", inputs)[0] for m in (module, narrowed(module)[0]))
    assert float((before - after).abs().max()) < 1e-12


def test_what_would_cost_more_than_it_saves_stays() -> None:
    """60 elements a position follow from 34, at 4.53 times the work: the gain is smaller than the cost."""
    module = latent_decoder(rank=30)
    same, refusals = narrowed(module)
    assert same is module
    assert len(refusals) == 1
    assert (
        "keys and values of 60 elements a position follow from 34, but attention over these is 4.53 times"
        in refusals[0]
    )


def test_a_projection_with_a_bias_stays() -> None:
    module = latent_decoder(rank=7, bias=True)
    same, refusals = narrowed(module)
    assert same is module and "the projection of its keys and values has a bias" in refusals[0]


@pytest.mark.parametrize("repeats", [2, 4])
def test_heads_that_repeat_are_cached_once(repeats: int) -> None:
    """With a latent too wide to be absorbed, what is left is the heads that are not alike."""
    narrow, _ = narrowed(latent_decoder(rank=40, repeats=repeats))
    left = HEADS // repeats
    assert states_of(narrow) == {
        "cache.0.k": f"f32[B, C, {left}, {PART + ROTARY}]",
        "cache.0.v": f"f32[B, C, {left}, {VALUE}]",
    }
