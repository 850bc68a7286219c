"""An output head with few words left: the others are never said."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar

import torch
from pydantic import Field

from planish.ir.builder import Rewriter
from planish.ir.errors import InputError
from planish.ir.module import Function, Module, Operand, ParamRef, Value
from planish.ir.ops import aten
from planish.ir.ops.aten import Slot
from planish.ir.params import dense_param
from planish.ir.spaces.analysis import Space, Spaces, find_spaces
from planish.ir.spaces.terms import atoms
from planish.passes.contract import Contract, Refines
from planish.passes.dropping import drop, keeps
from planish.passes.param_changes import Change, Read, apply_changes, reading, reads, unused
from planish.passes.pass_base import Context, Correspondence, Pass, PassResult
from planish.passes.sequel import Sequel


class PruneVocabulary(Pass):
    """Keeps some rows of an output head; the scores of all other words are minus infinity.

    before: linear(x, @head[128256, 2048])
    after:  index_select(constant_pad_nd(linear(x, @head[20, 2048]), [0, 1], -inf), -1, @places[128256])

    The head is what gives the last axis of an output its indices. A parameter that is the table of embeddings too is parted:
    the table stays whole, so that every word can still be read. What comes out has the size that it had, and words keep their
    numbers.

    Attributes:
        tokens: the words that stay, by number.
        output: the name of the output, in all functions that have it.
    """

    name: ClassVar[str] = "prune-vocabulary"
    tokens: tuple[Annotated[int, Field(ge=0)], ...] = ()
    output: str = "logits"

    @property
    def contract(self) -> Contract:
        return Refines(output=self.output, among=self.tokens)

    def apply(self, module: Module, context: Context) -> PassResult:
        if not self.tokens:
            return PassResult(module, 0)
        steps = Sequel(module)
        steps.then(_parted(module, self.output))
        spaces = find_spaces(steps.module)
        words = self._words(steps.module, spaces)
        size = int(words.size)  # type: ignore[call-overload]
        beyond = [token for token in self.tokens if token >= size]
        if beyond:
            raise InputError(f"{self.name}: there is no word {beyond[0]}: {self.output!r} has {size}")
        staying = torch.zeros(size, dtype=torch.bool)
        staying[list(self.tokens)] = True
        if bool(staying.all()):
            return PassResult(module, 0)
        dropped = drop(steps.module, spaces, {words.atom: staying})
        steps.then(PassResult(dropped.module, 1, dropped.correspondence))
        steps.then(_scattered(steps.module, self.output, staying))
        details = {"words before": size, "words after": int(staying.sum())}
        return PassResult(steps.module, 1, steps.correspondence, details=details)

    def _words(self, module: Module, spaces: Spaces) -> Space:
        """The space of the output's last axis; raises InputError where it is not there or cannot be cut."""
        found: dict[Space, None] = {}
        for function in module.functions.values():
            for operand in _named(function, self.output):
                if isinstance(operand, Value) and operand.type.rank:
                    found |= dict.fromkeys(spaces.of(operand, operand.type.rank - 1))
        if len(found) != 1:
            outputs = dict.fromkeys(name for f in module.functions.values() for name in f.output_names)
            reason = (
                f"there is none; outputs are {', '.join(outputs)}" if not found else "its last axis has several parts"
            )
            raise InputError(f"{self.name}: no words can go from the output {self.output!r}: {reason}")
        (space,) = found
        reason = keeps(module, space, outputs={self.output})
        if reason:
            raise InputError(f"{self.name}: no words can go from the output {self.output!r}: {reason}")
        return space


def _named(function: Function, output: str) -> list[Operand]:
    return [operand for name, operand in zip(function.output_names, function.outputs) if name == output]


def _parted(module: Module, output: str) -> PassResult:
    """What has the indices of an output is read apart from where it is read by position (a table of embeddings)."""
    spaces = find_spaces(module)
    words = {
        atom
        for function in module.functions.values()
        for operand in _named(function, output)
        if isinstance(operand, Value) and operand.type.rank
        for atom in atoms(spaces.term(operand, operand.type.rank - 1))
    }
    by_position: set[str] = set()
    others: list[tuple[str, Read]] = []
    for name, read in reads(module):
        indexing = spaces.indexing(read.node)
        having = {atom for term in indexing.operands[read.operand] or () for atom in atoms(term)} & words
        if having - {atom for law in indexing.laws for atom in atoms(law.term)}:
            by_position.add(name)
        elif having:
            others.append((name, read))
    change = Change(("head", output), lambda value: value)
    changes = {read: (change,) for name, read in others if name in by_position}
    if not changes:
        return PassResult(module, 0)
    result, parted = apply_changes(module, changes)
    result, same = reading(result, parted)
    return PassResult(result, len(parted), same)


def _scattered(module: Module, output: str, staying: torch.Tensor) -> PassResult:
    """The module whose outputs of few words have all of them again."""
    places = torch.where(staying, staying.cumsum(0) - 1, int(staying.sum()))
    param = dense_param(unused("places", module.params), places)
    reference = ParamRef(param.name, param.type)
    result, same = module.with_params([param]), dict[str, Correspondence]()
    for name, function in module.functions.items():
        copy = Rewriter(function)
        for node in function.nodes:
            copy.keep(node)
        made: dict[Value, Value] = {}
        outputs: list[Operand] = []
        for label, operand in zip(function.output_names, function.outputs):
            if label == output and isinstance(operand, Value):
                if operand not in made:
                    padded = copy.emit(aten("constant_pad_nd.default", Slot(0), (0, 1), -torch.inf), operand)
                    picked = aten("index_select.default", Slot(0), operand.type.rank - 1, Slot(1))
                    made[operand] = copy.emit(picked, padded, reference, name=operand.name)
                outputs.append(made[operand])
            else:
                outputs.append(copy.operand(operand))
        updates: Mapping[str, Operand] = {state: copy.operand(operand) for state, operand in function.updates.items()}
        result = result.with_function(copy.finish(outputs, function.output_names, updates))
        same[name] = copy.correspondence
    return PassResult(result, 1, same)
