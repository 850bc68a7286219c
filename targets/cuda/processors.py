"""The CUDA processors that planish compiles for: limits of their architecture, and the figures of one product of each."""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from planish.ir import InputError


@dataclass(frozen=True)
class Processor:
    """One architecture.

    Attributes:
        name: nvcc's name of the machine code, "sm_90".
        shared_bytes: shared memory that one block may have.
        group_products: whether it has the products of four warps that Hopper introduced and Blackwell gave up (wgmma).
        overlaps: whether a kernel may start while the one before it ends (programmatic dependent launch).
        multiprocessors, bytes_per_second, float32, bf16, int8: of the product named in `product`: its multiprocessors, its
            memory, and arithmetic operations a second, dense, those of bf16 and int8 by tensor cores (NVIDIA's data sheets).
    """

    name: str
    product: str
    shared_bytes: int
    multiprocessors: int
    bytes_per_second: float
    float32: float
    bf16: float
    int8: float
    group_products: bool = False
    overlaps: bool = False

    @property
    def code(self) -> str:
        """nvcc's name of the code: group products are of one generation alone, which it calls by a letter."""
        return f"{self.name}a" if self.group_products else self.name


PROCESSORS = {
    p.name: p
    for p in (
        Processor("sm_80", "A100 SXM 80 GB", 163 << 10, 108, 2.039e12, 19.5e12, 312e12, 624e12),
        Processor("sm_89", "L40S", 99 << 10, 142, 0.864e12, 91.6e12, 362e12, 733e12),
        Processor(
            "sm_90", "H100 SXM", 227 << 10, 132, 3.35e12, 66.9e12, 989e12, 1979e12, group_products=True, overlaps=True
        ),
        Processor("sm_100", "B200", 227 << 10, 148, 8.0e12, 75e12, 2250e12, 4500e12, overlaps=True),
    )
}


def find_processor(name: str) -> Processor:
    """The processor of a name; "" means sm_90.

    Raises:
        InputError: for an unknown name, with the nearest known one.
    """
    if not name:
        return PROCESSORS["sm_90"]
    if name in PROCESSORS:
        return PROCESSORS[name]
    close = difflib.get_close_matches(name, PROCESSORS, n=1, cutoff=0.4)
    hint = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(PROCESSORS)}"
    raise InputError(f"there is no CUDA processor {name!r}; {hint}")
