"""Caches of keys and values in few bits: each token's row of a head is rounded as it is written."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch

from planish.ir.builder import Rewriter
from planish.ir.encodings import Encoding, Float8, GroupedInt, require_rows, rounded
from planish.ir.errors import InputError, IRError
from planish.ir.module import Function, Module, Node, State, StateRef, Value
from planish.ir.ops import Attention, CacheAppend
from planish.passes.checking.compare import measure
from planish.passes.contract import Contract, Lossy
from planish.passes.pass_base import Context, Pass, PassResult
from planish.passes.weight_format import SCALES

CacheFormat = Literal["int8", "int4", "fp8"]
BITS = {"int8": 8, "int4": 4}
ROLES = {1: "keys", 2: "values"}
"""By operand of attention."""
ROWS = 64
"""How many rows are rounded to see what they lose."""


class QuantizeCache(Pass):
    """Hold the states that attention reads, as keys or as values, in 8 or 4 bits an element.

    `keys` and `values` are the format of each: "int8", "int4", "fp8" (E4M3 floats), or null to leave them as they are.
    Which states are keys and which values is read off what attention does with them; one that is read as both (a latent)
    needs one answer. Integers have a scale of dtype `scales` to a token and `group` elements, "head" for a whole head,
    and with `zero_points` a zero point beside it; floats of eight bits have a float32 scale to a head. A row is rounded
    when it is appended and never again, and attention reads the rounded rows in every program, so how a text is cut into
    calls does not show in the results. `forward`, which keeps no state, stays as it is: run the pass after
    derive-programs.

    Source of the grids: `ir.encodings`; of one scale to a token and head: SpinQuant (Liu et al., 2024).
    """

    name: ClassVar[str] = "quantize-cache"
    keys: CacheFormat | None = "int8"
    values: CacheFormat | None = "int8"
    scales: Literal["float16", "bfloat16", "float32"] = "float16"
    group: int | Literal["head"] = "head"
    zero_points: bool = False
    metric: Literal["relative_error", "kl_divergence"] = "relative_error"
    budget: float = 0.25

    @property
    def contract(self) -> Contract:
        return Lossy(self.metric, self.budget)

    def apply(self, module: Module, context: Context) -> PassResult:
        if not module.states:
            raise InputError(
                "the module has no state to quantise; run derive-programs first, which gives it its caches"
            )
        roles, refusals = attended_states(module)
        chosen = {}
        for name, found in roles.items():
            encoding = self.encoding_of(module.states[name], found)
            if encoding is not None and module.states[name].encoding is None:
                chosen[name] = encoding
        if not chosen:
            return PassResult(module, 0, refusals=refusals)
        states = {n: State(n, s.type, chosen.get(n, s.encoding)) for n, s in module.states.items()}
        functions = {n: _rounding(f, chosen) for n, f in module.functions.items()}
        result = Module(functions, module.params, states, module.metadata)
        before, after = (sum(_row_bytes(m.states[n]) for n in chosen) for m in (module, result))
        details = {"bytes a token before": before, "bytes a token": after}
        return PassResult(result, len(chosen), refusals=refusals, details=details)

    def ensures(self, before: Module, after: Module, context: Context) -> tuple[str, ...]:
        """Rows alone lose no more than the budget either: in a state that the manager compares as a whole, those written
        by one call may be few."""
        generator = torch.Generator().manual_seed(context.seed)
        faults = []
        for name, state in after.states.items():
            if state.encoding is not None and before.states[name].encoding is None:
                rows = torch.randn(ROWS, int(state.type.shape[-1]), generator=generator, dtype=torch.float64)
                lost = measure(self.metric, rows, rounded(state.encoding, rows))
                if not lost <= self.budget:
                    faults.append(f"the rows of state {name!r} lose {lost:.4g} ({self.metric}), above {self.budget:g}")
        return tuple(faults)

    def encoding_of(self, state: State, roles: set[str]) -> Encoding | None:
        """What a state that is read as these ("keys", "values") is to be held in; None where it stays as it is.

        Raises InputError when its roles ask for different formats, or the options do not fit.
        """
        format = self._format(state.name, roles)
        return None if format is None else self._encoding(state, format)

    def _format(self, name: str, roles: set[str]) -> CacheFormat | None:
        """The format of a state; raises InputError when its roles ask for different ones."""
        wanted = {"keys": self.keys, "values": self.values}
        formats = {wanted[role] for role in roles}
        if len(formats) > 1:
            asked = ", ".join(f"{role}: {wanted[role] or 'null'}" for role in sorted(roles))
            raise InputError(
                f"state {name!r} is read as keys and as values, which ask for different formats ({asked}); give both the "
                "same one"
            )
        return formats.pop()

    def _encoding(self, state: State, format: CacheFormat) -> Encoding:
        """The encoding that a format means; raises InputError when the options do not fit it or the state."""
        if format == "fp8" and (self.zero_points or self.group != "head"):
            option = "zero_points" if self.zero_points else "group"
            raise InputError(
                f"floats of eight bits have one scale to a head and no zero points: leave out {option!r}, or hold "
                f"{state.name!r} in integers"
            )
        size = state.type.shape[-1]
        try:
            if not isinstance(size, int):
                raise IRError("its heads have no fixed size")
            group = size if self.group == "head" else self.group
            made = (
                Float8() if format == "fp8" else GroupedInt(BITS[format], group, SCALES[self.scales], self.zero_points)
            )
            require_rows(made, state.type)
        except IRError as error:
            raise InputError(f"state {state.name!r} ({state.type}) cannot be held in {format}: {error}") from error
        return made


def attended_states(module: Module) -> tuple[dict[str, set[str]], tuple[str, ...]]:
    """For each state that attention alone reads: "keys", "values" or both; and sentences about the other states."""
    roles: dict[str, set[str]] = {}
    others: dict[str, str] = {}
    for function in module.functions.values():
        held: dict[Value | StateRef, str] = {}
        for node in function.nodes:
            appended = _appended(node)
            for number, operand in enumerate(node.inputs):
                name = operand.name if isinstance(operand, StateRef) else held.get(operand)  # type: ignore[arg-type]
                if name is None or (appended is not None and number == 0):
                    continue
                if isinstance(node.op, Attention) and number in ROLES:
                    roles.setdefault(name, set()).add(ROLES[number])
                else:
                    others[name] = f"state {name!r} stays as it is: {node.op.name} reads it, not attention alone"
            if appended is not None:
                held[node.output] = appended
        for name, update in function.updates.items():
            if update != StateRef(name, update.type) and held.get(update) != name:  # type: ignore[arg-type]
                others[name] = (
                    f"state {name!r} stays as it is: {function.name!r} updates it otherwise than by cache_append"
                )
        for output in function.outputs:
            name = output.name if isinstance(output, StateRef) else held.get(output)  # type: ignore[arg-type]
            if name is not None:
                others[name] = f"state {name!r} stays as it is: it is a result of {function.name!r}"
    return {n: r for n, r in roles.items() if n not in others}, tuple(others.values())


def _appended(node: Node) -> str | None:
    """The state to whose content a node appends."""
    cache = node.inputs[0] if isinstance(node.op, CacheAppend) else None
    return cache.name if isinstance(cache, StateRef) else None


def _rounding(function: Function, chosen: dict[str, Encoding]) -> Function:
    """The function with appends to the chosen states rounding what they write; itself when it has none."""
    if not any(_appended(node) in chosen for node in function.nodes):
        return function
    copy = Rewriter(function)
    for node in function.nodes:
        name = _appended(node)
        if name in chosen:
            new = copy.emit(CacheAppend(chosen[name]), *copy.operands(node), source=node.source, name=node.output.name)
            copy.replace(node.output, new, same=False)
        else:
            copy.keep(node)
    return copy.finish_like()


def _row_bytes(state: State) -> int:
    """Bytes of one token of one row of the batch."""
    return state.nbytes(dict.fromkeys(state.type.symbols, 1))
