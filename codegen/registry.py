"""The kernel families, one line each. Families outside the package register as `planish.kernels` entry points."""

from __future__ import annotations

from functools import lru_cache
from importlib.metadata import entry_points
from itertools import product

import torch

from planish.codegen.aten import tables
from planish.codegen.families.along_axis import PickFamily, ScanFamily
from planish.codegen.families.attention import AttentionFamily, CacheAppendFamily
from planish.codegen.families.conv2d import Conv2dFamily
from planish.codegen.families.embedding import EmbeddingFamily
from planish.codegen.families.hadamard import HadamardFamily
from planish.codegen.families.linear import LinearFamily
from planish.codegen.families.matmul import MatmulFamily
from planish.codegen.families.norms import NormFamily
from planish.codegen.families.positions import PositionsFamily
from planish.codegen.families.quantized_linear import QuantizeActivationFamily, QuantizedLinearFamily
from planish.codegen.families.rope import RopeFamily
from planish.codegen.families.softmax import SoftmaxFamily
from planish.codegen.family import Family, Kernel, Site
from planish.codegen.target import Target
from planish.ir import (
    Builder,
    Dense,
    Encoding,
    Float8,
    GroupedInt,
    InMemory,
    Levels,
    Module,
    MxFp4,
    Node,
    NvFp4,
    Param,
    ParamRef,
    TensorType,
)
from planish.ir.encodings.grouped import SCALE_DTYPES
from planish.ir.encodings.levels import KINDS
from planish.ir.ops import Linear, QuantizedLinear

FAMILIES: tuple[Family, ...] = (
    LinearFamily(),
    MatmulFamily(),
    QuantizeActivationFamily(),
    QuantizedLinearFamily(),
    HadamardFamily(),
    NormFamily(),
    PositionsFamily(),
    RopeFamily(),
    SoftmaxFamily(),
    AttentionFamily(),
    CacheAppendFamily(),
    EmbeddingFamily(),
    Conv2dFamily(),
    ScanFamily(),
    PickFamily(),
)


@lru_cache(maxsize=1)
def families() -> tuple[Family, ...]:
    """Those from outside first, so that they may serve what the package serves too."""
    outside = [point.load()() for point in entry_points(group="planish.kernels")]
    return (*outside, *FAMILIES)


def select(node: Node, site: Site) -> Kernel | list[str]:
    """The kernel for a node, or why each family that might serve it does not."""
    overload = tables.overload(node)
    name = f"aten.{overload}" if overload else node.op.name
    reasons = []
    for family in families():
        if name in family.ops:
            found = family.select(node, site)
            if isinstance(found, Kernel):
                return found
            reasons.append(found)
    return reasons


@lru_cache(maxsize=16)
def served_encodings(target: Target) -> frozenset[tuple[str, Encoding]]:
    """The (operation, encoding of its weight) pairs for which a target has a kernel that reads the weight as it is.

    Remembered for each target: it takes hundreds of selections, and a build asks for its passes and for its report.
    """
    candidates: list[Encoding] = [Dense(d) for d in (torch.float32, torch.float16, torch.bfloat16)]
    candidates += [NvFp4(), MxFp4(), Float8("row"), Float8("tensor")]
    for group, scales in product((32, 64, 128), SCALE_DTYPES):
        candidates += [GroupedInt(bits, group, scales, zeros) for bits in range(1, 9) for zeros in (False, True)]
        candidates += [Levels(kind, group, scales) for kind in KINDS]  # type: ignore[arg-type]
    return frozenset(
        (name, e) for e in candidates for name in ("linear", "quantized_linear") if _serves(name, e, target)
    )


def _serves(name: str, encoding: Encoding, target: Target) -> bool:
    """Whether a layer of ordinary size has a kernel of its own."""
    size = 256
    type = TensorType(torch.float32, (size, size))
    param = Param("weight", type, encoding, InMemory({}))
    builder = Builder("probe")
    weight = ParamRef("weight", type)
    if name == "linear":
        x = builder.input("x", TensorType(torch.float32, (1, size)))
        node = builder.node(Linear(), x, weight, None)
    else:
        codes = builder.input("codes", TensorType(torch.int8, (1, size)))
        scale = builder.input("scale", TensorType(torch.float32, (1, 1)))
        node = builder.node(QuantizedLinear(), codes, scale, weight, None)
    return isinstance(select(node, Site(Module({}, {"weight": param}), target)), Kernel)
