"""Speed of an artifact: tokens a second of one that generates, and the time of each step of one function."""

from __future__ import annotations

import statistics
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from planish.ir import InputError

if TYPE_CHECKING:
    from planish.codegen.runtime.executable import Executable
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


def measure_steps(
    program: Executable, *, function: str | None = None, repeats: int = 5, threads: int | None = None
) -> dict[str, Any]:
    """What each step of a function costs, by its report and by the clock of this machine; the slowest step comes first.

    Args:
        program: an artifact that runs in this process.
        function: `decode` or `forward`, whichever there is, when None.
        repeats: rounds over all steps; medians are returned.
        threads: how many threads kernels use; as many as there are cores when None.

    Returns:
        The function's name, the report's sizes, the machine's `bytes_per_second` and `operations_per_second`; `steps`,
        each with `operations`, `kernel`, `functions`, `bytes`, `work`, `floor_seconds`, `seconds` and `share`, the floor
        as a share of the measured time; and the same figures of all steps together as `total`. A step whose data stay in
        the processor's caches may be faster than its floor, which counts every byte at the speed of memory.

    Raises:
        InputError: when the artifact runs elsewhere, has no such function, or cannot be measured.
    """
    from planish.codegen.runtime.steps import time_steps

    if function is None:
        function = next((n for n in ("decode", "forward") if n in program.programs), next(iter(program.programs)))
    times = sorted(time_steps(program, function, repeats=repeats, threads=threads), key=lambda t: -t.seconds)
    report = program.manifest["report"]
    total = {key: sum(getattr(t, key) for t in times) for key in ("bytes", "work", "floor_seconds", "seconds")}
    return {
        "function": function,
        "sizes": report["functions"][function]["sizes"],
        "bytes_per_second": report["bytes_per_second"],
        "operations_per_second": report["operations_per_second"],
        "steps": [{**asdict(t), "share": t.share} for t in times],
        "total": {**total, "share": total["floor_seconds"] / total["seconds"] if times else 0.0},
    }
