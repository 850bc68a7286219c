"""Derived programs: any split of a sequence equals the whole, and what stands in the way is named."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from planish.ir import Builder, Interpreter, Module, TensorType, UnsupportedError, Value, dense_param, symbol
from planish.ir.ops import Attention, Embedding, Linear, Slot, aten
from planish.passes.derive.plan import Inputs
from planish.passes.derive.programs import derive
from planish.passes.derive_programs import DerivePrograms
from planish.passes.pass_base import Context
from planish.testing.tiny_decoder import tiny_decoder

CAPACITY = 32


def _read_in_pieces(module: Module, rows: list[torch.Tensor], pieces: list[int]) -> list[torch.Tensor]:
    """Logits of every position the programs return, row by row: each call takes up to `piece` tokens of each row."""
    run = Interpreter(module, promote=True).run
    start, states = [0] * len(rows), None
    logits: list[dict[int, torch.Tensor]] = [{} for _ in rows]
    for number, piece in enumerate(pieces):
        counts = [max(1, min(piece, len(r) - s)) if s < len(r) else 1 for r, s in zip(rows, start)]
        if any(s + c > len(r) for r, s, c in zip(rows, start, counts)):
            break
        ids = torch.zeros(len(rows), max(counts), dtype=torch.int64)
        for b, row in enumerate(rows):
            ids[b, : counts[b]] = row[start[b] : start[b] + counts[b]]
        length, at = torch.tensor(counts), torch.tensor(start)
        if number == 0:
            result = run("prefill", {"input_ids": ids, "length": length}, bindings={"C": CAPACITY})
            for b in range(len(rows)):
                logits[b][counts[b] - 1] = result[0][b, 0]
        else:
            single = max(counts) == 1
            inputs = {"input_ids": ids, "start": at} if single else {"input_ids": ids, "start": at, "length": length}
            result = run("decode" if single else "extend", inputs, states=states)
            for b in range(len(rows)):
                for i in range(counts[b]):
                    logits[b][start[b] + i] = result[0][b, i]
        start = [s + c for s, c in zip(start, counts)]
        states = result.states
    return [torch.stack([found[p] for p in sorted(found)]) for found in logits], [sorted(f) for f in logits]  # type: ignore[return-value]


@given(
    lengths=st.lists(st.integers(3, 12), min_size=1, max_size=3),
    pieces=st.lists(st.integers(1, 5), min_size=1, max_size=6),
    window=st.sampled_from([None, 1, 3]),
    seed=st.integers(0, 99),
)
@settings(max_examples=25, deadline=None)
def test_any_split_equals_the_whole(lengths: list[int], pieces: list[int], window: int | None, seed: int) -> None:
    module = derive(tiny_decoder(window=window, seed=seed), Inputs())
    generator = torch.Generator().manual_seed(seed)
    rows = [torch.randint(0, 11, (n,), generator=generator) for n in lengths]
    first = min([pieces[0], *lengths])
    got, positions = _read_in_pieces(module, rows, [first, *pieces[1:]])
    longest = max(lengths)
    padded = torch.stack([torch.cat([torch.zeros(longest - len(r), dtype=torch.int64), r]) for r in rows])
    mask = torch.stack([torch.arange(longest) >= longest - len(r) for r in rows])
    whole = Interpreter(module, promote=True).run("forward", [padded, mask])[0]
    for b, row in enumerate(rows):
        want = whole[b, longest - len(row) :][positions[b]]
        # Promoted runs round in float64; logits are of order one and a few hundred roundings deep.
        assert torch.allclose(got[b], want, rtol=0, atol=1e-11)


def test_the_pass_checks_its_own_law() -> None:
    module = tiny_decoder()
    promise = DerivePrograms()
    result = promise.apply(module, Context())
    assert result.matches == 3
    assert promise.ensures(module, result.module, Context()) == ()


def test_a_program_that_forgets_its_state_is_caught() -> None:
    module = DerivePrograms().apply(tiny_decoder(), Context()).module
    decode = module.functions["decode"]
    forgetful = type(decode)("decode", decode.inputs, decode.nodes, decode.outputs, decode.output_names, {})
    faults = DerivePrograms().ensures(module, module.with_function(forgetful), Context())
    assert faults and all(f.startswith("decode differs from the whole sequence") for f in faults)


def _attending(mix: bool, causal: bool) -> Module:
    b = Builder("forward")
    batch, length = symbol("B"), symbol("S")
    ids = b.input("input_ids", TensorType(torch.int64, (batch, length)))
    h = b.emit(aten("unsqueeze.default", Slot(0), -1), b.emit(aten("unsqueeze.default", Slot(0), -1), ids))
    h = b.emit(aten("_to_copy.default", Slot(0), dtype=torch.float32), h)
    if mix:
        h = b.emit(aten("cumsum.default", Slot(0), 1), h, source="mixer.py:7 in layers.0")
    h = b.emit(Attention(scale=1.0, causal=causal), h, h, h, *[None] * 6, source="attention.py:3")
    return Module({"forward": b.finish([h], ["logits"])})


@pytest.mark.parametrize(
    ("module", "sentence"),
    [
        (_attending(True, True), "aten at mixer.py:7 in layers.0 mixes positions of its operand"),
        (_attending(False, False), "attention at attention.py:3 is not causal: earlier positions read later ones"),
    ],
)
def test_what_mixes_positions_is_named(module: Module, sentence: str) -> None:
    with pytest.raises(UnsupportedError, match=sentence.replace(".", r"\.")):
        derive(module, Inputs())


def test_a_function_without_tokens_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="has no input 'tokens'"):
        derive(tiny_decoder(), Inputs(tokens="tokens"))


SIZE, VOCABULARY = 6, 11


class _Sketch:
    """A causal layer, or one that reads a source too, over hidden states [B, S, 1, SIZE], in as few words as it takes."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(4)
        names = {"table": VOCABULARY, "places": 40, "mix": SIZE, "head": VOCABULARY}
        params = [dense_param(n, torch.randn(rows, SIZE, generator=generator)) for n, rows in names.items()]
        self.module = Module({}, {p.name: p for p in params})
        self.b = Builder("forward")
        self.ids = self.b.input("input_ids", TensorType(torch.int64, (symbol("B"), symbol("S"))))

    def call(self, overload: str, *arguments: object, on: tuple[Value, ...] = (), **keywords: object) -> Value:
        return self.b.emit(aten(overload, *arguments, **keywords), *on)

    def look_up(self, ids: Value, table: str) -> Value:
        return self.b.emit(Embedding(), ids, self.module.param_ref(table))

    def finish(self, hidden: Value) -> Module:
        """With one causal attention and an output head."""
        heads = self.call("unsqueeze.default", Slot(0), 2, on=(hidden,))
        y = self.b.emit(Attention(scale=0.4), heads, heads, heads, *[None] * 6)
        return self.head(self.call("squeeze.dim", Slot(0), 2, on=(y,)))

    def head(self, hidden: Value) -> Module:
        logits = self.b.emit(Linear(), hidden, self.module.param_ref("head"), None)
        return self.module.with_function(self.b.finish([logits], ["logits"]))


@pytest.mark.parametrize("lead", [None, "unsqueeze", "column"])
def test_positions_counted_without_rows_start_where_each_row_does(lead: str | None) -> None:
    """`arange` in place of positions: alone, with a leading axis of one, or through a scaled column."""
    sketch = _Sketch()
    h = sketch.look_up(sketch.ids, "table")
    places = sketch.call("arange.default", symbol("S"))
    if lead == "column":
        column = sketch.call("unsqueeze.default", Slot(0), 1, on=(places,))
        column = sketch.call("_to_copy.default", Slot(0), dtype=torch.float32, on=(column,))
        scaled = sketch.call("mul.Tensor", Slot(0), 0.1, on=(column,))
        h = sketch.call("add.Tensor", Slot(0), Slot(1), on=(h, scaled))
    else:
        places = sketch.call("add.Tensor", Slot(0), 2, on=(places,))
        if lead == "unsqueeze":
            places = sketch.call("unsqueeze.default", Slot(0), 0, on=(places,))
        h = sketch.call("add.Tensor", Slot(0), Slot(1), on=(h, sketch.look_up(places, "places")))
    module = sketch.finish(h)
    derived = DerivePrograms().apply(module, Context()).module
    assert DerivePrograms().ensures(module, derived, Context()) == ()
    assert list(derived.states) == ["cache.0.kv"], "keys and values are one tensor and have one state"


def test_positions_without_rows_may_not_be_mixed() -> None:
    sketch = _Sketch()
    places = sketch.call("arange.default", symbol("S"))
    total = sketch.call("cumsum.default", Slot(0), 0, on=(places,))
    h = sketch.call(
        "add.Tensor", Slot(0), Slot(1), on=(sketch.look_up(sketch.ids, "table"), sketch.look_up(total, "places"))
    )
    with pytest.raises(UnsupportedError, match="mixes positions of its operand 0"):
        derive(sketch.finish(h), Inputs())


def test_states_are_shared_by_the_operations_that_read_one_tensor() -> None:
    sketch = _Sketch()
    h = sketch.look_up(sketch.ids, "table")
    heads = sketch.call("unsqueeze.default", Slot(0), 2, on=(h,))
    first = sketch.b.emit(Attention(scale=0.4), heads, heads, heads, *[None] * 6)
    second = sketch.b.emit(Attention(scale=0.4, window=2), first, heads, heads, *[None] * 6)
    module = sketch.head(sketch.call("squeeze.dim", Slot(0), 2, on=(second,)))
    derived = DerivePrograms().apply(module, Context()).module
    assert DerivePrograms().ensures(module, derived, Context()) == ()
    assert list(derived.states) == ["cache.0.kv"]


SOURCED = DerivePrograms(source="source", source_padding="source_mask")


def _reading_a_source(leak: str | None = None) -> Module:
    """A bidirectional layer over a source, whose results a causal layer reads; `leak` reads them in a wrong way."""
    sketch = _Sketch()
    source = sketch.b.input("source", TensorType(torch.int64, (symbol("B"), symbol("T"))))
    mask = sketch.b.input("source_mask", TensorType(torch.bool, (symbol("B"), symbol("T"))))
    encoded = sketch.call("unsqueeze.default", Slot(0), 2, on=(sketch.look_up(source, "table"),))
    both_ways = Attention(scale=0.4, causal=False)
    encoded = sketch.b.emit(both_ways, encoded, encoded, encoded, mask, *[None] * 5)
    keys = sketch.b.emit(Linear(), encoded, sketch.module.param_ref("mix"), None)
    h = sketch.call("unsqueeze.default", Slot(0), 2, on=(sketch.look_up(sketch.ids, "table"),))
    h = sketch.b.emit(Attention(scale=0.4), h, h, h, *[None] * 6)
    if leak == "mean":
        mean = sketch.call("mean.dim", Slot(0), [1], True, on=(encoded,))
        h = sketch.call("add.Tensor", Slot(0), Slot(1), on=(h, mean))
    crossing = Attention(scale=0.4, causal=leak == "causal")
    h = sketch.b.emit(crossing, h, keys, encoded, mask, *[None] * 5)
    return sketch.head(sketch.call("squeeze.dim", Slot(0), 2, on=(h,)))


def test_a_source_is_encoded_once() -> None:
    module = _reading_a_source()
    derived = SOURCED.apply(module, Context()).module
    assert SOURCED.ensures(module, derived, Context()) == ()
    encode, decode = derived.functions["encode"], derived.functions["decode"]
    assert set(encode.updates) == {"cache.1.k", "cache.1.v"} and set(decode.updates) == {"cache.0.kv"}
    assert [v.name for v in encode.inputs] == ["source", "length"]
    assert [v.name for v in decode.inputs] == ["input_ids", "start", "source_length"]


def test_an_encoder_that_forgets_is_caught() -> None:
    module = SOURCED.apply(_reading_a_source(), Context()).module
    encode = module.functions["encode"]
    forgetful = type(encode)("encode", encode.inputs, encode.nodes, encode.outputs, encode.output_names, {})
    assert SOURCED.ensures(module, module.with_function(forgetful), Context())


@pytest.mark.parametrize(
    ("leak", "sentence"),
    [
        ("mean", "reads what the encoder gives other than as keys and values"),
        ("causal", "attends over something other than the sequence"),
    ],
)
def test_what_reads_the_source_otherwise_is_named(leak: str, sentence: str) -> None:
    with pytest.raises(UnsupportedError, match=sentence):
        SOURCED.apply(_reading_a_source(leak), Context())


def test_a_source_that_is_not_there_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="has no input 'source', so no program `encode` can be derived"):
        SOURCED.apply(tiny_decoder(), Context())
