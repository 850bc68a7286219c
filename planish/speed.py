"""Speed of a generating artifact, in tokens a second."""

from __future__ import annotations

import statistics
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from planish.codegen.runtime.executable import Executable


def measure_speed(program: Executable, *, prompt: int = 512, tokens: int = 64, repeats: int = 5) -> dict[str, float]:
    """Median speed of reading `prompt` tokens at once and of writing `tokens` one by one after them.

    Both are timed in one call of each repeat: the time to the first token counts as reading, the rest as writing.
    """
    vocabulary = int(program.metadata["vocab_size"])
    ids = [(7 * n + 1) % vocabulary for n in range(prompt)]
    reading, writing = [], []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        stream = program.stream_ids(ids, max_new_tokens=tokens, stop_tokens=())
        next(stream)
        first = time.perf_counter()
        count = sum(1 for _ in stream)
        reading.append(prompt / (first - start))
        writing.append(count / (time.perf_counter() - first))
    # The first repeat also touches every weight for the first time.
    return {"prefill": statistics.median(reading[1:]), "decode": statistics.median(writing[1:])}
