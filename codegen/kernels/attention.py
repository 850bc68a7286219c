"""Softmax attention on a cache of keys and values: prefill, extend and decode in one kernel.

Keys are visited block by block with a running maximum and a running sum (Milakov and Gimelshein, "Online normalizer
calculation for softmax", 2018; Dao et al., "FlashAttention", 2022), so no matrix of scores is ever stored. A thread
takes a *task*: some rows of queries that share a key-value head, a row being one query head at one position, and all
blocks that any of them sees; within a task the rows pass in *subtiles* over each block, and a subtile visits only those
*groups* of keys in the block that one of its rows sees.

The law. Blocks and groups stand at fixed positions of the sequence. What a block does to a row is a fixed sequence of
operations, in which keys the row does not see add zero, and a block of which it sees nothing multiplies by one. So the
bits of a row depend on its query and on the keys and values it sees, and not on how many queries are computed together,
nor in how many calls.

Of keys and values held in few bits the numbers are multiplied; the scale of a key multiplies its score, that of a value its
weight, once each, which is the same for every company too.

The mask is a range of keys for each position (causal, window, chunk and the number of keys are all ranges) and, besides,
a padding flag for each key.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd
from typing import Any

from tvm.tirx.script import builder as T

from planish.codegen.kernels import emit
from planish.codegen.kernels.attention_task import AttentionTask
from planish.codegen.kernels.cache_codes import Codes
from planish.codegen.kernels.float_gemm import check_registers
from planish.codegen.kernels.kv_cache import CacheLayout
from planish.codegen.kernels.vectors import padded
from planish.codegen.tiles.float import Expr, FloatTile


@dataclass(frozen=True)
class Attention:
    """One attention kernel: the mathematics first, then the operands it takes, then how it is cut.

    Attributes:
        heads, kv_heads: Hq and Hkv; query head h reads key-value head h // (Hq / Hkv).
        size, value_size: D and Dv.
        scale: multiplies the products of query and key.
        cache_dtype: float32, float16 or bfloat16; what codes stand for is float32.
        key_codes, value_codes: how keys and values are held in few bits, None where they lie in cache_dtype. What is
            read as both is held as values are.
        tile: the machine's vectors.
        causal: key j is visible at position p only if j <= p.
        window: only if j > p - window.
        chunk: only if j // chunk == p // chunk.
        softcap: the scaled product s becomes softcap * tanh(s / softcap).
        padding, start, kv_length, slopes, sinks: whether the kernel takes that operand.
        shared: keys and values are one tensor, which lies as values do; each task turns the keys of a block as it comes.
        bias: None, or for each of the axes (batch, heads, length, keys) whether the bias has it; else it is 1 there.
        rows, key_vectors, value_vectors: register tiles, in rows and in vectors of keys or of value elements.
        block_vectors: vectors of keys in a block. Like key_vectors, part of the result's bits.
        task_rows: rows in a task, a multiple of `rows`.
    """

    heads: int
    kv_heads: int
    size: int
    value_size: int
    scale: float
    cache_dtype: str
    tile: FloatTile
    key_codes: Codes | None = None
    value_codes: Codes | None = None
    causal: bool = True
    window: int | None = None
    chunk: int | None = None
    softcap: float | None = None
    padding: bool = False
    start: bool = True
    kv_length: bool = True
    slopes: bool = False
    sinks: bool = False
    shared: bool = False
    bias: tuple[bool, bool, bool, bool] | None = None
    rows: int = 6
    key_vectors: int = 4
    value_vectors: int = 4
    block_vectors: int = 16
    task_rows: int = 48

    def __post_init__(self) -> None:
        if self.kv_heads < 1 or self.heads < 1 or self.heads % self.kv_heads:
            raise ValueError(f"{self.heads} query heads cannot share {self.kv_heads} key-value heads evenly")
        if min(self.size, self.value_size) < 1:
            raise ValueError(f"heads need at least one element, got {self.size} and {self.value_size}")
        if self.shared and self.size != self.value_size:
            raise ValueError(f"keys of {self.size} and values of {self.value_size} elements cannot be one tensor")
        if self.shared and self.key_codes is not None:
            raise ValueError("what is read as keys and as values has the codes of values")
        for name, span in (("window", self.window), ("chunk", self.chunk)):
            if span is not None and span < 1:
                raise ValueError(f"the attention's {name} must be at least 1, got {span}")
        check_registers(self.tile, self.rows, max(self.key_vectors, self.value_vectors))
        if self.rows > self.tile.lanes:
            raise ValueError(
                f"an attention subtile of {self.rows} rows has more than the {self.tile.lanes} lanes of a vector"
            )
        if self.block_vectors % self.key_vectors or self.task_rows % self.rows:
            raise ValueError(
                f"blocks of {self.block_vectors} vectors must be cut evenly by {self.key_vectors}, and tasks of "
                f"{self.task_rows} rows by {self.rows}"
            )

    @property
    def group(self) -> int:
        """Query heads that share a key-value head."""
        return self.heads // self.kv_heads

    @property
    def block(self) -> int:
        """Keys in a block."""
        return self.block_vectors * self.tile.lanes

    @property
    def padded_value_size(self) -> int:
        """Elements of a value with the padding in the cache."""
        return padded(self.value_size, self.tile.lanes)

    @property
    def keys_layout(self) -> CacheLayout:
        """How the kernel reads keys."""
        if self.shared:
            return self.values_layout
        return CacheLayout("keys", self.kv_heads, self.size, self.cache_dtype, self.tile.lanes, self.key_codes)

    @property
    def values_layout(self) -> CacheLayout:
        """How the kernel reads values."""
        return CacheLayout(
            "values", self.kv_heads, self.value_size, self.cache_dtype, self.tile.lanes, self.value_codes
        )

    @property
    def scaled(self) -> tuple[str, ...]:
        """Which of "keys" and "values" have scales; what is read as both is values."""
        codes = {"keys": self.key_codes, "values": self.value_codes}
        return tuple(name for name, held in codes.items() if held is not None)

    @property
    def heights(self) -> list[int]:
        """Rows of the register tiles there are code for: the full one, and smaller ones for what is left over."""
        step = gcd(self.group, self.rows)
        return sorted({self.rows, *(h for h in (1, 2, 4) if h < self.rows and h % step == 0), step})

    @property
    def streaming_heights(self) -> list[int]:
        """Heights at which the next block is asked for ahead: with few rows to a task, memory is what is waited for."""
        return [height for height in self.heights if height < self.rows]


def configure(tile: FloatTile, **attributes: Any) -> Attention:
    """The kernel for a machine's vectors with register tiles that fill its registers."""
    # One vector of a subtile holds a number for each of its rows.
    rows, vectors = min(6, tile.lanes), 4 if tile.registers >= 32 else 2
    # Shared keys are turned into a buffer, which should stay in the core's own cache: one group of them at a time.
    block = vectors if attributes.get("shared") else 256 // tile.lanes
    return Attention(
        tile=tile, rows=rows, key_vectors=vectors, value_vectors=vectors, block_vectors=block, **attributes
    )


class Operands:
    """The arguments of one kernel; those it does not take are None."""

    def __init__(self, config: Attention) -> None:
        self.batch, self.length = emit.symbol("batch"), emit.symbol("length")
        self.panels, self.capacity = emit.symbol("panels"), emit.symbol("capacity")
        self.q = emit.argument("q", (self.batch, self.length, config.heads, config.size), "float32")
        self.k = None if config.shared else config.keys_layout.argument("k", self.batch, self.panels)
        self.v = config.values_layout.argument("v", self.batch, self.capacity)

        def optional(name: str, taken: bool, shape: tuple[Expr | int, ...], dtype: str) -> Expr:
            return emit.argument(name, shape, dtype) if taken else None

        self.padding = optional("padding", config.padding, (self.batch, self.capacity), "bool")
        self.start = optional("start", config.start, (self.batch,), "int64")
        self.kv_length = optional("kv_length", config.kv_length, (self.batch,), "int64")
        self.slopes = optional("slopes", config.slopes, (config.heads,), "float32")
        self.sinks = optional("sinks", config.sinks, (config.heads,), "float32")
        self.bias = None
        if config.bias is not None:
            full = (self.batch, config.heads, self.length, self.capacity)
            shape = tuple(extent if has else 1 for extent, has in zip(full, config.bias, strict=True))
            self.bias = emit.argument("bias", shape, "float32")
        self.y = emit.argument("y", (self.batch, self.length, config.heads, config.value_size), "float32")


def attention(config: Attention) -> Any:
    """The PrimFunc ``(q, [k], v, [padding], [start], [kv_length], [slopes], [sinks], [bias], y)`` of ``config``.

    q (B, S, Hq, D) and y (B, S, Hq, Dv) are float32; k and v are caches in `keys_layout` and `values_layout`, for the
    same capacity C, v alone when they are one; padding is bool (B, C), true where a key may be seen; start and kv_length
    are int64 (B,); slopes and sinks float32 (Hq,); bias float32 (B or 1, Hq or 1, S or 1, C or 1).

    Query i of row b stands at position start[b] + i (i without start). Keys from kv_length[b] (C without it) on are
    invisible. The score is ``scale * <q, k>``, capped, plus ``slopes[h] * (j - p)``, plus the bias; ``sinks[h]`` is one
    more logit in the denominator. A query that sees nothing gives zeros. Keys and values that are invisible to every
    query may hold anything, NaN included; those that some query sees must be finite.
    """

    def body() -> None:
        operands = Operands(config)
        if not config.shared:
            fits = operands.panels * config.tile.lanes >= operands.capacity
            with T.Assert(fits, "attention: fewer keys than values in the cache"):
                pass
        tiles = emit.ceil_div(operands.length * config.group, config.task_rows)
        with emit.tasks("task", operands.batch * config.kv_heads * tiles) as task:
            number = emit.bind("number", task % tiles)
            # Late rows see more keys: from both ends inwards, any stretch of tasks costs about the same.
            tile = emit.bind("tile", T.Select(number % 2 == 0, number // 2, tiles - 1 - number // 2))
            head = emit.bind("head", task // tiles % config.kv_heads)
            b = emit.bind("b", task // tiles // config.kv_heads)
            AttentionTask(config, operands, b, head, tile * config.task_rows).run()

    return emit.prim_func("attention", body)
