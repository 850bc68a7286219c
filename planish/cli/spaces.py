"""`planish inspect --spaces`: which axes of a model are one, what may be done to them, and what forbids more."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from planish.cli.output import print_json, table
from planish.cli.picture import check_picture
from planish.cli.spaces_picture import draw_spaces
from planish.ir import Module
from planish.ir.module import Value
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


ROLES = ("writers", "readers", "carried")
"""Parameters whose results have the indices; those that sum over them; those that go with a value that has them."""
COLUMNS = ("size", "times", "may be acted on by", "scales", "parameters and axes", "because of")


def show_spaces(module: Module, json: bool, draw: Path | None) -> None:
    """Print the spaces that parameters have, and draw them where a file is named; those that differ only by the numbers in
    names, in one row."""
    if draw is not None:
        check_picture(draw, "a picture of spaces")
    found = [_record(space) for space in find_spaces(module).spaces if space.size != 1 and space.parameters]
    rows: Counter[tuple[str, ...]] = Counter()
    for record in found:
        rows[_row(record)] += 1
    listed = [(row[0], str(count), *row[1:]) for row, count in rows.items()]
    if json:
        print_json(found)
    else:
        table("Spaces", COLUMNS, [(*row[:4], _by_role(row[4:-1]), row[-1]) for row in listed])
    if draw is not None:
        draw_spaces(listed, draw)


def _record(space: Space) -> dict[str, Any]:
    return {
        "size": str(space.size),
        "family": space.family.name.lower(),
        "acts": WORDS[space.family],
        "scales": space.scales,
        "signs": space.signs,
        "parameters": [f"{name}[{axis}]" for name, axis in space.parameters],
        **_roles(space),
        "limits": dict(Counter(map(_reason, space.limits))),
    }


def _roles(space: Space) -> dict[str, list[str]]:
    """The parameters of a space by what they do with it, each with the axes that have it."""
    axes: dict[str, list[str]] = {}
    for name, axis in space.parameters:
        axes.setdefault(name, []).append(str(axis))
    found: dict[str, dict[str, None]] = {role: {} for role in ROLES}
    for ruling in space.rulings:
        places = [p for p in ruling.law.places if p.kind == "operand" and p in ruling.tensors]
        names = [t[1] for p in places if isinstance(t := ruling.tensors[p], tuple) and t[0] == "param"]
        summed = all(p.kind == "operand" for p in ruling.law.places)
        beside = any(isinstance(ruling.tensors[p], Value) for p in places)
        role = "readers" if summed else "carried" if beside else "writers"
        found[role] |= dict.fromkeys(f"{name}[{', '.join(axes[name])}]" for name in names if name in axes)
    return {role: list(names) for role, names in found.items()}


def _reason(limit: Limit) -> str:
    """The operation that keeps a space from more, and why."""
    if limit.node is None:
        return limit.sentence
    op = limit.node.op
    return f"{f'aten.{op.overload}' if isinstance(op, Aten) else op.name}: {limit.sentence}"


def _by_role(names: Sequence[str]) -> str:
    """Writers, readers and what is carried, each in a paragraph of its own."""
    return "\n".join(f"{verb} {of}" for verb, of in zip(("written by", "read by", "carried by"), names) if of)


def _row(record: dict[str, Any]) -> tuple[str, ...]:
    roles = (", ".join(dict.fromkeys(re.sub(r"\d+(?=\.)", "*", name) for name in record[role])) for role in ROLES)
    reasons = dict.fromkeys(re.sub(r" of \w+$", "", reason) for reason in record["limits"])
    return (record["size"], record["acts"], str(record["scales"]), *roles, "; ".join(reasons))
