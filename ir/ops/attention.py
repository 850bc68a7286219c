"""Attention as one operation, with its mask described by attributes, and the cache that feeds it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from planish.ir.axes import AxisRule, AxisTie, leading_ties
from planish.ir.encodings import Encoding, require_rows, rounded
from planish.ir.op import Chooser, Op, Sample
from planish.ir.ops.sampling import choose_float
from planish.ir.spaces.laws import Indexing, Law, Place, any_of, elementwise, fresh, linear, operand, result
from planish.ir.spaces.terms import UNIT, Product, Term
from planish.ir.types import Dim, TensorType, as_dim, floor_div, same_dim


@dataclass(frozen=True)
class Attention(Op):
    """Softmax attention of q [batch, length, heads, size] over k and v [batch, keys, kv_heads, size].

    Query head h reads key-value head h // (heads / kv_heads). Query i of row b stands at position start[b] + i (start
    is 0 when absent), key j at position j. Key j is visible to a query at position p when all of these hold:
    j <= p if `causal`; j > p - `window`; j // `chunk` == p // `chunk`; j < kv_length[b]; padding[b, j]. A query that
    sees no key gives zeros.

    The score is scale * <q, k>, then `softcap` * tanh(score / softcap), then + slopes[h] * (j - p), then + bias, which
    broadcasts to [batch, heads, length, keys]; a bias of -inf makes a key invisible. `sinks[h]` is one more logit in the
    denominator of head h. Scores and softmax are computed in at least float32.
    """

    name: ClassVar[str] = "attention"
    operand_names: ClassVar[tuple[str, ...]] = (
        "q", "k", "v", "padding?", "start?", "kv_length?", "slopes?", "sinks?", "bias?",
    )  # fmt: skip
    scale: float
    causal: bool = True
    window: int | None = None
    chunk: int | None = None
    softcap: float | None = None

    @property
    def compares_positions(self) -> bool:
        """Whether the mask compares the position of a query with that of a key."""
        return self.causal or self.window is not None or self.chunk is not None

    def infer(self, *operands: TensorType | None) -> tuple[TensorType, ...]:
        q, k, v, padding, start, kv_length, slopes, sinks, bias = operands
        assert q is not None and k is not None and v is not None
        for name, each in (("q", q), ("k", k), ("v", v)):
            self.expect(each.rank == 4, f"{name} must have four axes, got {each}")
        self.expect(q.dtype.is_floating_point and k.dtype == v.dtype == q.dtype, f"dtypes differ: {q}, {k}, {v}")
        self.expect(same_dim(q.shape[0], k.shape[0]) and k.shape[:3] == v.shape[:3], f"{q}, {k} and {v} do not fit")
        self.expect(same_dim(q.shape[3], k.shape[3]), f"the heads of {q} and {k} differ in size")
        heads, kv_heads = q.shape[2], k.shape[2]
        grouped = not isinstance(heads, int) or not isinstance(kv_heads, int) or heads % kv_heads == 0
        self.expect(grouped, f"{heads} query heads cannot share {kv_heads} key-value heads evenly")
        batch = q.shape[0]
        expected = (
            ("padding", padding, TensorType(torch.bool, (batch, k.shape[1]))),
            ("start", start, TensorType(torch.int64, (batch,))),
            ("kv_length", kv_length, TensorType(torch.int64, (batch,))),
            ("slopes", slopes, TensorType(torch.float32, (heads,))),
            ("sinks", sinks, None if sinks is None else TensorType(sinks.dtype, (heads,))),
        )
        for name, got, want in expected:
            self.expect(got is None or got == want, f"{name} must be {want}, got {got}")
        if bias is not None:
            full = (batch, heads, q.shape[1], k.shape[1])
            fits = bias.rank == 4 and all(b == 1 or same_dim(b, f) for b, f in zip(bias.shape, full))
            self.expect(fits, f"bias {bias} does not broadcast to {full}")
        for name, size in (("window", self.window), ("chunk", self.chunk)):
            self.expect(size is None or size >= 1, f"{name} must be at least 1, got {size}")
        return (q.with_shape((*q.shape[:3], v.shape[3])),)

    def visible(
        self,
        lengths: tuple[int, int],
        padding: torch.Tensor | None,
        start: torch.Tensor | None,
        kv_length: torch.Tensor | None,
    ) -> torch.Tensor:
        """Which keys each query sees: bool [batch or 1, length, keys] for `lengths` = (length, keys)."""
        i, j = torch.arange(lengths[0]), torch.arange(lengths[1])
        p = (i.unsqueeze(0) if start is None else start.unsqueeze(1) + i).unsqueeze(-1)
        mask = torch.ones_like(p, dtype=torch.bool) & torch.ones_like(j, dtype=torch.bool)
        if self.causal:
            mask = mask & (j <= p)
        if self.window is not None:
            mask = mask & (j > p - self.window)
        if self.chunk is not None:
            mask = mask & (j // self.chunk == p // self.chunk)
        if kv_length is not None:
            mask = mask & (j < kv_length.view(-1, 1, 1))
        if padding is not None:
            mask = mask & padding.unsqueeze(1)
        return mask

    def evaluate(self, *operands: torch.Tensor | None) -> tuple[torch.Tensor, ...]:
        q, k, v, padding, start, kv_length, slopes, sinks, bias = operands
        assert q is not None and k is not None and v is not None
        wide = torch.float64 if q.dtype == torch.float64 else torch.float32
        length, keys, group = q.shape[1], k.shape[1], q.shape[2] // k.shape[2]
        mask = self.visible((length, keys), padding, start, kv_length).unsqueeze(1)
        if bias is not None:
            mask = mask & (bias != -torch.inf)
        # A key that no query sees may hold anything, even NaN: it must not reach the products.
        seen = mask.any(2).any(1).view(-1, keys, 1, 1)
        heads_k = torch.where(seen, k, 0).to(wide).repeat_interleave(group, 2).permute(0, 2, 3, 1)
        heads_v = torch.where(seen, v, 0).to(wide).repeat_interleave(group, 2).transpose(1, 2)
        scores = (q.to(wide).transpose(1, 2) @ heads_k) * self.scale
        if self.softcap is not None:
            scores = self.softcap * torch.tanh(scores / self.softcap)
        if slopes is not None:
            offset = torch.zeros(1, 1, 1, 1, dtype=torch.int64) if start is None else start.view(-1, 1, 1, 1)
            distance = torch.arange(keys).view(1, 1, 1, -1) - torch.arange(length).view(1, 1, -1, 1) - offset
            scores = scores + slopes.to(wide).view(1, -1, 1, 1) * distance.to(wide)
        if bias is not None:
            scores = scores + bias.to(wide)
        scores = torch.where(mask, scores, -torch.inf)
        if sinks is not None:
            sink = sinks.to(wide).view(1, -1, 1, 1).expand(scores.shape[0], -1, length, 1)
            weights = torch.cat([scores, sink], -1).softmax(-1)[..., :-1]
        else:
            weights = scores.softmax(-1)
        weights = torch.where(mask, weights, 0)
        return ((weights @ heads_v).transpose(1, 2).contiguous().to(q.dtype),)

    def axes(self, *operands: TensorType | None) -> AxisRule:
        """Pointwise over the batch and the query's length; over keys it is a mixer."""
        _, _, _, padding, start, kv_length, slopes, sinks, bias = operands
        batched = [n for n, o in ((1, 1), (2, 2), (3, padding), (4, start), (5, kv_length)) if o is not None]
        ties = [*leading_ties(0, 3), *(AxisTie(n, 0, 0, 0) for n in batched), AxisTie(2, 3, 0, 3)]
        ties += [AxisTie(n, 0, 0, 2) for n, o in ((6, slopes), (7, sinks)) if o is not None]
        if bias is not None:
            ties += [AxisTie(8, a, 0, r) for a, r in ((0, 0), (1, 2), (2, 1)) if bias.shape[a] != 1]
        return AxisRule(tuple(ties))

    def indexing(self, *operands: TensorType | None) -> Indexing:
        """A query's heads are pairs: which key-value head they share, and which of its queries they are."""
        q, k, v = operands[:3]
        assert q is not None and k is not None and v is not None
        b, length, keys, kv, size, value_size = fresh(*q.shape[:2], k.shape[1], k.shape[2], q.shape[3], v.shape[3])
        (group,) = fresh(floor_div(q.shape[2], k.shape[2]))
        heads: Term = Product((kv, group))
        shapes: tuple[tuple[Term, ...], ...] = (
            (b, length, heads, size), (b, keys, kv, size), (b, keys, kv, value_size), (b, keys), (b,), (b,), (heads,),
            (heads,), (b, heads, length, keys),
        )  # fmt: skip
        terms = [None if o is None else shape for o, shape in zip(operands, shapes)]
        if operands[8] is not None:
            terms[8] = tuple(UNIT if same_dim(d, 1) else t for d, t in zip(operands[8].shape, shapes[8]))

        def having(term: Term) -> list[Place]:
            found = [operand(n) for n, of in enumerate(terms) if of is not None and term in of]
            return [*found, *([result()] if term in shapes[0] and term is not size else [])]

        scores = ({operand(0): 1, operand(1): 1},)
        values = ({operand(2): 1, result(): -1},)

        def one_by_one(term: Term, places: list[Place]) -> Law:
            others = tuple({p: 1} for p in places if p.kind == "operand" and p.number > 2)
            equations = (*scores, *values, *others)
            return elementwise(term, places, equations, equations, vanishing=any_of(operand(2)))

        laws = [linear(size, operand(0), dual=[operand(1)]), linear(value_size, operand(2), result())]
        laws += [one_by_one(b, having(b)), one_by_one(kv, [*having(kv), *having(heads)])]
        laws.append(elementwise(group, having(heads)))
        if not self.compares_positions:
            laws.append(elementwise(length, having(length)))
            if operands[5] is None:
                # A key without values still has its part of the softmax.
                laws.append(elementwise(keys, [p for p in having(keys) if p != result()], silent=None))
        return Indexing(tuple(terms), ((b, length, heads, value_size),), tuple(laws))

    def operand_ranges(self, *operands: TensorType | None) -> dict[int, tuple[Dim, Dim]]:
        k = operands[1]
        assert k is not None
        ranges = {4: (0, as_dim(k.shape[1] - 1)), 5: (0, k.shape[1])}
        return {number: limits for number, limits in ranges.items() if operands[number] is not None}

    @classmethod
    def sample(cls, choose: Chooser) -> Sample:
        dtype, batch = choose_float(choose), choose.integer(1, 3)
        length, kv_heads, group = choose.integer(1, 6), choose.integer(1, 2), choose.integer(1, 3)
        size, value_size = choose.integer(1, 5), choose.integer(1, 5)
        cached = choose.boolean()
        keys = length + choose.integer(0, 4) if cached else length
        heads = kv_heads * group
        row = TensorType(torch.int64, (batch,))
        bias_shape = (*(full if choose.boolean() else 1 for full in (batch, heads, length)), keys)
        op = cls(
            scale=choose.choice([1.0, 0.25]),
            causal=choose.boolean(),
            window=choose.choice([None, 1, 3]),
            chunk=choose.choice([None, 2]),
            softcap=choose.choice([None, 5.0]),
        )
        return Sample(
            op,
            (
                TensorType(dtype, (batch, length, heads, size)),
                TensorType(dtype, (batch, keys, kv_heads, size)),
                TensorType(dtype, (batch, keys, kv_heads, value_size)),
                TensorType(torch.bool, (batch, keys)) if choose.boolean() else None,
                row if cached else None,
                row if cached else None,
                TensorType(torch.float32, (heads,)) if choose.boolean() else None,
                TensorType(dtype, (heads,)) if choose.boolean() else None,
                TensorType(dtype, bias_shape) if choose.boolean() else None,
            ),
        )


@dataclass(frozen=True)
class CacheAppend(Op):
    """The cache with new[b, i] written at index start[b] + i for every i < length[b]; the rest of it is kept.

    cache [batch, capacity, ...], new [batch, tokens, ...] with the same trailing axes, start and length i64 [batch].
    Tokens that would fall beyond the capacity are an error of the caller; evaluation raises IndexError.

    With an encoding, which must hold each row of the last axis by itself, what is written is the new rows as that
    encoding holds them: encoded and decoded. Rows already there are not touched, so how tokens were split over calls
    does not show.
    """

    name: ClassVar[str] = "cache_append"
    operand_names: ClassVar[tuple[str, ...]] = ("cache", "new", "start", "length")
    encoding: Encoding | None = None

    def infer(self, *operands: TensorType | None) -> tuple[TensorType, ...]:
        cache, new, start, length = operands
        assert cache is not None and new is not None
        fits = cache.rank == new.rank >= 2 and cache.dtype == new.dtype
        self.expect(fits, f"{new} cannot be appended to {cache}")
        trailing = TensorType(cache.dtype, cache.shape[2:]) == TensorType(new.dtype, new.shape[2:])
        self.expect(trailing and same_dim(cache.shape[0], new.shape[0]), f"{new} cannot be appended to {cache}")
        for name, each in (("start", start), ("length", length)):
            self.expect(each == TensorType(torch.int64, cache.shape[:1]), f"{name} must be i64[{cache.shape[0]}]")
        if self.encoding is not None:
            require_rows(self.encoding, new)
        return (cache,)

    def evaluate(self, *operands: torch.Tensor | None) -> tuple[torch.Tensor, ...]:
        cache, new, start, length = operands
        assert cache is not None and new is not None and start is not None and length is not None
        token = torch.arange(new.shape[1])
        row, index = torch.nonzero(token < length.unsqueeze(1), as_tuple=True)
        result, written = cache.clone(), new[row, index]
        if self.encoding is not None and written.numel():
            written = rounded(self.encoding, written)
        result[row, start[row] + index] = written
        return (result,)

    def axes(self, *operands: TensorType | None) -> AxisRule:
        cache = operands[0]
        assert cache is not None
        # Elements of a row share a scale.
        last = cache.rank if self.encoding is None else cache.rank - 1
        trailing = [AxisTie(n, a, 0, a) for n, end in ((0, cache.rank), (1, last)) for a in range(2, end)]
        return AxisRule((*(AxisTie(n, 0, 0, 0) for n in range(4)), AxisTie(0, 1, 0, 1), *trailing))

    def indexing(self, *operands: TensorType | None) -> Indexing:
        cache, new = operands[:2]
        assert cache is not None and new is not None
        b, capacity, *rest = fresh(*cache.shape)
        (tokens,) = fresh(new.shape[1])
        places = [operand(0), operand(1), result()]
        laws = [linear(term, *places) for term in rest]
        if self.encoding is not None:
            # Elements of a row share a scale.
            laws = [elementwise(term, places, silent=None if term is rest[-1] else ()) for term in rest]
        laws.append(elementwise(b, [*places, operand(2), operand(3)]))
        return Indexing(((b, capacity, *rest), (b, tokens, *rest), (b,), (b,)), ((b, capacity, *rest),), tuple(laws))

    def operand_ranges(self, *operands: TensorType | None) -> dict[int, tuple[Dim, Dim]]:
        cache, new = operands[:2]
        assert cache is not None and new is not None
        return {2: (0, as_dim(cache.shape[1] - new.shape[1])), 3: (0, new.shape[1])}

    @classmethod
    def sample(cls, choose: Chooser) -> Sample:
        dtype, batch, tokens = choose_float(choose), choose.integer(1, 3), choose.integer(1, 4)
        trailing = tuple(choose.integer(1, 3) for _ in range(choose.integer(0, 2)))
        # Not with an encoding: a choice of codes has no bound on its roundings, by which the laws of all operations judge.
        cache = TensorType(dtype, (batch, tokens + choose.integer(0, 4), *trailing))
        row = TensorType(torch.int64, (batch,))
        return Sample(cls(), (cache, TensorType(dtype, (batch, tokens, *trailing)), row, row))


@dataclass(frozen=True)
class LastToken(Op):
    """x[b, length[b] - 1]: the last real token of each row of x [batch, tokens, ...], with tokens' axis of size 1."""

    name: ClassVar[str] = "last_token"
    operand_names: ClassVar[tuple[str, ...]] = ("x", "length")

    def infer(self, *operands: TensorType | None) -> tuple[TensorType, ...]:
        x, length = operands
        assert x is not None
        self.expect(x.rank >= 2, f"x must be [batch, tokens, ...], got {x}")
        self.expect(length == TensorType(torch.int64, x.shape[:1]), f"length must be i64[{x.shape[0]}], got {length}")
        return (x.with_shape((x.shape[0], 1, *x.shape[2:])),)

    def evaluate(self, *operands: torch.Tensor | None) -> tuple[torch.Tensor, ...]:
        x, length = operands
        assert x is not None and length is not None
        return (x[torch.arange(x.shape[0]), length - 1].unsqueeze(1),)

    def axes(self, *operands: TensorType | None) -> AxisRule:
        x = operands[0]
        assert x is not None
        trailing = tuple(AxisTie(0, a, 0, a) for a in range(2, x.rank))
        return AxisRule((AxisTie(0, 0, 0, 0), AxisTie(1, 0, 0, 0), *trailing))

    def indexing(self, *operands: TensorType | None) -> Indexing:
        x = operands[0]
        assert x is not None
        b, tokens, *rest = fresh(*x.shape)
        laws = [linear(term, operand(0), result()) for term in rest]
        laws.append(elementwise(b, [operand(0), operand(1), result()]))
        return Indexing(((b, tokens, *rest), (b,)), ((b, UNIT, *rest),), tuple(laws))

    def operand_ranges(self, *operands: TensorType | None) -> dict[int, tuple[Dim, Dim]]:
        x = operands[0]
        assert x is not None
        return {1: (1, x.shape[1])}

    @classmethod
    def sample(cls, choose: Chooser) -> Sample:
        batch = choose.integer(1, 3)
        x = TensorType(
            choose_float(choose), (batch, choose.integer(1, 5), *(choose.integer(1, 3),) * choose.integer(0, 2))
        )
        return Sample(cls(), (x, TensorType(torch.int64, (batch,))))
