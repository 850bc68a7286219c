"""Functions in parts: nothing is lost between them, and few tensors lie there."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from planish.ir import Value
from planish.passes.training.segments import segments
from planish.testing.tiny_decoder import tiny_decoder

FUNCTION = tiny_decoder(layers=4).functions["forward"]


@given(st.integers(1, 200))
def test_parts_hand_on_what_the_later_ones_read(count: int) -> None:
    parts = segments(FUNCTION, count)
    assert tuple(node for part in parts for node in part.nodes) == FUNCTION.nodes
    assert 1 <= len(parts) <= min(count, len(FUNCTION.nodes)) and all(part.nodes for part in parts)
    known: set[Value] = set(FUNCTION.inputs)
    for number, part in enumerate(parts):
        assert set(part.reads) <= known
        own = {value for node in part.nodes for value in node.outputs}
        later = {value for other in parts[number + 1 :] for value in other.reads}
        assert set(part.leaves) == own & (later | set(FUNCTION.results))
        known |= set(part.leaves)


def test_cuts_are_where_the_stream_alone_is_alive() -> None:
    """Two places of each layer: behind its attention and behind its MLP."""
    for part in segments(FUNCTION, 8)[1:]:
        floats = [value for value in part.reads if value.type.dtype.is_floating_point]
        assert len(floats) == 1 and floats[0].type.shape[-1] == 16
