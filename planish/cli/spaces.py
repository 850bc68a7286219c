"""`planish inspect --spaces`: which axes of a model are one, what may be done to them, and what forbids more."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

from planish.cli.output import print_json, table
from planish.ir import Module
from planish.ir.ops import Aten
from planish.ir.spaces.analysis import Limit, Space, find_spaces
from planish.ir.spaces.laws import Family

WORDS = {
    Family.FIXED: "nothing",
    Family.PERMUTATION: "permutations",
    Family.CENTRED: "rotations that fix the sum",
    Family.ORTHOGONAL: "rotations",
    Family.GENERAL: "every invertible matrix",
}


def show_spaces(module: Module, json: bool) -> None:
    """Print the spaces that parameters have; those that differ only by the numbers in names, in one row."""
    found = [_record(space) for space in find_spaces(module).spaces if space.size != 1 and space.parameters]
    if json:
        print_json(found)
        return
    rows: Counter[tuple[str, ...]] = Counter()
    for record in found:
        rows[_row(record)] += 1
    listed = [(row[0], str(count), *row[1:]) for row, count in rows.items()]
    table("Spaces", ("size", "times", "may be acted on by", "scales", "parameters and axes", "because of"), listed)


def _record(space: Space) -> dict[str, Any]:
    return {
        "size": str(space.size),
        "family": space.family.name.lower(),
        "acts": WORDS[space.family],
        "scales": space.scales,
        "signs": space.signs,
        "parameters": [f"{name}[{axis}]" for name, axis in space.parameters],
        "limits": dict(Counter(map(_reason, space.limits))),
    }


def _reason(limit: Limit) -> str:
    """The operation that keeps a space from more, and why."""
    if limit.node is None:
        return limit.sentence
    op = limit.node.op
    return f"{f'aten.{op.overload}' if isinstance(op, Aten) else op.name}: {limit.sentence}"


def _row(record: dict[str, Any]) -> tuple[str, ...]:
    names = dict.fromkeys(re.sub(r"\d+(?=\.)", "*", name) for name in record["parameters"])
    reasons = dict.fromkeys(re.sub(r" of \w+$", "", reason) for reason in record["limits"])
    return (record["size"], record["acts"], str(record["scales"]), ", ".join(names), "; ".join(reasons))
