"""What a pass may know of a machine: a plain value, filled in by a target and handed to the passes."""

from __future__ import annotations

from dataclasses import dataclass

from planish.ir.encodings import Encoding


@dataclass(frozen=True)
class Capabilities:
    """Facts of one target.

    Attributes:
        name: the target's name, for messages.
        alignment: bytes to which buffers are aligned.
        cores: processor cores that one program may use.
        vector_bits: width of the widest vector register.
        features: instruction sets by their usual names ("avx2", "dotprod").
        kernels: (operation name, encoding of its weight) pairs that have a kernel of their own.
        bytes_per_second: memory bandwidth of one program on all its cores; None when it was not measured.
    """

    name: str
    alignment: int = 64
    cores: int = 1
    vector_bits: int = 128
    features: frozenset[str] = frozenset()
    kernels: frozenset[tuple[str, Encoding]] = frozenset()
    bytes_per_second: float | None = None

    def has_kernel(self, operation: str, encoding: Encoding) -> bool:
        """Whether the operation on weights so encoded has a kernel of its own."""
        return (operation, encoding) in self.kernels
