"""One function run on many batches side by side, part by part.

Every node is computed once for each batch. Between two parts only what later nodes read is kept, and weights may be replaced
by others of the same type: what follows then sees the results of the new ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch

from planish.ir.interpret import Interpreter, last_uses
from planish.ir.module import Module, Operand, ParamRef, StateRef, Value
from planish.passes.calibration.data import Batch
from planish.passes.calibration.shelf import Shelf
from planish.passes.pass_base import PassError

Read = Callable[[Operand], torch.Tensor]


class Lockstep:
    """Runs `function` of a module on batches; `position` is the node that comes next.

    Args:
        module: gives the first weights.
        function: a function that keeps no state.
        batches: its inputs by name.
        shelf: where results wait.

    Raises:
        PassError: for a function that reads states.
        IRError: when a batch does not fit the function's inputs.
    """

    def __init__(self, module: Module, function: str, batches: Sequence[Batch], shelf: Shelf[Value]) -> None:
        self.module = module
        self.function = module.functions[function]
        self.position = 0
        self.batches = batches
        self._shelf = shelf
        self._last = last_uses(self.function)
        self._known: list[dict[str, int]] = []
        if self.function.updates or any(isinstance(r, StateRef) for r in self.function.references()):
            raise PassError(f"function {function!r} keeps states, and calibration runs functions that keep none")
        for slot, batch in enumerate(batches):
            environment, known = Interpreter(module).enter(self.function, batch)
            self._known.append(known)
            shelf.put(slot, environment)

    def run_to(self, position: int) -> None:
        """Compute the nodes before `position` for all batches."""
        for _ in self.visit(position):
            pass

    def visit(self, position: int) -> Iterator[Read]:
        """Compute the nodes before `position` for one batch after the other; for each gives a function that reads operands,
        good until the next one. Weights are decoded once for all batches. To be iterated to its end."""
        interpreter = Interpreter(self.module)
        nodes = list(enumerate(self.function.nodes))[self.position : position]
        weights = {i.name: interpreter.param(i.name) for _, n in nodes for i in n.inputs if isinstance(i, ParamRef)}
        for slot, known in enumerate(self._known):
            environment = self._shelf.take(slot)

            def read(operand: Operand, environment: dict[Value, torch.Tensor] = environment) -> torch.Tensor:
                if isinstance(operand, ParamRef):
                    return weights[operand.name] if operand.name in weights else interpreter.param(operand.name)
                assert isinstance(operand, Value)
                return environment[operand]

            with torch.no_grad():
                for index, node in nodes:
                    operands = tuple(None if i is None else read(i) for i in node.inputs)
                    environment.update(zip(node.outputs, interpreter.evaluate(node, operands, known)))
                    for value in self._last.get(index, ()):
                        environment.pop(value, None)
            yield read
            self._shelf.put(slot, environment)
        self.position = position
