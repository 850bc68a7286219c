"""One compiled function with its signature: arguments are checked here, so that compiled code need not guess."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from planish.codegen.runtime.device import Device
from planish.codegen.runtime.errors import input_error
from planish.codegen.runtime.sizes import parse_type
from planish.codegen.runtime.tensors import as_array, is_torch


class Program:
    """A compiled function.

    Attributes:
        inputs: names and types of its tensors, in order.
        outputs: names and types of its results.
        states: names of the states it takes after its inputs; it writes them where they are.
        ranges: by symbol, the least and the largest size (None: no limit) for which the function holds.
    """

    def __init__(
        self, name: str, device: Device, function: Any, signature: Mapping[str, Any], weights: Mapping[str, Any],
        ranges: Mapping[str, tuple[int, int | None]],
    ) -> None:  # fmt: skip
        self.name, self.ranges = name, ranges
        self._device, self._function = device, function
        self.inputs = {i["name"]: parse_type(i["type"]) for i in signature["inputs"]}
        self.outputs = {o["name"]: parse_type(o["type"]) for o in signature["outputs"]}
        self.states: list[str] = list(signature["states"])
        self._weights = device.bundle([weights[key] for key in signature["weights"]])

    def __call__(self, tensors: Sequence[Any] | Mapping[str, Any], states: Sequence[Any] = ()) -> list[Any]:
        """Results in order: torch tensors if any argument is one, else numpy arrays.

        `states` are the device's, as they lie in memory, in the order of `self.states`; they are written in place.

        Raises:
            InputError: when a tensor is missing, its dtype or shape is not the declared one, or a size is out of range.
        """
        given = self._in_order(tensors)
        arguments, device = self._checked(given), self._device
        results = device.call(self._function, arguments, states, self._weights, len(self.outputs))
        wants_torch = any(is_torch(t) for t in given)
        return [device.fetch(r, type, wants_torch) for r, type in zip(results, self.outputs.values())]

    def _in_order(self, tensors: Sequence[Any] | Mapping[str, Any]) -> list[Any]:
        names = list(self.inputs)
        if isinstance(tensors, Mapping):
            if set(tensors) != set(names):
                raise input_error(f"{self.name} takes the tensors {', '.join(names)}, but got {', '.join(tensors)}")
            return [tensors[n] for n in names]
        if len(tensors) != len(names):
            raise input_error(f"{self.name} takes {len(names)} tensors ({', '.join(names)}), but got {len(tensors)}")
        return list(tensors)

    def _checked(self, tensors: Sequence[Any]) -> list[Any]:
        """The tensors as arrays of the declared dtypes and shapes."""
        sizes: dict[str, int] = {}
        arrays = []
        for tensor, (name, type) in zip(tensors, self.inputs.items()):
            what = f"the tensor {name!r} of {self.name}"
            array = as_array(tensor, type, what)
            type.bind(array.shape, sizes, what)
            arrays.append(array)
        for symbol, (low, high) in self.ranges.items():
            size = sizes.get(symbol, low)
            if size < low or (high is not None and size > high):
                limits = f"at least {low}" if high is None else f"{low} to {high}"
                raise input_error(f"{symbol} is {size} in these tensors, but {self.name} was traced for {limits}")
        return arrays
