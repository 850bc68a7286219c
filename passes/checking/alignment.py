"""What two functions have in common, and the regions in which they differ.

Values of the source are matched with values of the result by structure alone (equal operations on matched operands) and
by what the pass says (its correspondence). Whatever structure does not confirm becomes an obligation: this value of the
source must equal that operand of the result, or have it as its image (`Carried`). Each obligation is cut out as a region
whose inputs are matched values.

Why checking every region proves the whole: in the result's topological order, each matched value equals its counterpart,
or has it as its image, because its operands do, or because its own region was checked with the source's values at the cut.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from planish.ir.module import Function, Module, Node, Operand, ParamRef, StateRef, Value
from planish.ir.structural_hash import param_key
from planish.passes.graph import is_deterministic
from planish.passes.pass_base import Carried, Correspondence


@dataclass(frozen=True)
class Region:
    """A piece of the source and what took its place.

    Attributes:
        pairs: source operands with the result's operands that must hold the same.
        cut: source values at which both sides begin, with the result's values that are fed with them. A value that only
            the source's side reads has no result's values.
        source_nodes, result_nodes: what lies between, in topological order.
    """

    pairs: tuple[tuple[Operand, Operand], ...]
    cut: Mapping[Value, tuple[Value, ...]]
    source_nodes: tuple[Node, ...]
    result_nodes: tuple[Node, ...]

    @property
    def last(self) -> Node | None:
        """The node by which a message names the region: the last one of the source, or of the result."""
        nodes = self.source_nodes or self.result_nodes
        return nodes[-1] if nodes else None


class Alignment:
    """Matches one function of a module with its counterpart in another module."""

    def __init__(
        self,
        before: Module,
        after: Module,
        source: Function,
        result: Function,
        claims: Correspondence,
        carried: Mapping[Value, Carried] | None = None,
    ) -> None:
        self.source, self.result, self.carried = source, result, carried or {}
        self._same_params = {n for n, p in before.params.items() if n in after.params and _same(p, after.params[n])}
        self._interned: dict[Any, int] = {}
        self._known: dict[Any, tuple[int, ...]] = {}
        self._result_ids: dict[Value, int] = {}
        self._number_result()
        self.image: dict[Value, int] = {}
        self._origin: dict[int, Value] = {}
        self._obligations: dict[Operand | int, tuple[Operand, Operand]] = {}
        self._match_source({old: new for old, new in claims.items() if old.type == new.type})
        self._match_results()

    def _intern(self, key: Any) -> int:
        return self._interned.setdefault(key, len(self._interned))

    def _leaf_id(self, operand: Operand, side: str) -> int:
        """The number of a parameter or state: one for both sides when it is the same, else one for each side."""
        if isinstance(operand, ParamRef) and operand.name not in self._same_params:
            return self._intern(("param", side, operand.name))
        return self._intern((type(operand).__name__, operand.name))  # type: ignore[union-attr]

    def result_id(self, operand: Operand) -> int | None:
        """The number of an operand of the result."""
        return self._result_ids.get(operand) if isinstance(operand, Value) else self._leaf_id(operand, "result")

    def _number_result(self) -> None:
        """One number for all values of the result that are equal by structure."""
        for value in self.result.inputs:
            self._result_ids[value] = self._intern(("input", value.name))
        for node in self.result.nodes:
            key: Any = (node.op.key(), *(None if i is None else self.result_id(i) for i in node.inputs))
            if not is_deterministic(node.op):
                key = ("random", id(node))
            if key not in self._known:
                self._known[key] = tuple(self._intern(("value", id(v))) for v in node.outputs)
            self._result_ids.update(zip(node.outputs, self._known[key]))

    def source_id(self, operand: Operand) -> int | None:
        """The number of the result's values that match an operand of the source, or None."""
        return self.image.get(operand) if isinstance(operand, Value) else self._leaf_id(operand, "source")

    def _match_source(self, claims: Mapping[Value, Operand]) -> None:
        for value in self.source.inputs:
            self.image[value] = self._intern(("input", value.name))
            self._origin[self.image[value]] = value
        for node in self.source.nodes:
            ids = [None if i is None else self.source_id(i) for i in node.inputs]
            # That an operation is the same proves nothing where an operand holds an image of the source's.
            plain = all(i not in self.carried for i in node.inputs if isinstance(i, Value))
            complete = plain and all(i is None or n is not None for i, n in zip(node.inputs, ids))
            found = self._known.get((node.op.key(), *ids)) if complete else None
            for number, value in enumerate(node.outputs):
                by_structure = None if found is None else found[number]
                claimed = self.result_id(claims[value]) if value in claims else None
                if value in self.carried:
                    image = self.carried[value].operand
                    self.image[value] = self.result_id(image)  # type: ignore[assignment]
                    self._obligations[value] = (value, image)
                elif by_structure is not None and claimed in (None, by_structure):
                    self.image[value] = by_structure
                    self._origin.setdefault(by_structure, value)
                elif claimed is not None:
                    self.image[value] = claimed
                    self._obligations[value] = (value, claims[value])
        for value, claimed in self.image.items():
            self._origin.setdefault(claimed, value)

    def _match_results(self) -> None:
        """Outputs and states' updates must correspond, whatever the pass says."""
        states = sorted({*self.source.updates, *self.result.updates})
        pairs = list(zip(self.source.outputs, self.result.outputs))
        for name in states:
            of = [f.updates.get(name) for f in (self.source, self.result)]
            known = next(o for o in of if o is not None)
            pairs.append(tuple(StateRef(name, known.type) if o is None else o for o in of))  # type: ignore[arg-type]
        for number, (old, new) in enumerate(pairs):
            if self.source_id(old) != self.result_id(new):
                self._obligations[number] = (old, new)

    def regions(self) -> list[Region]:
        """The regions, those that share nodes of the result joined, in the order of the source."""
        producers = self.source.producers()
        position = {node: n for n, node in enumerate(self.source.nodes)}
        ordered = sorted(
            self._obligations.values(),
            key=lambda pair: position.get(producers.get(pair[0]), -1),  # type: ignore[arg-type]
        )
        return _joined([self._region(old, new) for old, new in ordered], position, self.result)

    def _region(self, old: Operand, new: Operand) -> Region:
        cut: dict[Value, tuple[Value, ...]] = {}
        result_nodes: dict[Node, None] = {}
        made_by = self.result.producers()
        stack = [new] if isinstance(new, Value) else []
        seen: set[Value] = set()
        while stack:
            value = stack.pop()
            if not isinstance(value, Value) or value in seen:
                continue
            seen.add(value)
            origin = self._origin.get(self._result_ids[value])
            if origin is not None and not (value is new and origin is old):
                cut[origin] = (*cut.get(origin, ()), value)
            elif value in made_by:
                result_nodes[made_by[value]] = None
                stack += [i for i in made_by[value].inputs if isinstance(i, Value)]
        source_nodes: dict[Node, None] = {}
        makes = self.source.producers()
        back = [old] if isinstance(old, Value) else []
        while back:
            value = back.pop()
            if value in cut:
                continue
            if value not in makes:
                cut[value] = ()
            elif makes[value] not in source_nodes:
                source_nodes[makes[value]] = None
                back += [i for i in makes[value].inputs if isinstance(i, Value)]
        return Region(
            ((old, new),), cut,
            tuple(n for n in self.source.nodes if n in source_nodes),
            tuple(n for n in self.result.nodes if n in result_nodes),
        )  # fmt: skip


def _same(a: Any, b: Any) -> bool:
    return a is b or param_key(a) == param_key(b)


def _joined(regions: list[Region], position: Mapping[Node, int], result: Function) -> list[Region]:
    """Regions that share nodes of the result, as one, so that these are evaluated once.

    Two stay apart if one begins where the other ends: then the second must be fed with the source's value.
    """
    order = {node: n for n, node in enumerate(result.nodes)}
    joined: list[Region] = []
    by_node: dict[Node, int] = {}
    for region in regions:
        hosts = {by_node[n] for n in region.result_nodes if n in by_node}
        host = next((h for h in sorted(hosts) if _compatible(joined[h], region)), None)
        if host is None:
            joined.append(region)
            host = len(joined) - 1
        else:
            other = joined[host]
            cut = dict(other.cut)
            for value, fed in region.cut.items():
                cut[value] = tuple(dict.fromkeys((*cut.get(value, ()), *fed)))
            joined[host] = Region(
                (*other.pairs, *region.pairs), cut,
                tuple(sorted({*other.source_nodes, *region.source_nodes}, key=position.__getitem__)),
                tuple(sorted({*other.result_nodes, *region.result_nodes}, key=order.__getitem__)),
            )  # fmt: skip
        by_node.update(dict.fromkeys(region.result_nodes, host))
    return joined


def _compatible(a: Region, b: Region) -> bool:
    def computed(region: Region) -> set[Value]:
        return {v for n in (*region.source_nodes, *region.result_nodes) for v in n.outputs}

    def fed(region: Region) -> set[Value]:
        return {*region.cut, *(v for values in region.cut.values() for v in values)}

    return computed(a).isdisjoint(fed(b)) and computed(b).isdisjoint(fed(a))
