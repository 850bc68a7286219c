"""What a quantisation method of a checkpoint is: which stored tensors make up a weight, and the encoding that holds them.

Nothing is dequantised. Codes and scales of the file become the storage of an encoding, repacked each time it is read. The
precision of a weight is what its own tensors hold; the config says only what they cannot.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch

from planish.frontends.stored import StoredTensor, some
from planish.ir import Computed, Encoding, InputError, Param, TensorType, UnsupportedError
from planish.ir.params import Storage

Held = tuple[Encoding, Callable[[], Storage]]
"""An encoding and what reads its storage."""


@dataclass(frozen=True)
class Method(ABC):
    """A method of quantisation.

    Attributes:
        notes: what the config asks for beyond weights, a sentence each; it is not done.
    """

    name: ClassVar[str]
    # A module with one of `required` has quantised weights and needs all of them; `optional` ones belong to it too.
    required: ClassVar[tuple[str, ...]]
    optional: ClassVar[tuple[str, ...]] = ()
    # Scales of activations and of cached keys and values, wherever they are.
    ignored: ClassVar[tuple[str, ...]] = ()
    notes: tuple[str, ...] = ()

    def gather(self, stored: Mapping[str, StoredTensor]) -> dict[str, StoredTensor | QuantizedWeight]:
        """The tensors that are as they would be in a dense checkpoint, and the quantised weights as "<module>.weight".

        Raises:
            InputError: for a weight that lacks one of its tensors.
        """
        parts: dict[str, dict[str, StoredTensor]] = {}
        for key, tensor in stored.items():
            module, _, field = key.rpartition(".")
            parts.setdefault(module, {})[field] = tensor
        gathered: dict[str, StoredTensor | QuantizedWeight] = {}
        for module, fields in parts.items():
            for field in self.ignored:
                fields.pop(field, None)
            if self.is_quantized(fields):
                own = {f: fields.pop(f) for f in (*self.required, *self.optional) if f in fields}
                absent = [f"{module}.{f}" for f in self.required if f not in own]
                if absent:
                    raise InputError(
                        f"the quantised weight of {module!r} lacks {some(absent)}, without which its {self.name} codes mean "
                        "nothing; get a complete copy of the checkpoint"
                    )
                gathered[f"{module}.weight"] = QuantizedWeight(f"{module}.weight", own, self)
            gathered.update({f"{module}.{field}" if module else field: t for field, t in fields.items()})
        return gathered

    def is_quantized(self, fields: Mapping[str, StoredTensor]) -> bool:
        """Whether a module with these tensors has a quantised weight."""
        return any(field in fields for field in self.required)

    def says_nothing(self, tensor: StoredTensor) -> bool:
        """Whether a tensor that the model has no place for may be left out."""
        return False

    @abstractmethod
    def held(self, weight: QuantizedWeight, outs: int, ins: int) -> Held:
        """What holds the weight [outs, ins] of a linear map.

        Raises:
            InputError: for tensors of a wrong shape or dtype.
            UnsupportedError: for what no encoding holds exactly.
        """


@dataclass(frozen=True)
class QuantizedWeight:
    """A weight made of several stored tensors, `parts` by their last names ("qweight"); `key` is its name when dense."""

    key: str
    parts: Mapping[str, StoredTensor]
    method: Method

    def param(self, name: str, wanted: torch.Tensor, module: torch.nn.Module) -> Param:
        """The parameter `name` of `module`, of the shape and dtype of `wanted`; raises as `Method.held` does."""
        if not isinstance(module, torch.nn.Linear | torch.nn.Embedding):
            raise UnsupportedError(
                f"parameter {name!r} is quantised by {self.method.name}, but belongs to a {type(module).__name__}, which "
                "is no linear map or embedding with a weight [out, in]; give the checkpoint in floating point"
            )
        outs, ins = wanted.shape
        encoding, compute = self.method.held(self, outs, ins)
        return Param(name, TensorType(wanted.dtype, (outs, ins)), encoding, Computed(compute))

    def expect(
        self, part: str, dtypes: torch.dtype | tuple[torch.dtype, ...], *shapes: tuple[int, ...]
    ) -> StoredTensor:
        """That part, if it has one of these dtypes and shapes; raises InputError otherwise."""
        tensor, allowed = self.parts[part], dtypes if isinstance(dtypes, tuple) else (dtypes,)
        if tensor.dtype not in allowed or tensor.shape not in shapes:
            words = " or ".join(str(d).removeprefix("torch.") for d in allowed)
            raise InputError(
                f"tensor {tensor.key!r} in {tensor.path.name} is {tensor}, but the config and the tensors beside it ask for "
                f"{words} {' or '.join(str(list(s)) for s in shapes)}; get an intact copy of the checkpoint"
            )
        return tensor

    def unsupported(self, what: str) -> UnsupportedError:
        """The refusal of this weight."""
        return UnsupportedError(
            f"the weight {self.key!r}, quantised by {self.method.name}, {what}; give the checkpoint in floating point or "
            "quantise it another way"
        )
