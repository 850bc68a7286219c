"""A function of a module as a `torch.nn.Module`: the operations' own meanings, with gradients through what they round.

What runs is the graph that is deployed. Attention is an equal kernel; codes of quantised activations, and keys and values
that a cache would round, pass their gradient straight through.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TypeAlias

import torch
from torch.utils.checkpoint import checkpoint

from planish.ir.encodings import Encoding, Grouped, rounded
from planish.ir.errors import InputError
from planish.ir.interpret import Interpreter
from planish.ir.module import Function, Module, Node, Operand, StateRef, Value
from planish.ir.ops import Attention, QuantizeActivation
from planish.passes.training.activations import check_readers, float_codes
from planish.passes.training.attention import fused_attention
from planish.passes.training.segments import Segment, segments
from planish.passes.training.straight import Rounding, straight

Batch: TypeAlias = Mapping[str, torch.Tensor] | Sequence[torch.Tensor]
"""A call's inputs by name or position. Further tensors, after or besides the inputs, are for the loss."""


class Runnable(torch.nn.Module):
    """A function over weights that a subclass gives.

    Args:
        module: has the function.
        function: its name; it keeps no state.
        rows: operands of attention that are rounded row by row, as a cache in these encodings would hold them.
        parts: into how many the function is cut, each of which the backward pass computes again, so that only what is
            alive between them is kept; 1 keeps everything.
        scaled: whether the scales of what is rounded have gradients too (see `straight`).

    Raises:
        InputError: for a function that is missing or keeps states.
    """

    def __init__(
        self,
        module: Module,
        function: str,
        *,
        rows: Mapping[Operand, Encoding] | None = None,
        parts: int = 1,
        scaled: bool = False,
    ) -> None:
        super().__init__()
        self.ir = module
        self.function = _stateless(module, function)
        self.inputs = tuple(v.name for v in self.function.inputs)
        self.rows = dict(rows or {})
        self.parts = segments(self.function, parts)
        self.scaled = scaled

    def through(self, tensor: torch.Tensor, encoding: Encoding, rounding: Rounding) -> torch.Tensor:
        """A tensor rounded as an encoding will hold it."""
        return straight(tensor, rounding, encoding if self.scaled and isinstance(encoding, Grouped) else None)

    @abstractmethod
    def weight(self, name: str) -> torch.Tensor:
        """A parameter as the operations see it, in its declared dtype."""

    @abstractmethod
    def trained(self) -> dict[str, torch.nn.Parameter]:
        """What is trained, by name."""

    def forward(self, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The function's outputs by name. Raises IRError when the inputs do not fit its types."""
        return _Runner(self).run(self.function.name, inputs).outputs

    def inputs_of(self, batch: Batch) -> dict[str, torch.Tensor]:
        """The function's inputs by name out of a batch; raises InputError when one is missing."""
        if isinstance(batch, Mapping):
            missing = [name for name in self.inputs if name not in batch]
            if missing:
                raise InputError(f"a batch has no {', '.join(missing)}; the model takes {', '.join(self.inputs)}")
            return {name: batch[name] for name in self.inputs}
        if len(batch) < len(self.inputs):
            raise InputError(f"a batch of {len(batch)} tensors is too short; the model takes {', '.join(self.inputs)}")
        return dict(zip(self.inputs, batch))


class _Runner(Interpreter):
    """Runs the nodes over a network's weights, each made once for all its uses in a part."""

    def __init__(self, network: Runnable) -> None:
        super().__init__(network.ir)
        self._network = network
        self._made: dict[str, torch.Tensor] = {}

    def param(self, name: str) -> torch.Tensor:
        if name not in self._made:
            self._made[name] = self._network.weight(name)
        return self._made[name]

    def _execute(
        self,
        program: Function,
        environment: dict[Value, torch.Tensor],
        states: dict[str, torch.Tensor],
        known: dict[str, int],
    ) -> None:
        parts = self._network.parts
        if len(parts) == 1:
            super()._execute(program, environment, states, known)
            return
        kept = {r for r in program.results if isinstance(r, Value)}
        for number, part in enumerate(parts):
            given = [environment[value] for value in part.reads]
            run = partial(self._part, part, states, known)
            results = checkpoint(run, *given, use_reentrant=False, preserve_rng_state=False)
            environment.update(zip(part.leaves, results))
            needed = kept.union(*(later.reads for later in parts[number + 1 :]))
            for value in [value for value in environment if value not in needed]:
                del environment[value]

    def _part(
        self, part: Segment, states: dict[str, torch.Tensor], known: dict[str, int], *given: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        self._made = {}
        inside = dict(zip(part.reads, given))
        for node in part.nodes:
            operands = tuple(None if i is None else self._read(i, inside, states, known) for i in node.inputs)
            inside.update(zip(node.outputs, self.evaluate(node, operands, known)))
        self._made = {}
        return tuple(inside[value] for value in part.leaves)

    def evaluate(
        self, node: Node, operands: tuple[torch.Tensor | None, ...], known: Mapping[str, int]
    ) -> tuple[torch.Tensor, ...]:
        if isinstance(node.op, QuantizeActivation):
            assert operands[0] is not None
            return float_codes(node.op, operands[0], self._network.scaled)
        if isinstance(node.op, Attention):
            operands = tuple(map(self._as_cached, node.inputs, operands))
            fused = fused_attention(node.op.bind(known), operands)
            if fused is not None:
                return (fused,)
        return super().evaluate(node, operands, known)

    def _as_cached(self, operand: Operand | None, tensor: torch.Tensor | None) -> torch.Tensor | None:
        encoding = None if operand is None else self._network.rows.get(operand)
        if encoding is None or tensor is None:
            return tensor
        return self._network.through(tensor, encoding, partial(rounded, encoding))


def _stateless(module: Module, name: str) -> Function:
    """The function of that name, if it can be trained."""
    if name not in module.functions:
        raise InputError(f"the model has no function {name!r} to train; it has {', '.join(module.functions)}")
    function = module.functions[name]
    if function.updates or any(isinstance(r, StateRef) for r in function.references()):
        raise InputError(f"function {name!r} keeps states and cannot be trained; only a function without states can")
    check_readers(function)
    return function
