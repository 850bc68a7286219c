"""The rewrite engine: rules as data, applied in topological order until none matches.

A rule finds an instance of its left side at a node, may refuse it with a sentence, and builds what stands in its place.
The engine does the rest: it refuses when an inner value is read outside, takes the nodes away, keeps the order
topological, and records which values of the old function the new one still holds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch

from planish.ir.builder import Builder, Rewriter
from planish.ir.module import Function, Module, Node, Operand, ParamRef, StateRef, Value
from planish.ir.op import Chooser, Op
from planish.ir.ops import Aten
from planish.ir.params import Param, dense_param
from planish.ir.types import TensorType
from planish.passes import patterns
from planish.passes.graph import Graph
from planish.passes.pass_base import Context, Correspondence, Pass, PassError, PassResult
from planish.passes.rewrite_order import scheduled


@dataclass(frozen=True)
class Match:
    """An instance of a left side.

    Attributes:
        outputs: the values to replace, in the order in which the right side returns their replacements.
        nodes: every node of the instance; those nothing else reads are taken away.
        captures: what the right side is built from, by name: operands, attributes, nodes.
    """

    outputs: tuple[Value, ...]
    nodes: tuple[Node, ...]
    captures: Mapping[str, Any]

    def __getitem__(self, name: str) -> Any:
        return self.captures[name]

    def operands(self) -> list[Value]:
        """Captured values that come from outside the instance."""
        inside = {v for n in self.nodes for v in n.outputs}
        found = (v for c in self.captures.values() for v in (c if isinstance(c, tuple) else (c,)))
        return [v for v in found if isinstance(v, Value) and v not in inside]


class Replacement:
    """What a right side builds with. Operands may be captured ones or new ones."""

    def __init__(
        self, rewriter: Rewriter, graph: Graph, match: Match, made: set[Value], params: dict[str, Param]
    ) -> None:
        self.graph = graph
        self._rewriter = rewriter
        self._source = next((n.source for n in reversed(match.nodes) if n.source), "")
        self._made = made
        self._params = params

    def operand(self, operand: Operand) -> Operand:
        """What stands for a captured operand in the function under construction."""
        if not isinstance(operand, Value) or operand in self._made:
            return operand
        found = self._rewriter.operand(operand)
        # What was looked up once may be handed in again.
        if isinstance(found, Value):
            self._made.add(found)
        return found

    def node(self, op: Op, *operands: Operand | None, names: Sequence[str] = ()) -> Node:
        mapped = (None if o is None else self.operand(o) for o in operands)
        node = self._rewriter.node(op, *mapped, source=self._source, names=names)
        self._made.update(node.outputs)
        return node

    def emit(self, op: Op, *operands: Operand | None, name: str = "") -> Value:
        """Append an operation with one result and return the result."""
        return self.node(op, *operands, names=(name,)).output

    def call(self, overload: str, /, **arguments: Any) -> Value:
        """Append an ATen call given by argument names."""
        op, *operands = patterns.aten_call(overload, arguments)
        return self.emit(op, *operands)

    def param(self, param: Param | torch.Tensor, name: str) -> ParamRef:
        """A new parameter of the module; its name is made unique from `name`."""
        unique, number = name, 0
        while unique in self.graph.module.params or unique in self._params:
            number += 1
            unique = f"{name}.{number}"
        made = (
            dense_param(unique, param)
            if isinstance(param, torch.Tensor)
            else Param(unique, param.type, param.encoding, param.source)
        )
        self._params[unique] = made
        return ParamRef(unique, made.type)


Found: TypeAlias = "Match | str | None"


@dataclass(frozen=True)
class Rule:
    """One rewrite.

    Attributes:
        name: as reports show it.
        roots: ATen overloads and operation names of the nodes at which to look.
        find: the instance whose last node is the given one; a sentence why there is one that must stay; or None.
        build: makes the replacements of the match's outputs; they must have the same types.
        sample: draws a module whose function "forward" contains an instance.
        keeps_shared: rewrite even if inner values are read elsewhere; the nodes these need stay.
    """

    name: str
    roots: frozenset[str]
    find: Callable[[Node, Graph], Found]
    build: Callable[[Replacement, Match], Operand | tuple[Operand, ...]]
    sample: Callable[[Chooser], Module]
    keeps_shared: bool = False


Drawn: TypeAlias = "Mapping[str, TensorType | torch.Tensor | Any]"


def pattern_rule(
    name: str,
    left: Callable[..., Any],
    right: Callable[[Replacement, Match], Operand | tuple[Operand, ...]],
    draw: Callable[[Chooser], Drawn],
    guard: Callable[[Match, Graph], str | None] = lambda match, graph: None,
    *,
    keeps_shared: bool = False,
) -> Rule:
    """A rule from a pattern function (see `patterns`); if it returns a tuple, all its terms are replaced.

    `draw` gives for each variable a type (an input of that type), a tensor (a parameter) or an attribute. `guard` is
    asked about each way of matching and returns a sentence to refuse it.
    """
    terms = patterns.trace(left)
    root = terms[0]
    starts = list(root.options) if isinstance(root, patterns.OneOf) else [root]
    calls = [_call(start) for start in starts]
    roots = frozenset(c.root for c in calls)

    def find(node: Node, graph: Graph) -> Found:
        refusal = None
        for start, pattern in zip(starts, calls):
            for bindings in patterns.match_node(pattern, node, graph, patterns.Bindings()):
                for outputs, bound in _match_rest(terms, start, node, graph, bindings):
                    nodes = sorted(set(bound.nodes.values()), key=graph.position.__getitem__)
                    match = Match(outputs, tuple(nodes), bound.captures)
                    refusal = guard(match, graph)
                    if refusal is None:
                        return match
        return refusal

    def sample(choose: Chooser) -> Module:
        builder = Builder("forward")
        values: dict[str, Any] = {}
        params: dict[str, Param] = {}
        for key, value in draw(choose).items():
            if isinstance(value, TensorType):
                values[key] = builder.input(key, value)
            elif isinstance(value, torch.Tensor):
                params[key] = dense_param(key, value)
                values[key] = ParamRef(key, params[key].type)
            else:
                values[key] = value
        instance = patterns.Instantiation(builder, values, choose)
        outputs = [instance.argument(term) for term in terms]
        function = builder.finish(outputs, [f"y{n}" for n in range(len(outputs))])
        return Module({"forward": function}, params)

    return Rule(name, roots, find, right, sample, keeps_shared)


def _call(term: Any) -> patterns.Call:
    found = term.call if isinstance(term, patterns.Result) else term
    if not isinstance(found, patterns.Call):
        raise PassError(f"a pattern must return calls to match, not {type(found).__name__}")
    return found


def _match_rest(
    terms: tuple[Any, ...], start: Any, node: Node, graph: Graph, bindings: patterns.Bindings
) -> Iterable[tuple[tuple[Value, ...], patterns.Bindings]]:
    """Complete a match of the first term with the others, which are looked for among the readers of what is bound."""
    first = node.outputs[start.index if isinstance(start, patterns.Result) else 0]
    partial: list[tuple[tuple[Value, ...], patterns.Bindings]] = [((first,), bindings)]
    for term in terms[1:]:
        extended = []
        for outputs, bound in partial:
            operands = [c for c in bound.captures.values() if isinstance(c, Value)]
            near = [o for n in bound.nodes.values() for o in n.outputs]
            candidates = dict.fromkeys(
                v for read in (*operands, *(v for o in operands for u in graph.users(o) for v in u.outputs), *near)
                for user in graph.users(read) for v in user.outputs
            )  # fmt: skip
            for value in (*candidates, *near):
                if value not in outputs:
                    extended += [((*outputs, value), b) for b in patterns.match_argument(term, value, graph, bound)]
        partial = extended
    return partial


@dataclass(frozen=True)
class Rewritten:
    """A function after rewriting; the very same one if no rule matched."""

    function: Function
    params: tuple[Param, ...] = ()
    matches: Mapping[str, int] = field(default_factory=dict)
    refusals: tuple[str, ...] = ()
    correspondence: Correspondence = field(default_factory=dict)


def rewrite(module: Module, function: Function, rules: Sequence[Rule]) -> Rewritten:
    """Apply rules in topological order, sweep after sweep, until none matches.

    Raises PassError when a rule replaces a value by one of another type, or when rewriting does not come to an end.
    """
    by_root: dict[str, list[Rule]] = {}
    for rule in rules:
        for root in rule.roots:
            by_root.setdefault(root, []).append(rule)
    current = Rewritten(function, correspondence={v: v for v in [*function.inputs, *function.producers()]})
    limit = 64 + 4 * len(function.nodes)
    while True:
        graph = Graph(module.with_params(current.params), current.function)
        chosen, refusals = _choose(graph, by_root)
        if not chosen:
            return Rewritten(current.function, current.params, current.matches, refusals, current.correspondence)
        if sum(current.matches.values()) > limit:
            raise PassError(
                f"rewriting function {function.name!r} does not come to an end: after {limit} rewrites "
                f"{', '.join(sorted({r.name for r, _ in chosen}))} still apply"
            )
        current = _apply(graph, chosen, current)


def _root_key(op: Op) -> str:
    return op.overload if isinstance(op, Aten) else op.name


def _choose(graph: Graph, by_root: Mapping[str, list[Rule]]) -> tuple[list[tuple[Rule, Match]], tuple[str, ...]]:
    """Matches that share no node, first come first served, and why others were refused."""
    chosen: list[tuple[Rule, Match]] = []
    refusals: dict[str, None] = {}
    taken: set[Node] = set()
    for node in graph.function.nodes:
        for rule in by_root.get(_root_key(node.op), ()):
            found = rule.find(node, graph)
            if found is None:
                continue
            refusal = found if isinstance(found, str) else _sharing(rule, found, graph)
            if refusal is not None:
                refusals[f"{rule.name} at {node.source or _root_key(node.op)}: {refusal}"] = None
            elif isinstance(found, Match) and taken.isdisjoint(found.nodes):
                taken.update(found.nodes)
                chosen.append((rule, found))
                break
    return chosen, tuple(refusals)


def _sharing(rule: Rule, match: Match, graph: Graph) -> str | None:
    """Why a match cannot be taken away: an inner value that something outside reads."""
    if rule.keeps_shared:
        return None
    for node in match.nodes:
        for value in node.outputs:
            reader = None if value in match.outputs else graph.read_outside(value, match.nodes)
            if reader:
                by = f"by {_root_key(reader.op)}" if isinstance(reader, Node) else "as a result of the function"
                return f"the inner result of {_root_key(node.op)} is also read {by}"
    return None


def _apply(graph: Graph, chosen: list[tuple[Rule, Match]], before: Rewritten) -> Rewritten:
    """One sweep: a copy of the function with the chosen matches replaced."""
    order, chosen = scheduled(graph, chosen)
    anchors = dict(zip(_anchors(order, chosen), chosen))
    dropped = _dropped(graph, chosen)
    rewriter = Rewriter(graph.function)
    params: dict[str, Param] = {}
    made: set[Value] = set()
    matches = dict(before.matches)
    for node in order:
        if node not in dropped:
            rewriter.keep(node)
        if node in anchors:
            rule, match = anchors[node]
            replacement = Replacement(rewriter, graph, match, made, params)
            built = rule.build(replacement, match)
            news = [replacement.operand(n) for n in (built if isinstance(built, tuple) else (built,))]
            if [n.type for n in news] != [o.type for o in match.outputs]:
                raise PassError(
                    f"rule {rule.name!r} replaces {', '.join(str(o.type) for o in match.outputs)} by "
                    f"{', '.join(str(n.type) for n in news)}"
                )
            for old, new in zip(match.outputs, news):
                rewriter.replace(old, new)
            matches[rule.name] = matches.get(rule.name, 0) + 1
    function = rewriter.finish_like()
    step = rewriter.correspondence
    return Rewritten(function, (*before.params, *params.values()), matches, (), compose(before.correspondence, step))


def _anchors(order: Sequence[Node], chosen: list[tuple[Rule, Match]]) -> list[Node]:
    """For each match, the node at which to build: the first of those whose results are replaced."""
    position = {node: n for n, node in enumerate(order)}
    return [min((n for n in m.nodes if set(n.outputs) & set(m.outputs)), key=position.__getitem__) for _, m in chosen]


def _dropped(graph: Graph, chosen: list[tuple[Rule, Match]]) -> set[Node]:
    """The matched nodes that nothing needs once the outputs are replaced."""
    candidates = {node for _, match in chosen for node in match.nodes}
    replaced = {value for _, match in chosen for value in match.outputs}
    needed = {value for _, match in chosen for value in match.operands()}
    dropped: set[Node] = set()
    for node in reversed(graph.function.nodes):
        if node in candidates and all(
            v in replaced or (v not in needed and not graph.is_result(v) and all(u in dropped for u in graph.users(v)))
            for v in node.outputs
        ):
            dropped.add(node)
    return dropped


def compose(first: Correspondence, second: Correspondence) -> dict[Value, Operand]:
    """Correspondence through an intermediate function."""
    composed: dict[Value, Operand] = {}
    for old, middle in first.items():
        if isinstance(middle, (ParamRef, StateRef)):
            composed[old] = middle
        elif middle in second:
            composed[old] = second[middle]
    return composed


class RewritePass(Pass):
    """A pass that applies rules to every function of a module."""

    def rules(self, context: Context) -> Sequence[Rule]:
        raise PassError(f"pass {self.name!r} declares no rules")

    def apply(self, module: Module, context: Context) -> PassResult:
        rules = self.rules(context)
        matches: dict[str, int] = {}
        correspondence: dict[str, Correspondence] = {}
        refusals: list[str] = []
        result = module
        for number, (name, function) in enumerate(module.functions.items()):
            done = rewrite(result, function, rules)
            correspondence[name] = done.correspondence
            refusals += done.refusals
            for rule, count in done.matches.items():
                matches[rule] = matches.get(rule, 0) + count
            if done.function is not function:
                result = result.with_function(done.function).with_params(done.params)
            context.progress((number + 1) / len(module.functions), f"{self.name}: {name}")
        details = dict(sorted(matches.items()))
        return PassResult(result, sum(matches.values()), correspondence, tuple(refusals), details)
