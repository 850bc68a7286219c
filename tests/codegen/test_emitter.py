"""Views in a Relax function: of the whole tensor whatever they are taken of, and one for each shape."""

from __future__ import annotations

from tvm import relax

from planish.codegen.dims import Symbols
from planish.codegen.emitter import Emitter
from planish.ir.types import symbol


def test_views_of_views_are_views_of_the_whole() -> None:
    builder, rows = relax.BlockBuilder(), symbol("B")
    emitter = Emitter(builder, Symbols(), {})
    x = emitter.parameter("input", "x", (rows, 1, 6), "float32")
    with builder.function("f", [x]):
        with builder.dataflow():
            flat = emitter.view(x, (rows, 6))
            again = emitter.view(flat, (rows, 2, 3))
            assert again.ty.shape.values[1:] == [2, 3]
            assert emitter.view(again, (rows, 6)) is flat, "one for each shape"
            assert emitter.view(again, (rows, 1, 6)) is x, "the whole itself"
            assert emitter.view(x, (rows, 1, 6)) is x
            result = builder.emit_output(again)
        builder.emit_func_output(result)
    bound = builder.get()["f"].body.blocks[0].bindings
    assert [b.value.args[0] for b in bound if isinstance(b.value, relax.Call)] == [x, x]
