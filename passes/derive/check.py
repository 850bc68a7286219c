"""The law of derivation: a sequence read in pieces gives what it gives when read whole."""

from __future__ import annotations

import torch

from planish.ir.interpret import Interpreter
from planish.ir.module import Module, ParamRef
from planish.ir.ops import Embedding

# Asymmetric and small: two rows of different lengths, read as prefill, extend and two single tokens.
WHOLE, PREFIX, MIDDLE = (9, 7), (4, 3), (3, 2)


def split_faults(module: Module, function: str, tokens: str, padding: str, seed: int) -> tuple[str, ...]:
    """Sentences about programs that disagree with `function`; empty when none does.

    Everything runs in float64, and a difference counts when it exceeds 4 times the source's own difference between
    float32 and float64 on the same tokens.
    """
    ids = _tokens(module, function, seed)
    whole, allowed = _reference(module, function, tokens, padding, ids)
    run = Interpreter(module, promote=True).run
    first = run("prefill", {tokens: _piece(ids, (0, 0), PREFIX), "length": torch.tensor(PREFIX)}, bindings={"C": 16})
    faults = _compare("prefill", first[0][:, :1], [whole[b][PREFIX[b] - 1 : PREFIX[b]] for b in range(2)], allowed)
    middle = _piece(ids, PREFIX, MIDDLE)
    second = run(
        "extend", {tokens: middle, "start": torch.tensor(PREFIX), "length": torch.tensor(MIDDLE)}, states=first.states
    )
    start = [p + m for p, m in zip(PREFIX, MIDDLE)]
    faults += _compare("extend", second[0], [whole[b][PREFIX[b] : start[b]] for b in range(2)], allowed)
    states = second.states
    while all(s < w for s, w in zip(start, WHOLE)):
        step = run("decode", {tokens: _piece(ids, start, (1, 1)), "start": torch.tensor(start)}, states=states)
        faults += _compare("decode", step[0], [whole[b][start[b] : start[b] + 1] for b in range(2)], allowed)
        start, states = [s + 1 for s in start], step.states
    return tuple(faults)


def _tokens(module: Module, function: str, seed: int) -> list[torch.Tensor]:
    """Two rows of token ids within every table that embeds them."""
    program = module.functions[function]
    tables = [n.inputs[1] for n in program.nodes if isinstance(n.op, Embedding) and n.inputs[0] in program.inputs]
    entries = min([int(t.type.shape[0]) for t in tables if isinstance(t, ParamRef)], default=2)
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, entries, (length,), generator=generator) for length in WHOLE]


def _piece(ids: list[torch.Tensor], start: tuple[int, ...] | list[int], count: tuple[int, ...]) -> torch.Tensor:
    """Left-aligned tokens of each row from `start`, zeros after them."""
    piece = torch.zeros(len(ids), max(count), dtype=torch.int64)
    for row, tokens in enumerate(ids):
        piece[row, : count[row]] = tokens[start[row] : start[row] + count[row]]
    return piece


def _reference(
    module: Module, function: str, tokens: str, padding: str, ids: list[torch.Tensor]
) -> tuple[list[torch.Tensor], float]:
    """The whole rows in float64, and 4 times the largest difference that float32 makes on them. Rows are left-padded."""
    longest = max(len(row) for row in ids)
    inputs = {
        tokens: torch.stack([torch.cat([torch.zeros(longest - len(r), dtype=torch.int64), r]) for r in ids]),
        padding: torch.stack([torch.arange(longest) >= longest - len(r) for r in ids]),
    }
    named = {v.name: inputs[v.name] for v in module.functions[function].inputs}
    exact, rounded = (Interpreter(module, promote=p).run(function, named)[0] for p in (True, False))
    rows = [exact[b, longest - len(r) :] for b, r in enumerate(ids)]
    real = inputs[padding]
    return rows, 4 * float((exact - rounded.to(torch.float64))[real].abs().max())


def _compare(program: str, got: torch.Tensor, want: list[torch.Tensor], allowed: float) -> list[str]:
    faults = []
    for row, expected in enumerate(want):
        difference = float((got[row, : len(expected)] - expected).abs().max())
        if not difference <= allowed:
            faults.append(
                f"{program} differs from the whole sequence by {difference:.3g} in row {row}, more than {allowed:.3g}"
            )
    return faults
