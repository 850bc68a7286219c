"""A function of a module whose weights can be trained.

What is kept of a parameter between two steps is its *master*, float32 (float64 where the parameter is); what operations see
is the master as its encoding will hold it, with a straight-through gradient: fake-quantised for a grid of levels, rounded for
a narrower float.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import torch

from planish.ir.encodings import Dense, Encoding
from planish.ir.errors import InputError
from planish.ir.module import Module, ParamRef
from planish.ir.params import InMemory, Param
from planish.passes.training.quantizers import Quantizer, quantizer_of, round_straight
from planish.passes.training.runnable import Runnable
from planish.passes.training.tables import tables


class Network(Runnable):
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
        super().__init__(module, function)
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
