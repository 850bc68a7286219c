"""Running sums, positions of extrema and the k largest, along one axis."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch

from planish.codegen.dialect import emitted_once
from planish.codegen.dims import product
from planish.codegen.family import Emitter, Expr, Family, Kernel, Site
from planish.codegen.kernels import along_axis as kernels
from planish.codegen.legalise import bound_arguments
from planish.codegen.pointwise.dtypes import STORAGE
from planish.ir import Dim, Node, TensorType
from planish.ir.ops import Aten


@emitted_once
def _scan(config: kernels.Scan) -> Any:
    return kernels.scan(config)


@emitted_once
def _pick(config: kernels.Pick) -> Any:
    return kernels.pick(config)


def _seen_from(type: TensorType, axis: int) -> list[Dim]:
    """[outer, axis, inner]."""
    return [product(type.shape[:axis]), type.shape[axis], product(type.shape[axis + 1 :])]


class ScanFamily(Family):
    """Running sums and products."""

    name: ClassVar[str] = "scan"
    ops: ClassVar[frozenset[str]] = frozenset({"aten.cumsum.default", "aten.cumprod.default"})

    def select(self, node: Node, site: Site) -> Kernel | str:
        assert isinstance(node.op, Aten)
        x, result = node.inputs[0], node.output.type
        assert x is not None
        if x.type.rank == 0:
            return "a running sum of a single number is that number: leave it out"
        shape = _seen_from(x.type, int(bound_arguments(node)["dim"]) % x.type.rank)
        config = kernels.Scan("sum" if "sum" in node.op.overload else "product", x.type.dtype, result.dtype)

        def emit(to: Emitter, operands: Sequence[Expr | None]) -> list[Expr]:
            (y,) = to.call(_scan(config), [to.view(operands[0], shape)], [(shape, STORAGE[result.dtype])])
            return [to.view(y, result.shape)]

        elements = product(x.type.shape)
        moved = elements * (x.type.dtype.itemsize + result.dtype.itemsize)
        return Kernel(self.name, "one element beside the axis at a time", (0,), emit, traffic=moved, work=elements)


class PickFamily(Family):
    """argmax and argmin, max and min with indices, topk, sort and argsort, by repeated selection."""

    name: ClassVar[str] = "pick"
    ops: ClassVar[frozenset[str]] = frozenset(
        f"aten.{name}"
        for name in (
            "argmax.default argmin.default max.dim min.dim topk.default sort.default sort.stable argsort.default"
        ).split()
    )

    def select(self, node: Node, site: Site) -> Kernel | str:
        assert isinstance(node.op, Aten)
        x, arguments, overload = node.inputs[0], bound_arguments(node), node.op.overload
        assert x is not None
        kind = overload.split(".")[0]
        flat = arguments.get("dim") is None
        shape: list[Dim] = [1, product(x.type.shape), 1]
        if not flat and x.type.rank:
            shape = _seen_from(x.type, int(arguments["dim"]) % x.type.rank)
        count = arguments.get("k", shape[1] if "sort" in kind else 1)
        if not isinstance(count, int):
            return f"sorting an axis of a size known only at run time ({count}) has no kernel"
        larger = arguments.get("largest", arguments.get("descending", "max" in kind))
        values, indices = "arg" not in kind, True
        config = kernels.Pick("largest" if larger else "smallest", x.type.dtype, count, values, indices)
        shown = [shape[0], count, shape[2]]

        def emit(to: Emitter, operands: Sequence[Expr | None]) -> list[Expr]:
            results = [(shown, STORAGE[x.type.dtype])] if values else []
            made = to.call(_pick(config), [to.view(operands[0], shape)], [*results, (shown, STORAGE[torch.int64])])
            return [to.view(t, v.type.shape) for t, v in zip(made, node.outputs)]

        elements = product(x.type.shape)
        return Kernel(
            f"{self.name}[{config.order}]",
            f"{count} walks along the axis for each element beside it",
            (0,),
            emit,
            traffic=elements * x.type.dtype.itemsize + product(shown) * (8 + x.type.dtype.itemsize * values),
            work=count * elements,
        )
