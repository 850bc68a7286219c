"""The law of derivation: a sequence read in pieces gives what it gives when read whole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from planish.ir.interpret import Interpreter
from planish.ir.module import Module, ParamRef
from planish.ir.ops import Embedding
from planish.passes.derive.plan import Inputs

# Asymmetric and small: two rows of different lengths, read as prefill, extend and two single tokens.
WHOLE, PREFIX, MIDDLE, SOURCES = (9, 7), (4, 3), (3, 2), (4, 6)
CAPACITY = 16


def split_faults(module: Module, names: Inputs, seed: int) -> tuple[str, ...]:
    """Sentences about programs that disagree with the function; empty when none does.

    Everything runs in float64, and a difference counts when it exceeds 4 times the source's own difference between
    float32 and float64 on the same tokens.
    """
    texts = _Texts.draw(module, names, seed)
    whole, allowed = _reference(module, names, texts)
    run, tokens = Interpreter(module, promote=True).run, names.tokens
    states, more = None, {}
    if names.source is not None:
        sources, length = _piece(texts.sources, (0, 0), SOURCES), torch.tensor(SOURCES)
        states = run("encode", {names.source: sources, "length": length}, bindings={"C": CAPACITY}).states
        more = {"source_length": length}
    inputs = {tokens: _piece(texts.rows, (0, 0), PREFIX), "length": torch.tensor(PREFIX), **more}
    first = run("prefill", inputs, states=states, bindings={"C": CAPACITY})
    faults = _compare("prefill", first[0][:, :1], [whole[b][PREFIX[b] - 1 : PREFIX[b]] for b in range(2)], allowed)
    middle = _piece(texts.rows, PREFIX, MIDDLE)
    inputs = {tokens: middle, "start": torch.tensor(PREFIX), "length": torch.tensor(MIDDLE), **more}
    second = run("extend", inputs, states=first.states)
    start = [p + m for p, m in zip(PREFIX, MIDDLE)]
    faults += _compare("extend", second[0], [whole[b][PREFIX[b] : start[b]] for b in range(2)], allowed)
    states = second.states
    while all(s < w for s, w in zip(start, WHOLE)):
        inputs = {tokens: _piece(texts.rows, start, (1, 1)), "start": torch.tensor(start), **more}
        step = run("decode", inputs, states=states)
        faults += _compare("decode", step[0], [whole[b][start[b] : start[b] + 1] for b in range(2)], allowed)
        start, states = [s + 1 for s in start], step.states
    return tuple(faults)


@dataclass(frozen=True)
class _Texts:
    """Two rows of token ids within every table that embeds them, and two of the source's."""

    rows: list[torch.Tensor]
    sources: list[torch.Tensor]

    @staticmethod
    def draw(module: Module, names: Inputs, seed: int) -> _Texts:
        program = module.functions[names.function]
        tables = [n.inputs[1] for n in program.nodes if isinstance(n.op, Embedding) and n.inputs[0] in program.inputs]
        entries = min([int(t.type.shape[0]) for t in tables if isinstance(t, ParamRef)], default=2)
        generator = torch.Generator().manual_seed(seed)
        rows, sources = (
            [torch.randint(0, entries, (length,), generator=generator) for length in lengths]
            for lengths in (WHOLE, SOURCES)
        )
        return _Texts(rows, sources)


def _piece(ids: list[torch.Tensor], start: Sequence[int], count: Sequence[int]) -> torch.Tensor:
    """Left-aligned tokens of each row from `start`, zeros after them."""
    piece = torch.zeros(len(ids), max(count), dtype=torch.int64)
    for row, tokens in enumerate(ids):
        piece[row, : count[row]] = tokens[start[row] : start[row] + count[row]]
    return piece


def _reference(module: Module, names: Inputs, texts: _Texts) -> tuple[list[torch.Tensor], float]:
    """The whole rows in float64, and 4 times the largest difference that float32 makes on them.

    Rows are padded on the left where there is a mask to say so; else on the right, where a causal function reads nothing.
    """
    function = module.functions[names.function]
    longest = max(len(row) for row in texts.rows)
    masked = any(v.name == names.padding for v in function.inputs)
    places = torch.stack([torch.arange(longest) >= longest - len(r) for r in texts.rows])
    if not masked:
        places = places.flip(1)
    ids = torch.zeros(len(texts.rows), longest, dtype=torch.int64)
    ids[places] = torch.cat(texts.rows)
    inputs = {names.tokens: ids, names.padding: places}
    if names.source is not None and names.source_padding is not None:
        inputs[names.source] = _piece(texts.sources, (0, 0), SOURCES)
        inputs[names.source_padding] = torch.arange(max(SOURCES)) < torch.tensor(SOURCES).unsqueeze(1)
    named = {v.name: inputs[v.name] for v in function.inputs}
    exact, rounded = (Interpreter(module, promote=p).run(names.function, named)[0] for p in (True, False))
    rows = [exact[b, places[b]] for b in range(len(texts.rows))]
    return rows, 4 * float((exact - rounded.to(torch.float64))[places].abs().max())


def _compare(program: str, got: torch.Tensor, want: list[torch.Tensor], allowed: float) -> list[str]:
    faults = []
    for row, expected in enumerate(want):
        difference = float((got[row, : len(expected)] - expected).abs().max())
        if not difference <= allowed:
            faults.append(
                f"{program} differs from the whole sequence by {difference:.3g} in row {row}, more than {allowed:.3g}"
            )
    return faults
