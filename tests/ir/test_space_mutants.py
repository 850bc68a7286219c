"""Faults planted into laws of operations are found on random modules: by an element that changes a function where a law was
made wider, and by one that changes nothing where it was made narrower.

Mutants come from the laws themselves: of every law that an operation states, its family one larger or one smaller, an
equation of its scales or signs left out, or none of them let through. One that declares no other group in any of the
modules (rows of a batch, which inputs fix anyway) is no mutant. The table is printed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from itertools import islice

import pytest
import torch

from planish.ir import Module
from planish.ir.ops import OPS
from planish.ir.ops.aten_indexing import ATEN_INDEXING
from planish.ir.spaces.analysis import Space, Spaces, find_spaces
from planish.ir.spaces.laws import Family, Indexing, Law, none
from planish.ir.spaces.solutions import solutions
from planish.testing.rules import SeededChooser
from planish.testing.spaced_modules import spaced_module, trial
from planish.testing.trials import has_twice, of_parameters, parameters, slack, violations

Change = Callable[[Law], Law | None]
POOL = 120
"""How many modules there are to find a fault in."""
FEW = 5
"""Of how many parameters of a space all sets are given signs; of more, drawn ones."""


def _wider(law: Law) -> Law | None:
    return replace(law, family=Family(law.family + 1)) if law.family < Family.GENERAL else None


def _narrower(law: Law) -> Law | None:
    return replace(law, family=Family(law.family - 1)) if law.family > Family.PERMUTATION else None


CHANGES: dict[str, tuple[Change, bool]] = {
    "a larger family": (_wider, True),
    "a smaller family": (_narrower, False),
    "an equation of scales less": (lambda law: replace(law, scales=law.scales[1:]) if law.scales else None, True),
    "an equation of signs less": (lambda law: replace(law, signs=law.signs[1:]) if law.signs else None, True),
    "no scales": (lambda law: replace(law, scales=none(law.places)), False),
    "no signs": (lambda law: replace(law, signs=none(law.places)), False),
}
"""What is done to a law, and whether it declares more than is so."""


def planted(patch: pytest.MonkeyPatch, op: str, number: int, change: Change) -> None:
    """Let an operation, or an ATen overload, state its law of that number (as it lists them) changed."""

    def changed(found: Indexing | None) -> Indexing | None:
        if found is None or number >= len(found.laws):
            return found
        law = change(found.laws[number])
        return found if law is None else replace(found, laws=(*found.laws[:number], law, *found.laws[number + 1 :]))

    if op in OPS:
        indexing = OPS[op].indexing
        patch.setattr(OPS[op], "indexing", lambda self, *operands: changed(indexing(self, *operands)))
    else:
        rule = ATEN_INDEXING[op]
        patch.setitem(ATEN_INDEXING, op, lambda *arguments: changed(rule(*arguments)))


@cache
def pool(seed: int) -> tuple[Module, Spaces, set[str]]:
    """A module with what is declared of it and the operations that it has."""
    module = spaced_module(SeededChooser(seed), seed)
    return module, find_spaces(module), operations(module)


def operations(module: Module) -> set[str]:
    nodes = [node for function in module.functions.values() for node in function.nodes]
    return {node.op.attributes()["overload"] if node.op.name == "aten" else node.op.name for node in nodes}


def differ(spaces: Spaces, mutant: Spaces, more: bool) -> bool:
    """Whether other groups act on parameters; of what would be told too little of, only where that is searched for."""
    for space, other in zip(spaces.spaces, mutant.spaces, strict=True):
        if not space.parameters or space.size == 1:
            continue
        # What fixes the sum of two indices, and is orthogonal, is a permutation.
        families = {s.family for s in (space, other)}
        if len(families - ({Family.CENTRED} if space.size == 2 and Family.PERMUTATION in families else set())) > 1:
            return True
        if (more or not has_twice(spaces, space)) and not (
            alike(space, other, "scale") and alike(space, other, "sign")
        ):
            return True
    return False


def alike(space: Space, other: Space, kind: str) -> bool:
    """Whether two spaces declare the same scales (or signs) of the same parameters."""
    names, modulus = parameters(space), 2 if kind == "sign" else 0
    one, two = of_parameters(space, kind), of_parameters(other, kind)
    unseen = [len(list(solutions(rows, names, modulus))) for rows in (one, two, [*one, *two])]
    return len(set(unseen)) == 1


def outcome(op: str, number: int, what: str, most: int, tries: int, few: int = FEW) -> str:
    """What becomes of a mutant: "killed", "survived" modules with other groups, or "the same" where none of `most` has any.

    Args:
        tries: of how many modules with other groups one must kill it.
        few: of how many parameters of a space all sets are given signs.
    """
    change, more = CHANGES[what]
    met = 0
    for seed in islice((seed for seed in range(POOL) if op in pool(seed)[2]), most):
        module, spaces, _ = pool(seed)
        with pytest.MonkeyPatch.context() as patch:
            planted(patch, op, number, change)
            mutant = find_spaces(module)
        if not differ(spaces, mutant, more):
            continue
        met += 1
        generator = torch.Generator().manual_seed(seed)
        trials = [trial(module, mutant, seed + each) for each in range(1 if more else 6)]
        if next(violations(trials[0], generator) if more else slack(trials, generator, few), None) is not None:
            return "killed"
        if met == tries:
            break
    return "survived" if met else "the same"


# By the number of a law: of a linear map what it contracts, what it makes, and its rows; of the others their last axis, but
# for attention and rotary embedding (see their `indexing`), and the groups of a convolution.
MUST: list[tuple[str, int, str]] = [
    ("linear", 0, "an equation of scales less"),
    ("linear", 1, "an equation of signs less"),
    ("rms_norm", 0, "a larger family"),
    ("rope", 1, "a larger family"),
    ("rope", 1, "an equation of scales less"),
    ("attention", 1, "an equation of scales less"),
    ("gated_activation", 2, "a larger family"),
    ("gated_activation", 2, "an equation of scales less"),
    ("mul.Tensor", 2, "a larger family"),
    ("relu.default", 2, "an equation of signs less"),
    ("add.Scalar", 2, "a larger family"),
]
MUST_TOO: list[tuple[str, int, str]] = [
    ("linear", 0, "a smaller family"),
    ("linear", 1, "a smaller family"),
    ("linear", 4, "a larger family"),
    ("rms_norm", 0, "a smaller family"),
    ("rms_norm", 0, "an equation of scales less"),
    ("layer_norm", 0, "a larger family"),
    ("attention", 0, "a smaller family"),
    ("attention", 3, "a larger family"),
    ("conv2d", 0, "a smaller family"),
    ("conv2d", 2, "a larger family"),
    ("conv2d", 2, "no scales"),
    ("matmul.default", 0, "a smaller family"),
]


@pytest.mark.parametrize(
    ("op", "number", "what"), [*MUST, *(pytest.param(*of, marks=pytest.mark.full) for of in MUST_TOO)], ids=str
)
def test_a_law_made_wider_or_narrower_is_found(op: str, number: int, what: str) -> None:
    assert outcome(op, number, what, POOL, 4) == "killed"


def all_mutants() -> Iterator[tuple[str, int, str]]:
    found: dict[str, int] = {}
    for module, _, _ in map(pool, range(POOL)):
        for function in module.functions.values():
            for node in function.nodes:
                name = node.op.attributes()["overload"] if node.op.name == "aten" else node.op.name
                indexing = node.op.indexing(*node.input_types)
                if indexing is not None:
                    found[name] = max(found.get(name, 0), len(indexing.laws))
    for name, laws in sorted(found.items()):
        yield from ((name, number, what) for number in range(laws) for what in CHANGES)


@pytest.mark.nightly
def test_all_mutants_of_laws_are_found() -> None:
    table: dict[str, Counter[str]] = {what: Counter() for what in CHANGES}
    survivors = []
    for op, number, what in all_mutants():
        of = outcome(op, number, what, 12, 3)
        if of == "survived":
            # Signs that are told too little of need one set of parameters among many.
            of = outcome(op, number, what, POOL, 12, few=8)
        table[what][of] += 1
        survivors += [(op, number, what)] if of == "survived" else []
    for what, counts in table.items():
        print(f"{what:30} {dict(counts)}")
    assert not survivors
    assert all(counts["killed"] >= 10 for counts in table.values())
