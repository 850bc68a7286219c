"""Derived programs: any split of a sequence equals the whole, and what stands in the way is named."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from planish.ir import Builder, Interpreter, Module, TensorType, UnsupportedError, symbol
from planish.ir.ops import Attention, Slot, aten
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
    module = derive(tiny_decoder(window=window, seed=seed), "forward", "input_ids", "attention_mask")
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
        derive(module, "forward", "input_ids", "attention_mask")


def test_a_function_without_tokens_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="has no input 'tokens'"):
        derive(tiny_decoder(), "forward", "tokens", "attention_mask")
