"""What operations declare about their indices holds: drawn elements of the declared groups go through drawn instances."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from planish.ir.spaces.action import act
from planish.ir.spaces.laws import Family, Law
from planish.testing.acting import draw, solutions
from planish.testing.laws import DRAWN, Tensors, drawn_laws, same


def acted(tensors: Tensors, terms: object, law: Law, kind: str, change: object) -> Tensors:
    found = []
    for number, (tensor, of) in enumerate(zip(tensors, terms)):  # type: ignore[arg-type]
        place = next((p for p in law.places if (p.kind, p.number) == (kind, number)), None)
        found.append(tensor if tensor is None or place is None else change(tensor, of, place).contiguous())  # type: ignore[operator]
    return tuple(found)


@pytest.mark.parametrize("name", DRAWN)
def test_declared_matrices_scales_and_signs_go_through(name: str) -> None:
    fired: Counter[str] = Counter()
    for seed, op, operands, results, indexing, law, atom in drawn_laws(name):
        count, generator = int(atom.size), torch.Generator().manual_seed(seed)  # type: ignore[call-overload]
        matrix = draw(law.family, count, generator)

        def rotated(tensor, of, place, law=law, atom=atom, matrix=matrix):  # type: ignore[no-untyped-def]
            if law.family > Family.PERMUTATION and not tensor.is_floating_point():
                return tensor
            return act(tensor, of, atom, matrix, law.places[place] < 0)

        moved = op.evaluate(*acted(operands, indexing.operands, law, "operand", rotated))
        assert same(moved, acted(results, indexing.results, law, "result", rotated)), (seed, law, "matrix")
        fired[law.family.name] += 1
        for kind, equations, modulus in (("scale", law.scales, 0), ("sign", law.signs, 2)):
            for exponents in solutions(equations, [*law.places], modulus)[:6]:
                tensors = [((operands if p.kind == "operand" else results)[p.number], p) for p in law.places]
                if not all(t is None or t.is_floating_point() or not exponents.get(p) for t, p in tensors):
                    continue
                random = torch.rand(count, generator=generator, dtype=torch.float64)
                base = torch.where(random < 0.5, -1.0, 1.0) if modulus else 0.5 + random

                def scaled(tensor, of, place, atom=atom, base=base, exponents=exponents):  # type: ignore[no-untyped-def]
                    return act(tensor, of, atom, torch.diag(base ** exponents[place]))

                moved = op.evaluate(*acted(operands, indexing.operands, law, "operand", scaled))
                assert same(moved, acted(results, indexing.results, law, "result", scaled)), (seed, law, kind)
                fired[kind] += 1
    assert fired, f"{name} declares nothing that was tried"


@pytest.mark.parametrize("name", DRAWN)
def test_no_larger_family_goes_through(name: str) -> None:
    """A declared family is the largest of the five: an element of the next one changes the result of drawn instances."""
    loose: Counter[Family] = Counter()
    tight: Counter[Family] = Counter()
    for seed, op, operands, results, indexing, law, atom in drawn_laws(name):
        floats = all(t is None or t.is_floating_point() for t in (*operands, *results))
        count = int(atom.size)  # type: ignore[call-overload]
        if law.family == Family.GENERAL or count < 3 or not floats:
            continue
        matrix = draw(Family(law.family + 1), count, torch.Generator().manual_seed(seed))

        def turned(tensor, of, place, law=law, atom=atom, matrix=matrix):  # type: ignore[no-untyped-def]
            return act(tensor, of, atom, matrix, law.places[place] < 0)

        moved = op.evaluate(*acted(operands, indexing.operands, law, "operand", turned))
        through = same(moved, acted(results, indexing.results, law, "result", turned))
        (loose if through else tight)[law.family] += 1
    assert not [family for family in loose if not tight[family]], (loose, tight)
