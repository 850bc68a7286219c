"""Speed of a generating artifact, in tokens a second."""

from __future__ import annotations

import statistics
import time
from typing import TYPE_CHECKING

from planish.ir import InputError

if TYPE_CHECKING:
    from planish.codegen.runtime.language_model import LanguageModel


def measure_speed(program: LanguageModel, *, prompt: int = 512, tokens: int = 64, repeats: int = 5) -> dict[str, float]:
    """Median speed of reading `prompt` tokens at once and of writing `tokens` one by one after them.

    Both are timed in one call of each repeat: the time to the first token counts as reading, the rest as writing.

    Raises:
        InputError: when there is nothing to measure, or it does not fit the model's context.
    """
    if prompt < 1 or tokens < 2 or repeats < 1:
        raise InputError("speed needs a prompt of at least 1 token, 2 tokens to write and 1 repeat")
    context = program.metadata.get("context_length")
    if context is not None and prompt + tokens > context:
        raise InputError(
            f"a prompt of {prompt} tokens and {tokens} new ones exceed the context of this model, {context} tokens; "
            "measure fewer"
        )
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
