"""Attention over caches, and the appends that fill them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch

from planish.codegen.dialect import emitted_once
from planish.codegen.dims import product
from planish.codegen.family import Emitter, Expr, Family, Kernel, Packed, Site
from planish.codegen.kernels import attention as kernels
from planish.codegen.kernels.blocks import attention as blocks
from planish.codegen.kernels.blocks.cache_append import cache_append as cache_append_in_blocks
from planish.codegen.kernels.kv_cache import CacheLayout, cache_append, cache_pack
from planish.codegen.pointwise.dtypes import STORAGE
from planish.codegen.states import KEYS, VALUES, Layout, cache_layout
from planish.codegen.stored import as_float32
from planish.codegen.target import BlockLimits
from planish.ir import Node, Operand, TensorType
from planish.ir.ops import Attention

PADDING, START, KV_LENGTH, SLOPES, SINKS, BIAS = 3, 4, 5, 6, 7, 8


@emitted_once
def _attention(config: kernels.Attention) -> Any:
    return kernels.attention(config)


@emitted_once
def _in_blocks(config: kernels.Attention, limits: BlockLimits) -> Any:
    return blocks.attention(config, limits)


@emitted_once
def _append(layout: CacheLayout) -> Any:
    return cache_append_in_blocks(layout) if layout.in_words else cache_append(layout)


@emitted_once
def _pack(layout: CacheLayout) -> Any:
    return cache_pack(layout)


class AttentionFamily(Family):
    """One kernel for prefill, extend and decode; keys and values that no cache keeps are packed in front of it."""

    name: ClassVar[str] = "attention"
    ops: ClassVar[frozenset[str]] = frozenset({"attention"})

    def select(self, node: Node, site: Site) -> Kernel | str:
        q, k, v = node.inputs[:3]
        op = node.op
        assert q is not None and k is not None and v is not None and isinstance(op, Attention)
        if q.type.dtype != torch.float32 or k.type.dtype != torch.float32:
            return f"attention of {q.type.dtype} has no kernel"
        lanes = site.target.float_tile.lanes
        # What is read as both lies as values do, and is passed once.
        caches = {VALUES: v} if k == v else {KEYS: k, VALUES: v}
        layouts = [_layout(o, n, lanes, site) for n, o in caches.items()]
        vectors = {n: node.inputs[n] for n in (SLOPES, SINKS) if node.inputs[n] is not None}
        params = {n: site.param(operand) for n, operand in vectors.items()}
        heads, size = q.type.shape[2:]
        if any(p is None for p in params.values()):
            return "slopes or sinks are computed at run time"
        known = [layout for layout in layouts if layout is not None]
        if len(known) < len(layouts) or not isinstance(heads, int) or not isinstance(size, int):
            return "the numbers or the sizes of the heads are known at run time only"
        packs = {n: _pack_for(o, layout, site) for (n, o), layout in zip(caches.items(), layouts)}
        config = kernels.configure(
            site.target.float_tile,
            heads=heads,
            kv_heads=k.type.shape[2],
            size=size,
            value_size=v.type.shape[3],
            scale=op.scale,
            cache_dtype=known[0].dtype,
            key_codes=None if k == v else known[0].codes,
            value_codes=known[-1].codes,
            causal=op.causal,
            window=op.window,
            chunk=op.chunk,
            softcap=op.softcap,
            padding=node.inputs[PADDING] is not None,
            start=node.inputs[START] is not None,
            kv_length=node.inputs[KV_LENGTH] is not None,
            slopes=SLOPES in vectors,
            sinks=SINKS in vectors,
            shared=k == v,
            bias=_bias_axes(node.inputs[BIAS]),
        )
        limits = site.target.blocks
        tiling = None if limits is None else blocks.tiling(config, limits)
        if limits is not None and tiling is None:
            return f"heads of {config.size} and {config.value_size} elements do not fit into a block of threads"
        weights: dict[int, Packed] = {n: as_float32(p) for n, p in params.items() if p is not None}
        reads = tuple(n for n, o in enumerate(node.inputs) if o is not None and n not in weights)

        def emit(to: Emitter, operands: Sequence[Expr | None]) -> list[Expr]:
            packed = [_packed(to, operands[n], packs[n], o.type) for n, o in caches.items()]
            rest = [to.weight(weights[n]) if n in weights else operands[n] for n in range(PADDING, BIAS + 1)]
            inputs = [operands[0], *packed, *(o for o in rest if o is not None)]
            function = _attention(config) if limits is None else _in_blocks(config, limits)
            return to.call(function, inputs, [(node.output.type.shape, "float32")])

        schedule = f"key blocks of {config.block}, tasks of {config.task_rows} rows"
        if tiling is not None:
            schedule = (
                f"tiles of {tiling.block_rows} rows and {tiling.block_keys} keys, or parts of the keys for few rows"
            )
        queries, rows = product(q.type.shape[:2]), product(k.type.shape[:3])
        return Kernel(
            name=f"{self.name}[{', '.join([config.tile.name, *(_held(layout) for layout in known if layout.codes)])}]",
            schedule=schedule,
            reads=reads,
            emit=emit,
            weights=tuple(weights.values()),
            traffic=4 * 2 * queries * heads * size + rows * sum(layout.row_bytes for layout in known),
            work=2 * queries * heads * k.type.shape[1] * (size + v.type.shape[3]),
        )


def _layout(operand: Operand, number: int, lanes: int, site: Site) -> CacheLayout | None:
    """How attention reads an operand: as the state lies whose content it is, else as it has to be packed."""
    known = site.layouts.get(operand)
    return known.cache if known is not None and known.cache is not None else cache_layout(operand.type, number, lanes)


def _held(layout: CacheLayout) -> str:
    """A cache of codes, for the report."""
    assert layout.codes is not None
    return f"{layout.codes.format} {layout.kind}"


def _pack_for(operand: Operand, layout: CacheLayout | None, site: Site) -> CacheLayout | None:
    """The layout into which an operand must be packed first; None when it lies so already."""
    known = site.layouts.get(operand)
    return None if known is not None and known.cache == layout else layout


def _packed(to: Emitter, tensor: Expr, layout: CacheLayout | None, type: TensorType) -> Expr:
    if layout is None:
        return tensor
    (packed,) = to.call(_pack(layout), [tensor], [(Layout(layout).physical(type), STORAGE[type.dtype])])
    return packed


def _bias_axes(bias: Operand | None) -> tuple[bool, bool, bool, bool] | None:
    if bias is None:
        return None
    batch, heads, length, keys = (d != 1 for d in bias.type.shape)
    return batch, heads, length, keys


class CacheAppendFamily(Family):
    """New tokens written into a state where it lies."""

    name: ClassVar[str] = "cache_append"
    ops: ClassVar[frozenset[str]] = frozenset({"cache_append"})

    def select(self, node: Node, site: Site) -> Kernel | str:
        cache, new = node.inputs[:2]
        assert cache is not None and new is not None
        layout = site.layouts.get(node.output)
        if layout is None or layout.cache is None:
            return "it does not fill a cache that attention alone reads"
        kept = layout.cache
        if new.type.dtype != torch.float32:
            return f"new tokens of {new.type.dtype} have no kernel"

        def emit(to: Emitter, operands: Sequence[Expr | None]) -> list[Expr]:
            return [to.call_in_place(_append(kept), list(operands), 0)]

        elements = product(new.type.shape)
        return Kernel(
            name=f"{self.name}[{kept.kind if kept.codes is None else _held(kept)}]",
            schedule="a head at a time, in place",
            reads=(0, 1, 2, 3),
            emit=emit,
            traffic=4 * elements + product(new.type.shape[:3]) * kept.row_bytes,
            work=elements,
        )
