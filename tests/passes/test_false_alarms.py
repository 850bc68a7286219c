"""Correct passes raise no alarm: on random modules, in every dtype, and in any order."""

from __future__ import annotations

from typing import ClassVar

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from planish.ir import Module, Rewriter
from planish.ir.ops import Slot, aten
from planish.passes.canonicalise import Canonicalise
from planish.passes.common_subexpressions import CommonSubexpressions
from planish.passes.dead_code import DeadCode
from planish.passes.fold_constants import FoldConstants
from planish.passes.fuse_horizontal import FuseHorizontal
from planish.passes.manager import PassManager
from planish.passes.pass_base import Context, Correspondence, Pass, PassResult
from planish.testing.modules import modules
from planish.testing.profiles import share
from planish.testing.tiny_decoder import tiny_decoder

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
PASSES = [Canonicalise(), CommonSubexpressions(), DeadCode(), FoldConstants(), FuseHorizontal()]


class Rebuild(Pass):
    """Writes every operation anew behind a copy of its first operand: a correct pass that leaves nothing as it was.

    With `silent`, it does not say which values correspond.
    """

    name: ClassVar[str] = "rebuild"
    silent: bool = False

    def apply(self, module: Module, context: Context) -> PassResult:
        result, count = module, 0
        correspondence: dict[str, Correspondence] = {}
        for name, function in module.functions.items():
            rewriter = Rewriter(function)
            for node in function.nodes:
                operands = list(rewriter.operands(node))
                first = next(((n, o) for n, o in enumerate(operands) if o is not None), None)
                if first is not None:
                    operands[first[0]] = rewriter.emit(aten("clone.default", Slot(0)), first[1])
                    count += 1
                for old, new in zip(node.outputs, rewriter.node(node.op, *operands, source=node.source).outputs):
                    rewriter.replace(old, new)
            correspondence[name] = rewriter.correspondence
            result = result.with_function(rewriter.finish_like())
        return PassResult(result, count, {} if self.silent else correspondence)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@share(0.12)
@given(data=st.data())
def test_passes_in_any_order(dtype: torch.dtype, data: st.DataObject) -> None:
    module = data.draw(modules(size=5, functions=1, dtype=dtype))
    order = data.draw(st.permutations([*PASSES, Rebuild()]))
    PassManager(order).run(module)


@pytest.mark.full
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@given(data=st.data())
def test_passes_in_any_order_on_many(dtype: torch.dtype, data: st.DataObject) -> None:
    module = data.draw(modules(size=8, functions=2, dtype=dtype))
    PassManager(data.draw(st.permutations([*PASSES, Rebuild()]))).run(module)


@pytest.mark.parametrize("silent", [False, True])
def test_a_decoder_is_cut_into_small_regions(silent: bool) -> None:
    """Also when the pass says nothing about what corresponds: then equal values are found on the probes."""
    module, report = PassManager([Rebuild(silent=silent), Canonicalise()]).run(tiny_decoder())
    rebuilt, cleaned = report.passes
    assert rebuilt.outcome is not None and cleaned.outcome is not None
    nodes = len(tiny_decoder().functions["forward"].nodes)
    assert len(rebuilt.outcome.regions) >= 0.9 * nodes
    assert max(r.bound for r in rebuilt.outcome.regions) < 1e-10
    assert len(module.functions["forward"].nodes) == nodes
