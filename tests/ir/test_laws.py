"""What operations declare about their indices holds: drawn elements of the declared groups go through drawn instances."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator

import pytest
import torch

from planish.ir import Op
from planish.ir.op import Chooser, Sample
from planish.ir.ops import OPS, Aten
from planish.ir.ops.aten import Slot, aten
from planish.ir.ops.aten_indexing import ATEN_INDEXING
from planish.ir.ops.aten_samples import ATEN_SAMPLES
from planish.ir.spaces.action import act
from planish.ir.spaces.laws import Family, Indexing, Law
from planish.ir.spaces.terms import Atom, atoms
from planish.ir.types import TensorType
from planish.testing.acting import draw, solutions
from planish.testing.rules import SeededChooser
from planish.testing.tensors import operand_tensors

Tensors = tuple[torch.Tensor | None, ...]
SEEDS = 25


def _sampled(overload: str, rank: int, *arguments: object) -> Callable[[Chooser], Sample]:
    """Calls on a tensor of a rank, of asymmetric small sizes."""

    def sample(choose: Chooser) -> Sample:
        x = TensorType(torch.float64, tuple(choose.integer(2, 5) for _ in range(rank)))
        return Sample(aten(overload, Slot(0), *arguments), (x,))  # type: ignore[arg-type]

    return sample


# Operators that have laws and no axis rule, whose calls are drawn here.
WITHOUT_AXES: dict[str, Callable[[Chooser], Sample]] = {
    "unbind.int": _sampled("unbind.int", 3, -2),
    "max_pool2d.default": _sampled("max_pool2d.default", 4, (2, 2), (1, 1)),
    "avg_pool2d.default": _sampled("avg_pool2d.default", 4, (2, 2), (1, 1)),
    "adaptive_avg_pool2d.default": _sampled("adaptive_avg_pool2d.default", 4, (2, 1)),
}
DRAWN = sorted({*OPS} - {"aten"}) + sorted({*ATEN_INDEXING} & {*ATEN_SAMPLES, *WITHOUT_AXES})


def instance(name: str, seed: int) -> tuple[Op, Tensors, Indexing] | None:
    chooser = SeededChooser(seed)
    if name in WITHOUT_AXES:
        sample = WITHOUT_AXES[name](chooser)
    else:
        sample = Aten.sample_overload(name, chooser) if "." in name else OPS[name].sample(chooser)
    types = tuple(
        None if t is None else t.with_dtype(torch.float64) if t.dtype.is_floating_point else t for t in sample.operands
    )
    generator = torch.Generator().manual_seed(seed)
    operands = operand_tensors(sample.op, types, generator)
    operands = tuple(
        o if o is None or not o.is_floating_point() else o + torch.randn(o.shape, generator=generator, dtype=o.dtype)
        for o in operands
    )
    indexing = sample.op.indexing(*types)
    return None if indexing is None else (sample.op, operands, indexing)


def acted(tensors: Tensors, terms: object, law: Law, kind: str, change: object) -> Tensors:
    found = []
    for number, (tensor, of) in enumerate(zip(tensors, terms)):  # type: ignore[arg-type]
        place = next((p for p in law.places if (p.kind, p.number) == (kind, number)), None)
        found.append(tensor if tensor is None or place is None else change(tensor, of, place).contiguous())  # type: ignore[operator]
    return tuple(found)


def same(one: Tensors, other: Tensors) -> bool:
    """Up to the rounding of the results' own dtype."""
    for a, b in zip(one, other, strict=True):
        assert a is not None and b is not None
        error = 64 * torch.finfo(a.dtype).eps if a.is_floating_point() else 0
        size = float(b.double().nan_to_num(0, 0, 0).abs().amax()) if b.numel() else 0
        if not torch.allclose(
            a.double(), b.double(), rtol=error, atol=error * max(1, size) + 1e-9 * size, equal_nan=True
        ):
            return False
    return True


def drawn_laws(name: str) -> Iterator[tuple[int, Op, Tensors, Tensors, Indexing, Law, Atom]]:
    """Drawn instances of an operation, with each of their laws and each atom of its term."""
    for seed in range(SEEDS):
        found = instance(name, seed)
        if found is not None:
            op, operands, indexing = found
            for law in indexing.laws:
                for atom in dict.fromkeys(atoms(law.term)):
                    yield seed, op, operands, op.evaluate(*operands), indexing, law, atom


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
