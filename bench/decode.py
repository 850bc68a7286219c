"""Decode and prefill speed of a whole model in 4 bits, beside llama.cpp's Q4_0 and the read bandwidth of the same rounds.

    python bench/decode.py --shape guard --threads 2
    python bench/decode.py --shape guard --encodings 4 3 2 ternary2 sign

Weights are random: speed depends on shapes. Every class of tensor has the same bits per weight on both sides (4-bit
groups of 32 with a 16-bit scale). Prefill also runs beside transformers' model in bfloat16. With `--encodings`, decode alone
in several formats, each in groups of 128, beside llama.cpp's Q4_0, Q2_K, TQ2_0 and TQ1_0 and ONNX Runtime's int4: the whole
step in each of them, with the cache of the tokens before. ONNX Runtime has blocks of 32 with a 32-bit scale and a graph like
that of onnxruntime-genai's builder. What formats lose is measured by bench/pareto.py and bench/four_bits.py.
Prints one JSON line a figure. Needs the extra "bench".
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

PROMPT = 512
PREFIX = 32
READ_BYTES, COLD_READ = 8 << 20, 1 << 30
CONTENDED_ROUNDS, CONTENDED_SECONDS = 5, 2.0

MEMORY = r"""
import re, sys, time
from pathlib import Path
from planish.codegen.runtime.executable import open_artifact
start = time.perf_counter()
model = open_artifact(sys.argv[1], threads=int(sys.argv[2]), check=False)
loaded = time.perf_counter() - start
session = model.session()
session.read([[n % int(sys.argv[3]) for n in range(512)]])
for n in range(8):
    session.read([[n % int(sys.argv[3])]])
# Not rusage: a child inherits its parent's peak there.
peak = int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) * 1024
print(loaded, peak, session.nbytes)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="guard")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--encodings", nargs="+", metavar="FORMAT", help="formats of `quantize`")
    parser.add_argument("--folder", type=Path, default=Path("out/bench"), help="where models are kept between runs")
    options = parser.parse_args()
    if options.encodings:
        figures = compare(options.shape, options.threads, options.rounds, options.folder, options.encodings)
    else:
        figures = measure(options.shape, options.threads, options.rounds, options.folder)
    for figure in figures:
        print(json.dumps({"shape": options.shape, "threads": options.threads, **figure}), flush=True)


def build(name: str, folder: Path, format: str = "4", group: int = 32) -> tuple[Path, dict[str, Any]]:
    """The artifact of a shape in one format, and how long it took to make; made once."""
    from shapes import SHAPES

    import planish
    from planish.passes.dead_code import DeadCode
    from planish.passes.quantize import Quantize
    from planish.passes.quantize_activations import QuantizeActivations

    folder.mkdir(parents=True, exist_ok=True)
    artifact = folder / f"{name}-w{format}g{group}"
    if artifact.exists():
        return artifact, {}
    checkpoint = SHAPES[name].save(folder / f"{name}-checkpoint")
    start = time.perf_counter()
    model = planish.trace(checkpoint, check=False)
    of_all: Any = int(format) if format.isdigit() else format
    steps = [Quantize(format=of_all, group=group), QuantizeActivations(), DeadCode()]
    model = planish.compress(model, steps, check=False)
    planish.build(model, "host", check=False).save(artifact)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return artifact, {"compile_seconds": round(time.perf_counter() - start, 1), "compile_peak_mb": round(peak / 1e6)}


def measure(name: str, threads: int, rounds: int, folder: Path) -> list[dict[str, Any]]:
    """All figures of one shape."""
    artifact, made = build(name, folder)
    return [{"figure": "compile", **made}] * bool(made) + [
        _memory(artifact, threads, name),
        *_speed(artifact, threads, rounds, name, folder),
    ]


PEERS = ("Q4_0", "Q2_K", "TQ2_0", "TQ1_0")
ONNX_RUNTIME = "ONNX Runtime int4"
ENCODED_GROUP = 128


def compare(name: str, threads: int, rounds: int, folder: Path, formats: list[str]) -> list[dict[str, Any]]:
    """Decode in several formats and in those of the peers in turns, one figure for each; ratios are those of the rounds."""
    import gguf
    from measure import conditions, take_turns
    from peers import onnx_runtime
    from peers.llama_cpp import LlamaCpp, write_gguf
    from shapes import SHAPES

    shape = SHAPES[name]
    ids = [n % shape.vocabulary for n in range(PREFIX)]
    contestants: dict[str, Callable[[int], None]] = {}
    moved = {}
    for format in formats:
        artifact, _ = build(name, folder, format, ENCODED_GROUP)
        moved[format] = _read_of_ours(artifact)
        contestants[format] = _our_tokens(artifact, threads, ids, shape.vocabulary)
    for peer in PEERS:
        file = write_gguf(shape, folder / f"{name}-{peer.lower()}.gguf", gguf.GGMLQuantizationType[peer])
        moved[peer] = _read_of_theirs(file)
        contestants[peer] = _their_tokens(LlamaCpp(file, threads=threads, context=shape.context), ids, shape.vocabulary)
    step = onnx_runtime.write_decoder(shape, folder / f"{name}-onnx")
    moved[ONNX_RUNTIME] = onnx_runtime.read_bytes(step)
    contestants[ONNX_RUNTIME] = onnx_runtime.decoder(step, shape, prefix=PREFIX, threads=threads)
    contestants |= readers()
    timings = take_turns(contestants, rounds)
    reads = [READ_BYTES / timings.median(way) for way in contestants if way not in moved]
    bandwidth = max(*reads, *(size / timings.median(n) for n, size in moved.items()))
    return [
        {
            "figure": "decode",
            "format": contestant,
            "tokens_per_s": round(1 / timings.median(contestant), 1),
            "read_mb": round(size / 1e6, 1),
            "gb_per_s": round(size / timings.median(contestant) / 1e9, 2),
            "read_gb_per_s": round(bandwidth / 1e9, 2),
            "times_as_fast_as": {other: round(timings.ratio(other, contestant), 3) for other in moved},
            **conditions(timings),
        }
        for contestant, size in moved.items()
    ]


def _read_of_ours(artifact: Path) -> int:
    """Bytes of the weights that a token reads: all but the table of embeddings, of which it reads a row."""
    size = (artifact / "weights.safetensors").stat().st_size
    with (artifact / "weights.safetensors").open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    table = [entry["data_offsets"] for key, entry in header.items() if "embed_tokens" in key]
    if not table:
        sys.exit(f"{artifact} has no table of embeddings by the name that transformers gives it")
    return int(size - sum(end - begin for begin, end in table))


def _read_of_theirs(file: Path) -> int:
    """As `_read_of_ours`, of a GGUF file."""
    import gguf

    (table,) = (t for t in gguf.GGUFReader(file).tensors if t.name == "token_embd.weight")
    return int(file.stat().st_size - table.n_bytes)


def _our_tokens(artifact: Path, threads: int, ids: list[int], vocabulary: int) -> Callable[[int], None]:
    """One token after a prefix, which stays as it is."""
    session = _open(artifact, threads).session()
    session.read([ids])

    def token(call: int) -> None:
        session.read([[call % vocabulary]])
        session.forget_last(0)

    return token


def _their_tokens(model: Any, ids: list[int], vocabulary: int) -> Callable[[int], None]:
    model.reset()
    model.read(ids)

    def token(call: int) -> None:
        model.read([call % vocabulary])
        model.keep(len(ids))

    return token


def _open(artifact: Path, threads: int) -> Any:
    from planish.codegen.runtime.executable import open_artifact
    from planish.codegen.runtime.language_model import LanguageModel

    model = open_artifact(artifact, threads=threads, check=False)
    if not isinstance(model, LanguageModel):
        sys.exit(f"{artifact} is an artifact that generates no tokens: remove it, and it is made again")
    return model


def readers() -> dict[str, Callable[[int], None]]:
    """Loops that only read memory."""
    import torch

    from planish.codegen.kernel_passes import compile_kernels
    from planish.codegen.kernels.peaks import READS, read_tasks, reading
    from planish.targets import open_target

    target, elements = open_target("host"), READ_BYTES // 4
    lanes = target.int8_tile.lanes
    sources = [torch.ones(elements, dtype=torch.int32) for _ in range(COLD_READ // READ_BYTES)]

    def reader(way: str) -> Callable[[int], None]:
        read = compile_kernels(reading(lanes, elements, way), target.tvm_target())["reading"]
        sums = torch.zeros(read_tasks(lanes, elements, way), lanes, dtype=torch.int32)
        return lambda call: read(sources[call % len(sources)], sums)

    return {f"read {way}": reader(way) for way in READS}


def _memory(artifact: Path, threads: int, name: str) -> dict[str, Any]:
    """Time to load and peak memory of a fresh process that reads 512 tokens and writes 8."""
    from shapes import SHAPES

    command = [sys.executable, "-c", MEMORY, str(artifact), str(threads), str(SHAPES[name].vocabulary)]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    seconds, peak, cache = float(output[0]), int(output[1]), int(output[2])
    weights = (artifact / "weights.safetensors").stat().st_size
    return {
        "figure": "load",
        "load_seconds": round(seconds, 2),
        "peak_mb": round(peak / 1e6),
        "weights_mb": round(weights / 1e6),
        "cache_mb": round(cache / 1e6),
        "above_weights_and_cache_mb": round((peak - weights - cache) / 1e6),
    }


def _speed(artifact: Path, threads: int, rounds: int, name: str, folder: Path) -> list[dict[str, Any]]:
    import gguf
    from measure import conditions, take_turns
    from peers import torch_bfloat16
    from peers.llama_cpp import LlamaCpp, write_gguf
    from shapes import SHAPES

    shape = SHAPES[name]
    ours = _open(artifact, threads)
    file = write_gguf(shape, folder / f"{name}-q4_0.gguf", gguf.GGMLQuantizationType.Q4_0)
    theirs = LlamaCpp(file, threads=threads, context=shape.context)
    ids = [n % shape.vocabulary for n in range(PROMPT)]
    our_token = _our_tokens(artifact, threads, ids[:PREFIX], shape.vocabulary)
    their_token = _their_tokens(theirs, ids[:PREFIX], shape.vocabulary)

    def our_prompt(call: int) -> None:
        ours.session().read([ids])

    def their_prompt(call: int) -> None:
        theirs.reset()
        theirs.read(ids)

    streams = readers()
    decode = take_turns({"ours": our_token, "llama.cpp": their_token, **streams}, rounds)
    contended = _contended({"ours": our_token, "llama.cpp": their_token})
    theirs.reset()
    bfloat16 = torch_bfloat16.prompt(shape.save(folder / f"{name}-checkpoint"), ids, threads)
    prefill = take_turns({"ours": our_prompt, "llama.cpp": their_prompt, "torch": bfloat16}, rounds)
    weights = _read_of_ours(artifact)
    # The machine can read at least as fast as anything here did.
    reads = {way: READ_BYTES / decode.median(way) for way in streams}
    moved = {"ours": weights, "llama.cpp": _read_of_theirs(file)}
    bandwidth = max(*reads.values(), *(size / decode.median(n) for n, size in moved.items()))
    return [
        {
            "figure": "decode",
            "tokens_per_s": round(1 / decode.median("ours"), 1),
            "llama_cpp_tokens_per_s": round(1 / decode.median("llama.cpp"), 1),
            "ratio": round(decode.ratio("llama.cpp", "ours"), 3),
            "gb_per_s": round(weights / decode.median("ours") / 1e9, 2),
            "read_gb_per_s": round(bandwidth / 1e9, 2),
            "share_of_read": round(weights / decode.median("ours") / bandwidth, 3),
            **conditions(decode),
        },
        {"figure": "decode beside one busy process", **contended},
        {
            "figure": "prefill",
            "tokens": PROMPT,
            "tokens_per_s": round(PROMPT / prefill.median("ours"), 1),
            "llama_cpp_tokens_per_s": round(PROMPT / prefill.median("llama.cpp"), 1),
            "ratio": round(prefill.ratio("llama.cpp", "ours"), 3),
            "torch_bfloat16_tokens_per_s": round(PROMPT / prefill.median("torch"), 1),
            "ratio_to_torch_bfloat16": round(prefill.ratio("torch", "ours"), 3),
            **conditions(prefill),
        },
    ]


def _contended(subjects: dict[str, Callable[[int], None]]) -> dict[str, Any]:
    """Decode speed while one other process computes, over the quiet speed: medians of rounds that take turns.

    Each stretch lasts long enough for a runtime to notice its neighbour, or its absence.
    """

    def speed(call: Callable[[int], None]) -> float:
        start, calls = time.perf_counter(), 0
        while time.perf_counter() - start < CONTENDED_SECONDS:
            call(calls)
            calls += 1
        return calls / (time.perf_counter() - start)

    shares: dict[str, list[float]] = {name: [] for name in subjects}
    speeds: dict[str, list[float]] = {name: [] for name in subjects}
    for _ in range(CONTENDED_ROUNDS):
        quiet = {name: speed(call) for name, call in subjects.items()}
        with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as other:
            try:
                time.sleep(0.2)
                busy = {name: speed(call) for name, call in subjects.items()}
            finally:
                other.kill()
        for name in subjects:
            shares[name].append(busy[name] / quiet[name])
            speeds[name].append(busy[name])
    ours, theirs = "ours", "llama.cpp"
    return {
        "tokens_per_s": round(statistics.median(speeds[ours]), 1),
        "share_of_quiet": round(statistics.median(shares[ours]), 3),
        "llama_cpp_tokens_per_s": round(statistics.median(speeds[theirs]), 1),
        "llama_cpp_share_of_quiet": round(statistics.median(shares[theirs]), 3),
        "rounds": CONTENDED_ROUNDS,
    }


if __name__ == "__main__":
    main()
