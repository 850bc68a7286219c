"""A function of a module as a `torch.nn.Module` whose weights can be trained.

It runs the operations' own meanings (attention by an equal kernel), so what is trained is the graph that is deployed. What
is kept of a parameter between two steps is its *master*, float32 (float64 where the parameter is); what operations see is the
master as its encoding will hold it, with a straight-through gradient: fake-quantised for a grid of levels, rounded for a
narrower float. Codes of quantised activations pass their gradient straight through as well.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TypeAlias

import torch

from planish.ir.encodings import Dense, Encoding
from planish.ir.errors import InputError
from planish.ir.interpret import Interpreter
from planish.ir.module import Function, Module, Node, ParamRef, StateRef
from planish.ir.ops import Attention, QuantizeActivation
from planish.ir.params import InMemory, Param
from planish.passes.training.activations import check_readers, float_codes
from planish.passes.training.attention import fused_attention
from planish.passes.training.quantizers import Quantizer, quantizer_of, round_straight
from planish.passes.training.tables import tables

Batch: TypeAlias = Mapping[str, torch.Tensor] | Sequence[torch.Tensor]
"""A call's inputs by name or position. Further tensors, after or besides the inputs, are for the loss."""


class Network(torch.nn.Module):
    """A function of `module` over trained weights.

    Trained are floating parameters that the function reads, but for constant tables (`tables`), parameters in an encoding
    other than `Dense` that `encodings` does not name, and those whose name holds a match of a regular expression in `frozen`.
    A parameter used several times stays one.

    Args:
        module: gives the first weights.
        encodings: what named parameters are to be stored in; others keep their encoding.
        frozen: regular expressions.
        function: the function to run; it keeps no state.

    Raises:
        InputError: for a function that is missing or keeps states, a named parameter that it does not train, an encoding
            that cannot be trained, or an expression in `frozen` that is none.
        IRError: for an encoding that cannot hold its parameter.
    """

    def __init__(
        self,
        module: Module,
        encodings: Mapping[str, Encoding] | None = None,
        *,
        frozen: Sequence[str] = (),
        function: str = "forward",
    ) -> None:
        super().__init__()
        self.ir = module
        self.function = _stateless(module, function)
        self.inputs = tuple(v.name for v in self.function.inputs)
        encodings = encodings or {}
        names = dict.fromkeys(r.name for r in self.function.references() if isinstance(r, ParamRef))
        reasons = {name: _not_trained(module.params[name], name in encodings, frozen) for name in names}
        reasons |= dict.fromkeys(tables(self.function), "it is a constant table there")
        self._masters, self._alphas = torch.nn.ParameterList(), torch.nn.ParameterList()
        self._master: dict[str, int] = {}
        self._alpha: dict[str, int] = {}
        self._quantizers: dict[str, Quantizer] = {}
        self._fixed: dict[str, str] = {}
        self.encodings: dict[str, Encoding] = {}
        for name in encodings:
            reason = reasons.get(name) if name in names else f"{function!r} reads no such parameter"
            if reason:
                raise InputError(f"{name!r} cannot be trained for {encodings[name]}: {reason}")
        for name in names:
            value = module.params[name].value()
            if reasons[name] or not bool(torch.isfinite(value).all()):
                if name in encodings:
                    raise InputError(
                        f"parameter {name!r} holds NaN or infinity and cannot be quantised; repair it first"
                    )
                self._fixed[name] = f"fixed{len(self._fixed)}"
                self.register_buffer(self._fixed[name], value, persistent=False)
            else:
                self._add(name, value, encodings.get(name, module.params[name].encoding))

    def _add(self, name: str, value: torch.Tensor, encoding: Encoding) -> None:
        """Begin to train a parameter."""
        self.encodings[name] = encoding
        encoding.layout(self.ir.params[name].type)
        # A copy: what a parameter in memory holds must not change with the master.
        master = value.to(torch.float64 if value.dtype == torch.float64 else torch.float32, copy=True)
        self._master[name] = len(self._masters)
        self._masters.append(torch.nn.Parameter(master))
        if not isinstance(encoding, Dense):
            self._quantizers[name] = quantizer = quantizer_of(encoding, name)
            self._alpha[name] = len(self._alphas)
            self._alphas.append(torch.nn.Parameter(quantizer.first_alpha(master)))

    def trained(self) -> dict[str, torch.nn.Parameter]:
        """Masters as "weight:NAME" and learned scales as "alpha:NAME"."""
        masters = {f"weight:{name}": self._masters[number] for name, number in self._master.items()}
        return masters | {f"alpha:{name}": self._alphas[number] for name, number in self._alpha.items()}

    def weight(self, name: str) -> torch.Tensor:
        """A parameter as the operations see it, in its declared dtype."""
        if name in self._fixed:
            fixed: torch.Tensor = getattr(self, self._fixed[name])
            return fixed
        master, encoding = self._masters[self._master[name]], self.encodings[name]
        if name in self._quantizers:
            seen = self._quantizers[name](master, self._alphas[self._alpha[name]])
        else:
            assert isinstance(encoding, Dense)
            seen = round_straight(master, encoding.dtype)
        return seen.to(self.ir.params[name].type.dtype)

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

    def deployed(self) -> Module:
        """The module with the weights as they are now: each holds, bit for bit, what the operations saw."""
        return self.ir.with_params([self._deployed(self.ir.params[name], e) for name, e in self.encodings.items()])

    def _deployed(self, param: Param, encoding: Encoding) -> Param:
        master = self._masters[self._master[param.name]].detach()
        if param.name in self._quantizers:
            quantizer = self._quantizers[param.name]
            rounded = quantizer.rounded(master, self._alphas[self._alpha[param.name]])
            return Param(param.name, param.type, encoding, InMemory(quantizer.encoding.packed(rounded)))
        storage = {field: tensor.clone() for field, tensor in encoding.encode(master).items()}
        return Param(param.name, param.type, encoding, InMemory(storage))


class _Runner(Interpreter):
    """Runs the nodes over a network's weights, each made once for all its uses."""

    def __init__(self, network: Network) -> None:
        super().__init__(network.ir)
        self._network = network
        self._made: dict[str, torch.Tensor] = {}

    def param(self, name: str) -> torch.Tensor:
        if name not in self._made:
            self._made[name] = self._network.weight(name)
        return self._made[name]

    def evaluate(
        self, node: Node, operands: tuple[torch.Tensor | None, ...], known: Mapping[str, int]
    ) -> tuple[torch.Tensor, ...]:
        if isinstance(node.op, QuantizeActivation):
            assert operands[0] is not None
            return float_codes(operands[0])
        if isinstance(node.op, Attention):
            fused = fused_attention(node.op.bind(known), operands)
            if fused is not None:
                return (fused,)
        return super().evaluate(node, operands, known)


def _stateless(module: Module, name: str) -> Function:
    """The function of that name, if it can be trained."""
    if name not in module.functions:
        raise InputError(f"the model has no function {name!r} to train; it has {', '.join(module.functions)}")
    function = module.functions[name]
    if function.updates or any(isinstance(r, StateRef) for r in function.references()):
        raise InputError(f"function {name!r} keeps states and cannot be trained; only a function without states can")
    check_readers(function)
    return function


def _not_trained(param: Param, named: bool, frozen: Sequence[str]) -> str:
    """Why a parameter is not trained, "" if it is."""
    if not param.type.dtype.is_floating_point:
        return "it holds no floats"
    for pattern in frozen:
        try:
            if re.search(pattern, param.name):
                return f"{pattern!r} in `frozen` matches it"
        except re.error as error:
            raise InputError(f"{pattern!r} in `frozen` is no regular expression: {error}") from error
    return "" if named or isinstance(param.encoding, Dense) else f"it is already stored as {param.encoding}"
