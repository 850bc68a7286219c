"""Taking indices away: what laws say of it holds for drawn instances of every operation."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from planish.ir.errors import IRError
from planish.ir.op import Op
from planish.ir.spaces.action import act
from planish.ir.spaces.laws import Indexing, Place
from planish.ir.spaces.narrowing import Cut, renumber
from planish.ir.spaces.taking import Staying, mask, size_left, take
from planish.ir.spaces.terms import Atom, Product, Sum, Term, atoms
from planish.ir.types import TensorType
from planish.testing.laws import DRAWN, Tensors, drawn_laws, same

# Sizes of their results are not those of their operands' indices.
NEVER = ("softmax.int", "_softmax.default", "log_softmax.int")


def types(tensors: Tensors) -> tuple[TensorType | None, ...]:
    return tuple(None if t is None else TensorType(t.dtype, tuple(t.shape)) for t in tensors)


def zeroed(tensors: Tensors, indexing: Indexing, atom: Atom, gone: torch.Tensor, places: frozenset[Place]) -> Tensors:
    """The operands with zeros at some indices of an atom."""
    found = []
    for number, (tensor, terms) in enumerate(zip(tensors, indexing.operands, strict=True)):
        if tensor is not None and terms is not None and Place("operand", number) in places:
            tensor = act(tensor, terms, atom, (~gone).to(tensor.dtype))
        found.append(tensor)
    return tuple(found)


def narrowed(op: Op, operands: Tensors, results: Tensors, indexing: Indexing, staying: Staying) -> Tensors:
    """What the operation gives over the indices that stay."""
    taken = tuple(
        None if o is None or terms is None else take(o, terms, staying) for o, terms in zip(operands, indexing.operands)
    )
    kept = tuple(None if terms is None else tuple(mask(t, staying) for t in terms) for terms in indexing.operands)
    left = tuple(
        TensorType(r.dtype, tuple(size_left(t, staying) for t in terms))
        for r, terms in zip(results, indexing.results)
        if r is not None
    )
    new = op.narrowed(Cut(kept, types(operands), types(taken), left))
    gained = list(taken)
    for number, gain in new.gains.items():
        old, like = taken[number], taken[0]
        assert like is not None
        gained[number] = torch.full((like.shape[-1],), gain, dtype=like.dtype) if old is None else old * gain
    for number, staying_there in new.renumbered.items():
        integers = gained[number]
        assert integers is not None
        gained[number] = renumber(integers, staying_there)
    first, *rest = new.op.evaluate(*gained)
    if types((first, *rest)) != left:
        raise IRError(f"{op.name} gives another shape")
    return (first if new.factor == 1 else first * new.factor, *rest)


@pytest.mark.parametrize("name", DRAWN)
def test_indices_are_taken_away_as_laws_say(name: str) -> None:
    fired: Counter[str] = Counter()
    for seed, op, operands, _, indexing, law, atom in drawn_laws(name):
        count, generator = int(atom.size), torch.Generator().manual_seed(seed)  # type: ignore[call-overload]
        if law.silent is None or count < 2:
            continue
        gone = torch.zeros(count, dtype=torch.bool)
        gone[torch.randperm(count, generator=generator)[: 1 + seed % (count - 1)]] = True
        for silent in law.silent or (frozenset(),):
            before = zeroed(operands, indexing, atom, gone, silent)
            results = op.evaluate(*before)
            if law.reads is not None:
                gone[operands[law.reads.number]] = False  # type: ignore[index]
            staying = {atom: ~gone}
            try:
                got = narrowed(op, before, results, indexing, staying)
            except IRError as error:
                assert "selects" in str(error) or name.startswith("squeeze"), error
                continue
            want = tuple(
                None if r is None else take(r, terms, staying)
                for r, terms in zip(results, indexing.results, strict=True)
            )
            assert same(got, want), (seed, law, silent)
            fired["alone" if not law.silent else "silent"] += 1
    assert fired or name in NEVER, f"{name} allows nothing to be taken away"


@pytest.mark.parametrize("name", DRAWN)
def test_operands_that_vanish_make_results_vanish(name: str) -> None:
    for seed, op, operands, _, indexing, law, atom in drawn_laws(name):
        count = int(atom.size)  # type: ignore[call-overload]
        gone = torch.arange(count) == seed % count
        for places in law.vanishing:
            results = op.evaluate(*zeroed(operands, indexing, atom, gone, places))
            for number, (result, terms) in enumerate(zip(results, indexing.results, strict=True)):
                if Place("result", number) in law.places:
                    assert result is not None
                    cleared = act(result, terms, atom, (~gone).to(result.dtype))
                    assert torch.allclose(result, cleared, 0, 0, equal_nan=True), (seed, law, places)


def test_what_is_silent_has_to_be() -> None:
    """Where one set of operands must be zero, numbers in its place change what stays."""
    loud: Counter[str] = Counter()
    tried: Counter[str] = Counter()
    for name in (
        "linear",
        "quantized_linear",
        "conv2d",
        "attention",
        "rms_norm",
        "quantize_activation",
        "matmul.default",
    ):
        for seed, op, operands, results, indexing, law, atom in drawn_laws(name):
            if law.silent and int(atom.size) > 1:  # type: ignore[call-overload]
                staying = {atom: torch.arange(int(atom.size)) != seed % int(atom.size)}  # type: ignore[call-overload]
                got = narrowed(op, operands, results, indexing, staying)
                want = tuple(None if r is None else take(r, t, staying) for r, t in zip(results, indexing.results))
                tried[name] += 1
                loud[name] += not same(got, want)
    # One entry of a row is the largest, which sets the scale of its codes.
    assert all(loud[name] >= (0.1 if name == "quantize_activation" else 0.5) * tried[name] > 0 for name in tried), loud
    assert len(tried) == 7


def test_masks_of_terms() -> None:
    heads, inner, other = Atom(2), Atom(3), Atom(4)
    term: Term = Sum((Product((heads, inner)), other))
    staying = {heads: torch.tensor([False, True]), other: torch.tensor([True, False, False, True])}
    found = mask(term, staying)
    assert found is not None and found.tolist() == [False] * 3 + [True] * 3 + [True, False, False, True]
    assert size_left(term, staying) == 5
    assert mask(Product((inner,)), staying) is None
    assert list(atoms(term)) == [heads, inner, other]
    assert take(torch.arange(10), [term], staying).tolist() == [3, 4, 5, 6, 9]
