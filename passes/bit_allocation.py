"""Which weights get how many bits, so that the whole keeps an average and loses least.

What a format costs a weight is measured: the loss of the network on calibration data when that weight alone is rounded. The
losses of several weights are taken to add up. Each weight begins with its cheapest format and is raised along the lower
convex hull of its (bytes, loss) points, always the step that gains most for a byte, as long as it fits; the loss is then
within one step of the least that any choice of formats has. Source: the greedy solution of multiple-choice knapsacks
(Sinha and Zoltners, 1979).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeVar

import torch

from planish.ir.encodings import Encoding
from planish.ir.errors import InputError
from planish.ir.interpret import Interpreter
from planish.ir.module import Module
from planish.ir.params import InMemory, Param
from planish.passes.calibration.data import Batch
from planish.passes.checking.compare import measure

F = TypeVar("F")
FUNCTION = "forward"


@dataclass(frozen=True)
class Offer:
    """A format of one weight: its bytes, and the loss that it brings."""

    nbytes: int
    loss: float


def allocate(
    module: Module,
    offers: Mapping[str, Mapping[F, Encoding]],
    average_bits: float,
    batches: Sequence[Batch],
    metric: str,
    progress: Callable[[float, str], None],
) -> dict[str, F]:
    """A format for each weight, with at most `average_bits` of storage for each of their elements together.

    Args:
        module: the network before rounding.
        offers: by weight, the encodings to choose from.
        average_bits: bits per weight, scales included.
        batches: inputs of `forward` on which losses are measured.
        metric: as in `contract.Lossy`.
        progress: called with a fraction and a phrase after each measurement.

    Raises:
        InputError: when even the cheapest formats take more.
    """
    before = [Interpreter(module).run(FUNCTION, batch) for batch in batches]
    measured: dict[str, dict[F, Offer]] = {}
    count, total = 0, sum(len(choices) for choices in offers.values())
    for name, choices in offers.items():
        param, measured[name] = module.params[name], {}
        value = param.value()
        for format, encoding in choices.items():
            rounded = Param(name, param.type, encoding, InMemory(encoding.encode(value)))
            after = Interpreter(module.with_params([rounded]))
            losses = [
                measure(metric, old, new)
                for batch, result in zip(batches, before)
                for old, new in zip(result.outputs.values(), after.run(FUNCTION, batch).outputs.values())
                if old.dtype.is_floating_point
            ]
            loss = float(torch.tensor(losses, dtype=torch.float64).mean()) if losses else 0.0
            measured[name][format] = Offer(encoding.nbytes(param.type), loss)
            count += 1
            progress(count / total, f"{name} as {encoding}: loss {loss:.3g}")
    elements = sum(module.params[name].elements for name in offers)
    return choose(measured, int(average_bits * elements / 8))


def choose(offers: Mapping[str, Mapping[F, Offer]], limit: int) -> dict[str, F]:
    """A format for each name, with at most `limit` bytes together; raises InputError when there is no such choice."""
    hulls = {name: _hull(choices) for name, choices in offers.items()}
    place = dict.fromkeys(hulls, 0)
    used = sum(hull[0][1].nbytes for hull in hulls.values())
    if used > limit:
        raise InputError(
            f"the cheapest formats already take {used} bytes, and the average of bits allows {limit}; "
            f"raise it, or offer formats with fewer bits"
        )
    steps = sorted(
        (-(low.loss - high.loss) / (high.nbytes - low.nbytes), name, n)
        for name, hull in hulls.items()
        for n, ((_, low), (_, high)) in enumerate(pairwise(hull))
    )
    for _, name, n in steps:
        low, high = hulls[name][n][1], hulls[name][n + 1][1]
        # A step that does not fit ends its weight's ascent; smaller ones of others may still fit.
        if place[name] == n and used + high.nbytes - low.nbytes <= limit:
            place[name], used = n + 1, used + high.nbytes - low.nbytes
    return {name: hulls[name][n][0] for name, n in place.items()}


def _hull(choices: Mapping[F, Offer]) -> list[tuple[F, Offer]]:
    """The offers on the lower convex hull, from the cheapest to the one that loses least: each step up gains less for a
    byte than the one before."""
    hull: list[tuple[F, Offer]] = []
    for format, offer in sorted(choices.items(), key=lambda item: (item[1].nbytes, item[1].loss)):
        if hull and offer.loss >= hull[-1][1].loss:
            continue
        while len(hull) > 1 and _gain(hull[-2][1], hull[-1][1]) <= _gain(hull[-2][1], offer):
            hull.pop()
        hull.append((format, offer))
    return hull


def _gain(low: Offer, high: Offer) -> float:
    return (low.loss - high.loss) / (high.nbytes - low.nbytes)
