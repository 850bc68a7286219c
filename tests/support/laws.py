"""Drawn instances of all operations with the laws that they declare, and when results are the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeAlias

import torch

from planish.ir import Op
from planish.ir.op import Chooser, Sample
from planish.ir.ops import OPS, Aten
from planish.ir.ops.aten import Slot, aten
from planish.ir.ops.aten_indexing import ATEN_INDEXING
from planish.ir.ops.aten_samples import ATEN_SAMPLES
from planish.ir.spaces.laws import Indexing, Law
from planish.ir.spaces.terms import Atom, atoms
from planish.ir.types import TensorType
from planish.testing.rules import SeededChooser
from planish.testing.tensors import operand_tensors

Tensors: TypeAlias = "tuple[torch.Tensor | None, ...]"
SEEDS = 25


def _sampled(overload: str, rank: int, *arguments: object) -> Callable[[Chooser], Sample]:
    """Calls on a tensor of a rank, of asymmetric small sizes."""

    def sample(choose: Chooser) -> Sample:
        x = TensorType(torch.float64, tuple(choose.integer(2, 5) for _ in range(rank)))
        return Sample(aten(overload, Slot(0), *arguments), (x,))  # type: ignore[arg-type]

    return sample


def _indexed(choose: Chooser) -> Sample:
    """One axis of a tensor, the first or the second, at places of one or two axes."""
    x = TensorType(torch.float64, tuple(choose.integer(2, 5) for _ in range(3)))
    index = TensorType(torch.int64, tuple(choose.integer(1, 4) for _ in range(choose.integer(1, 2))))
    return Sample(aten("index.Tensor", Slot(0), (None,) * choose.integer(0, 1) + (Slot(1),)), (x, index))


# Operators that have laws and no axis rule, whose calls are drawn here.
WITHOUT_AXES: dict[str, Callable[[Chooser], Sample]] = {
    "index.Tensor": _indexed,
    "topk.default": _sampled("topk.default", 3, 2, -2),
    "unbind.int": _sampled("unbind.int", 3, -2),
    "max_pool2d.default": _sampled("max_pool2d.default", 4, (2, 2), (1, 1)),
    "avg_pool2d.default": _sampled("avg_pool2d.default", 4, (2, 2), (1, 1)),
    "adaptive_avg_pool2d.default": _sampled("adaptive_avg_pool2d.default", 4, (2, 1)),
}
DRAWN = sorted({*OPS} - {"aten"}) + sorted({*ATEN_INDEXING} & {*ATEN_SAMPLES, *WITHOUT_AXES})


def instance(name: str, seed: int) -> tuple[Op, Tensors, Indexing] | None:
    """A drawn call, its operands in float64 and what it says of their indices; None for a barrier."""
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
