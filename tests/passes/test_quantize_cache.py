"""Caches in few bits: which states are chosen, what is lost and by whom it is noticed, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from planish.ir import (
    Builder,
    Float8,
    GroupedInt,
    InputError,
    Interpreter,
    Module,
    TensorType,
    dense_param,
    parse_module,
    symbol,
    verify,
)
from planish.ir.encodings import rounded
from planish.ir.ops import Attention, Embedding, Linear, Slot, aten
from planish.passes.derive_programs import DerivePrograms
from planish.passes.manager import PassManager
from planish.passes.pass_base import Context, PassError
from planish.passes.quantize_cache import QuantizeCache, attended_states
from planish.standard import lowering
from planish.testing.tiny_decoder import tiny_decoder

SIZE, ROWS, CAPACITY = 8, 2, 16
NOISE = 2.0**-40
"""Relative, of float64 evaluations: far above their roundings, far below a step of any code."""
FORMATS: list[dict[str, Any]] = [
    {},
    {"keys": "int4", "values": "int4", "scales": "float32"},
    {"keys": "int4", "values": "int8", "zero_points": True, "scales": "bfloat16"},
    {"keys": "fp8", "values": "fp8"},
    {"keys": "fp8", "values": None},
    {"keys": None, "values": "int8", "group": 4},
]


def derived(**options: Any) -> Module:
    return DerivePrograms().apply(tiny_decoder(size=SIZE, **options), Context()).module


def quantized(module: Module, **options: Any) -> Module:
    result = QuantizeCache(**options).apply(module, Context()).module
    verify(result)
    return result


def latent() -> Module:
    """A layer whose keys and values are one tensor."""
    generator = torch.Generator().manual_seed(4)
    params = {n: dense_param(n, torch.randn(11, SIZE, generator=generator)) for n in ("table", "head")}
    module, b, batch, length = Module({}, params), Builder("forward"), symbol("B"), symbol("S")
    ids = b.input("input_ids", TensorType(torch.int64, (batch, length)))
    h = b.emit(Embedding(), ids, module.param_ref("table"))
    heads = b.emit(aten("view.default", Slot(0), [batch, length, 1, SIZE]), h)
    attended = b.emit(Attention(scale=0.4), heads, heads, heads, *[None] * 6)
    flat = b.emit(aten("view.default", Slot(0), [batch, length, SIZE]), attended)
    logits = b.emit(Linear(), flat, module.param_ref("head"), None)
    return DerivePrograms().apply(module.with_function(b.finish([logits], ["logits"])), Context()).module


def extended(module: Module, ids: torch.Tensor, cuts: list[int]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Logits of all tokens and the states after them, read in pieces that end at `cuts`, in float64."""
    run, states, found, start = Interpreter(module, promote=True).run, None, [], 0
    for end in [*cuts, ids.shape[1]]:
        rows = torch.full((ids.shape[0],), 1, dtype=torch.int64)
        inputs = {"input_ids": ids[:, start:end], "start": rows * start, "length": rows * (end - start)}
        result = run("extend", inputs, states=states, bindings={"C": CAPACITY})
        found.append(result[0])
        states, start = result.states, end
    assert states is not None
    return torch.cat(found, 1), states


def tokens(count: int = 13) -> torch.Tensor:
    return torch.randint(0, 11, (ROWS, count), generator=torch.Generator().manual_seed(9))


def test_keys_and_values_are_read_off_the_data_flow() -> None:
    module = derived()
    roles = {"cache.0.k": {"keys"}, "cache.0.v": {"values"}, "cache.1.k": {"keys"}, "cache.1.v": {"values"}}
    assert attended_states(module) == (roles, ())
    result = QuantizeCache(keys="int4", values=None).apply(module, Context())
    assert result.matches == 2 and not result.refusals
    assert {n: s.encoding for n, s in result.module.states.items()} == {
        "cache.0.k": GroupedInt(4, SIZE), "cache.0.v": None, "cache.1.k": GroupedInt(4, SIZE), "cache.1.v": None,
    }  # fmt: skip
    # Two heads of 8 elements in two layers: before 4 bytes each, then half of one and a scale of 2 bytes to a head.
    assert result.details == {"bytes a token before": 2 * 2 * 8 * 4, "bytes a token": 2 * 2 * (8 // 2 + 2)}
    assert result.module.functions["forward"] is module.functions["forward"], "what keeps no state stays"


@pytest.mark.full
@pytest.mark.parametrize("options", FORMATS)
def test_the_manager_holds_it_to_its_budget_and_what_follows_is_exact(options: dict[str, Any]) -> None:
    module, report = PassManager([DerivePrograms(), QuantizeCache(**options), *lowering()]).run(tiny_decoder(size=SIZE))
    outcome = report.passes[1].outcome
    assert outcome is not None
    losses = {w.place: w.difference for w in outcome.whole}
    assert losses["prefill, output 'logits'"] > 0 == losses["forward, output 'logits'"]
    assert any(state.encoding is not None for state in module.states.values())


@pytest.mark.parametrize("options", FORMATS[:4])
def test_any_split_equals_the_whole(options: dict[str, Any]) -> None:
    module, ids = quantized(derived(), **options), tokens()
    whole, held = extended(module, ids, [])
    logits, states = extended(module, ids, [1, 5, 6])
    assert float((logits - whole).abs().max()) <= NOISE * float(whole.abs().max())
    assert all(float((states[n] - held[n]).abs().max()) <= NOISE * float(held[n].abs().max()) for n in held)


def test_prefill_reads_what_decode_will_read() -> None:
    """The last logits of prefill are those of a decode that finds the earlier tokens in the cache."""
    module, ids = quantized(derived(), keys="int4", values="int4"), tokens()
    count = torch.full((ROWS,), 13)
    first = Interpreter(module, promote=True).run(
        "prefill", {"input_ids": ids, "length": count}, bindings={"C": CAPACITY}
    )
    _, states = extended(module, ids[:, :12], [])
    last = Interpreter(module, promote=True).run(
        "decode", {"input_ids": ids[:, 12:], "start": count - 1}, states=states
    )
    assert float((first[0] - last[0]).abs().max()) <= NOISE * float(first[0].abs().max())


def test_rows_are_rounded_once() -> None:
    """The first layer's keys do not depend on any cache: what is held is what plain rounding leaves of them."""
    module, ids = derived(), tokens()
    _, plain = extended(module, ids, [])
    for encoding, options in (
        (GroupedInt(8, SIZE), {}),
        (GroupedInt(4, 4, torch.float32), {"keys": "int4", "group": 4, "scales": "float32"}),
        (Float8(), {"keys": "fp8"}),
    ):
        _, held = extended(quantized(module, **options), ids, [3])  # type: ignore[arg-type]
        want = rounded(encoding, plain["cache.0.k"])
        assert float((held["cache.0.k"] - want)[:, :13].abs().max()) <= NOISE * float(want.abs().max())


def test_fewer_bits_lose_more() -> None:
    module, ids = derived(), tokens()
    exact, _ = extended(module, ids, [])
    errors = []
    for options in ({}, {"keys": "fp8", "values": "fp8"}, {"keys": "int4", "values": "int4"}):
        logits, _ = extended(quantized(module, **options), ids, [])
        errors.append(float((logits - exact).norm() / exact.norm()))
    assert 0 < errors[0] < errors[1] < errors[2] < 0.25


def _too_small(scale: Any) -> Any:
    return lambda self, groups: scale(self, groups) / 4


def test_a_wrong_scale_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Elements that saturate at a quarter of the largest one."""
    monkeypatch.setattr(GroupedInt, "scale", _too_small(GroupedInt.scale))
    with pytest.raises(PassError, match="'quantize-cache' breaks its contract"):
        PassManager([QuantizeCache()], reproduce=False).run(derived())


@pytest.mark.parametrize("role", ["keys", "values"])
def test_rows_decoded_at_half_their_size_are_caught(role: str, monkeypatch: pytest.MonkeyPatch) -> None:
    decode = Float8.decode
    monkeypatch.setattr(Float8, "decode", lambda self, storage, type: decode(self, storage, type) / 2)
    options: dict[str, Any] = {"keys": None, "values": None, role: "fp8"}
    with pytest.raises(PassError, match="'quantize-cache' breaks its contract"):
        PassManager([QuantizeCache(**options)], reproduce=False).run(derived())


def test_it_changes_a_state_once() -> None:
    module = quantized(derived())
    again = QuantizeCache(keys="int4").apply(module, Context())
    assert again.module is module and again.matches == 0


def test_without_states_there_is_nothing_to_do() -> None:
    with pytest.raises(InputError, match="the module has no state to quantise; run derive-programs first"):
        QuantizeCache().apply(tiny_decoder(), Context())


def test_what_is_read_as_both_needs_one_answer() -> None:
    module = latent()
    assert attended_states(module)[0] == {"cache.0.kv": {"keys", "values"}}
    assert quantized(module).states["cache.0.kv"].encoding == GroupedInt(8, SIZE)
    sentence = r"state 'cache.0.kv' is read as keys and as values, which ask .* \(keys: int8, values: null\)"
    with pytest.raises(InputError, match=sentence):
        QuantizeCache(values=None).apply(module, Context())


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"group": 3}, r"state 'cache.0.k' .* cannot be held in int8: a group of 3 does not divide the last axis"),
        ({"keys": "fp8", "zero_points": True}, r"floats of eight bits have one scale .* leave out 'zero_points'"),
        ({"values": "fp8", "keys": None, "group": 4}, r"leave out 'group', or hold 'cache.0.v' in integers"),
    ],
)
def test_options_that_do_not_fit_are_refused(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        QuantizeCache(**options).apply(derived(), Context())


OTHERS = """\
state $free: f32[B, C, 1, 8]
state $k: f32[B, C, 1, 8]
state $out: f32[B, C, 1, 8]
state $read: f32[B, C, 1, 8]
state $v: f32[B, C, 1, 8]

func @encode(%x: f32[B, S, 1, 8], %start: i64[B], %length: i64[B]) -> () {
  %k: f32[B, C, 1, 8] = cache_append($k, %x, %start, %length)
  %v: f32[B, C, 1, 8] = cache_append($v, %x, %start, %length)
  return update $k = %k, $v = %v
}
func @step(%q: f32[B, S, 1, 8]) -> (y: f32[B, S, 1, 8], a: f32[B, S, 1, 8], out: f32[B, C, 1, 8]) {
  %y: f32[B, S, 1, 8] = attention(%q, $k, $v, none, none, none, none, none, none) {scale = 0.5, causal = false}
  %a: f32[B, S, 1, 8] = attention(%q, $read, $out, none, none, none, none, none, none) {scale = 0.5, causal = false}
  %0: f32[B, C, 1, 8] = aten.neg.default($read)
  %1: f32[B, S, 1, 8] = attention(%y, $free, %0, none, none, none, none, none, none) {scale = 0.5, causal = false}
  return %1, %a, $out update $free = %0
}
"""


def test_states_that_others_read_stay_as_they_are() -> None:
    """One program fills a state that another one reads; and three states that are more than caches of attention."""
    module = parse_module(OTHERS)
    verify(module)
    result = QuantizeCache(keys="int4").apply(module, Context())
    assert {n: s.encoding for n, s in result.module.states.items() if s.encoding is not None} == {
        "k": GroupedInt(4, 8), "v": GroupedInt(8, 8),
    }  # fmt: skip
    verify(result.module)
    assert sorted(result.refusals) == [
        "state 'free' stays as it is: 'step' updates it otherwise than by cache_append",
        "state 'out' stays as it is: it is a result of 'step'",
        "state 'read' stays as it is: aten reads it, not attention alone",
    ]
