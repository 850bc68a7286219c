"""Instructions and cycles of the Arm kernels' inner loops, beside the cycles that memory allows.

Kernels are compiled for `arm:cortex-a76` (sdot) and `arm:generic+i8mm` (smmla for many rows). In the assembly, the loop that
does the products is found, and llvm-mca says how many cycles a pass of it takes in steady state, everything being in the
first cache: `neoverse-n1`, the server's A76, where only sdot serves, and `neoverse-n2`, the server's A710, where i8mm does.
One row (decode) stands beside the cycles in which 10 GB/s bring the weights and their scales at 2.6 GHz; many rows (prefill)
beside the most products that the pipes can start.

    python bench/arm.py [--emulate] [--llama FOLDER] [--weight NAME]     # needs llvm-mca 17 or later (Debian: llvm-19)

`--emulate` also counts the instructions of whole calls under qemu-user, and `--llama` names the `ggml` folder of
llama.cpp's sources, whose kernels are counted alike; both compile with ziglang. `--weight int3g128sf16`, perhaps several
times, leaves out planish's other kernels. Prints one JSON line a figure.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

MODELS = {"arm:cortex-a76": "neoverse-n1", "arm:generic+i8mm": "neoverse-n2"}
"""llvm-mca's model for every build."""
GIGAHERTZ, BYTES_PER_SECOND = 2.6, 10e9
PIPES = 2
"""Vector pipes of both models; each starts one instruction of 128 bits a cycle."""
WEIGHTS = 128
"""Weights that instructions and cycles are given for."""
FEATURES = 4096
PRODUCTS = {"sdot": 16, "smmla": 32, "fmla": 4}
"""Products of one instruction on registers of 128 bits."""

_LABEL = re.compile(r"^([\w.$]+):")
_BRANCH = re.compile(r"^\s+(?:b\.\w+|b|cbn?z|tbn?z)\s+(?:.*,\s*)?([\w.$]+)$")


@dataclass(frozen=True)
class Loop:
    """From a label to the branch back to it: lines ``begin`` up to, but not including, ``end`` of the assembly."""

    begin: int
    end: int

    def contains(self, other: Loop) -> bool:
        """Whether ``other`` is a part of this loop, and not the whole of it."""
        return self != other and self.begin <= other.begin and other.end <= self.end


def read_lines(assembly: str) -> list[str]:
    """Labels and instructions, one a line, without comments and directives."""
    lines = (re.split(r"//|\s#(?!-?\d)", line)[0].rstrip() for line in assembly.splitlines())
    return [line for line in lines if _LABEL.match(line) or re.match(r"^\s+\w", line)]


def find_loops(lines: Sequence[str]) -> list[Loop]:
    """Every loop, in the order of their ends."""
    seen: dict[str, int] = {}
    found = []
    for number, line in enumerate(lines):
        if label := _LABEL.match(line):
            seen[label[1]] = number
        elif (branch := _BRANCH.match(line)) and branch[1] in seen:
            found.append(Loop(seen[branch[1]], number + 1))
    return found


def instructions(lines: Sequence[str]) -> list[str]:
    """The instructions among ``lines``."""
    return [line.strip() for line in lines if not _LABEL.match(line)]


def mnemonics(lines: Sequence[str]) -> Counter[str]:
    """How often each instruction occurs."""
    return Counter(line.split()[0] for line in instructions(lines))


def find_products(lines: Sequence[str], name: str, count: int, without: str = "") -> tuple[Loop, Loop | None]:
    """The first innermost loop with exactly ``count`` instructions ``name``, and the next loop around it.

    ``without`` is an instruction that the loop has none of.

    Raises:
        LookupError: when there is none.
    """
    loops = find_loops(lines)
    for loop in loops:
        innermost = not any(loop.contains(other) for other in loops)
        counted = mnemonics(lines[loop.begin : loop.end])
        if innermost and counted[name] == count and not counted[without]:
            around = [other for other in loops if other.contains(loop)]
            return loop, min(around, key=lambda other: other.end - other.begin, default=None)
    raise LookupError(f"no innermost loop with {count} {name}")


def unrolled(lines: Sequence[str], loop: Loop, around: Loop | None, passes: int) -> list[str]:
    """The instructions of ``loop``, or of the loop ``around`` it, in one pass of which it runs ``passes`` > 1 times."""
    body = instructions(lines[loop.begin : loop.end])
    if passes == 1:
        return body
    if around is None:
        raise LookupError("there is no loop around the innermost one")
    before, after = lines[around.begin : loop.begin], lines[loop.end : around.end]
    return [*instructions(before), *body * passes, *instructions(after)]


def figures(body: Sequence[str], model: str, name: str, rows: int, bits: float, weights: float = 0) -> dict[str, Any]:
    """What one loop does, whose products are the instructions ``name``; ``weights`` there are, or 0: one a product."""
    from llvm_mca import cycles

    counted = mnemonics(body)
    products = counted[name] * PRODUCTS[name]
    weights = weights or products / rows
    taken = cycles(body, model)
    allowed = WEIGHTS * bits / 8 / BYTES_PER_SECOND * GIGAHERTZ * 1e9
    result = {
        "model": model,
        "gigahertz": GIGAHERTZ,
        "rows": rows,
        "weights": round(weights),
        "instructions": len(body),
        "by_name": dict(counted.most_common()),
        "instructions_per_128": round(len(body) / weights * WEIGHTS, 2),
        "cycles_per_128": round(taken / weights * WEIGHTS, 2),
    }
    if rows == 1:
        share = taken / weights * WEIGHTS / allowed
        return {**result, "memory_cycles_per_128": round(allowed, 2), "share_of_memory": round(share, 3)}
    per_cycle = products / taken
    result |= {"products_per_cycle": round(per_cycle, 2), "limit": name}
    result["share_of_limit"] = round(per_cycle / (PIPES * PRODUCTS[name]), 3)
    return result


def assembly(function: Any, target: Any) -> str:
    """The assembly of one kernel."""
    from planish.codegen.kernel_passes import compile_kernels

    text: str = compile_kernels(function, target.tvm_target()).mod.inspect_source("asm")
    return text


def encodings() -> Iterator[Any]:
    """Of the low-bit kernel, all with float16 scales."""
    from planish.ir import GroupedInt, Levels

    yield GroupedInt(4, 32)
    yield from (GroupedInt(bits, 128) for bits in (4, 3, 2, 8))
    yield from (Levels(kind, 128) for kind in ("stretched", "ternary2", "sign"))  # type: ignore[arg-type]


def measure_low_bit(build: str, encoding: Any) -> Iterator[dict[str, Any]]:
    """The low-bit linear kernel: one row, and the register tile of many."""
    from planish.codegen.kernels.linear_low_bit import linear_low_bit
    from planish.codegen.kernels.linear_low_bit_config import configurations
    from planish.targets import open_target

    target = open_target(build)
    config = configurations(target.int8_tile, FEATURES, FEATURES, encoding, False)[0]
    lines = read_lines(assembly(linear_low_bit(config), target))
    of_step = config.tile.depth * config.layout.products
    products = config.layout.vectors * config.layout.products if config.sums is None else len(config.sums.sums)
    steps = max(n for n in range(1, max(1, config.unrolled // of_step) + 1) if config.layout.steps % n == 0)
    of_many = "smmla" if config.tile.multiplies_pairs else "sdot"
    for rows, name, count, unpacking, weights in (
        (1, "sdot", products * steps, "eor", config.layout.columns * of_step * steps),
        (config.many, of_many, config.many * config.unrolled * 4 // PRODUCTS[of_many], "and", 0),
    ):
        passes = max(1, encoding.group // max(config.unrolled, steps * of_step))
        try:
            body = unrolled(lines, *find_products(lines, name, count, without=unpacking), passes)
        except LookupError:
            # LLVM has unrolled the passes itself.
            body = unrolled(lines, *find_products(lines, name, count * passes, without=unpacking), 1)
        bits = 8 * config.layout.block_bytes / (config.layout.columns * encoding.group)
        found = figures(body, MODELS[build], name, rows, bits, weights * passes)
        yield {"kernel": "linear_low_bit", "weight": str(encoding)} | found


EMULATED = {"arm:cortex-a76": "neoverse-n1", "arm:generic+i8mm": "max"}
"""The processor that qemu emulates for every build."""
OUTS, INS, EMULATED_ROWS = 256, 1024, 24
"""The layer whose whole calls are counted."""
DRIVER = r"""
#include <dlpack/dlpack.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <tvm/ffi/c_api.h>

/* One thread takes every task, one after the other. */
static int launch(int (*body)(int, void*, void*), void* data, int tasks) {
  struct { void* handle; int tasks; } group = {0, 1};
  return body(0, &group, data);
}
static void* allocate(int device, int id, uint64_t size, int code, int bits) {
  return aligned_alloc(64, (size + 63) / 64 * 64);
}
static int release(int device, int id, void* memory) { free(memory); return 0; }
void *__TVMBackendParallelLaunch = launch, *__TVMBackendAllocWorkspace = allocate, *__TVMBackendFreeWorkspace = release;
void TVMFFIErrorSetRaisedFromCStrParts(const char* kind, const char** parts, int32_t count) {
  for (int i = 0; i < count; ++i) fputs(parts[i], stdout);
}
int __tvm_ffi_main(void*, TVMFFIAny*, int, TVMFFIAny*);

/* argv: the number of calls, then code, bits and shape (4x1024) of every argument. */
int main(int argc, char** argv) {
  static DLTensor tensors[8];
  static int64_t shapes[8][4], strides[8][4];
  static TVMFFIAny arguments[8], result;
  int count = (argc - 2) / 3;
  for (int i = 0; i < count; ++i) {
    char** word = argv + 2 + 3 * i;
    int bits = atoi(word[1]), dimensions = 0;
    int64_t elements = 1;
    for (char* at = word[2]; *at; at += *at == 'x') shapes[i][dimensions++] = strtoll(at, &at, 10);
    for (int d = dimensions - 1; d >= 0; elements *= shapes[i][d--]) strides[i][d] = elements;
    uint64_t size = elements * bits / 8;
    void* data = memset(allocate(0, 0, size, 0, 0), 0, size);
    DLDataType type = {atoi(word[0]), bits, 1};
    tensors[i] = (DLTensor){data, {kDLCPU, 0}, dimensions, type, shapes[i], strides[i], 0};
    arguments[i].type_index = kTVMFFIDLTensorPtr;
    arguments[i].v_ptr = &tensors[i];
  }
  for (int calls = atoi(argv[1]); calls; --calls)
    if (__tvm_ffi_main(0, arguments, count, &result)) return 1;
  return 0;
}
"""
SIGNED, UNSIGNED, REAL = range(3)
"""DLPack's codes of number formats."""
DENSE = {"bfloat16": (UNSIGNED, 16), "float32": (REAL, 32)}
"""Of the dense kernel: how the weight's elements are stored."""


def emulated(assembly: str, arguments: Sequence[tuple[int, int, tuple[int, ...]]], build: str) -> int:
    """Instructions of one call on zeros under emulation; an argument is its format, bits and shape."""
    import tvm_ffi.libinfo

    with tempfile.TemporaryDirectory() as scratch:
        kernel, driver, program = (Path(scratch, name) for name in ("kernel.s", "driver.c", "program"))
        kernel.write_text(assembly)
        driver.write_text(DRIVER)
        command = [sys.executable, "-m", "ziglang", "cc", "-target", "aarch64-linux-musl", "-static", "-O1"]
        command += [f"-mcpu={MODELS[build].replace('-', '_')}"]
        command += [f"-I{path}" for path in tvm_ffi.libinfo.include_paths()]
        subprocess.run([*command, driver, kernel, "-o", program], check=True, capture_output=True)
        words = [str(w) for code, bits, shape in arguments for w in (code, bits, "x".join(map(str, shape)))]
        with_call, without = (_executed(EMULATED[build], program, calls, *words) for calls in ("1", "0"))
        return with_call - without


def _executed(processor: str, *command: str | Path) -> int:
    """Instructions that a program executes: translated one by one, each is a line of qemu's trace."""
    usage = subprocess.run(["qemu-aarch64", "-help"], capture_output=True, text=True).stdout
    alone = "-one-insn-per-tb" if "-one-insn-per-tb" in usage else "-singlestep"
    traced = ["qemu-aarch64", "-cpu", processor, alone, "-d", "exec,nochain", *command]
    with subprocess.Popen(traced, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        count = sum(line.startswith(b"Trace") for line in process.stderr)
    if process.returncode:
        sys.exit(f"the kernel fails under emulation: exit code {process.returncode}")
    return count


def measure_calls(build: str, encodings: Sequence[Any], dense: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Instructions of whole calls, everything included, for every 128 weights."""
    from planish.codegen.kernels import linear_dense, linear_low_bit, linear_low_bit_config
    from planish.targets import open_target

    target = open_target(build)

    def count(text: str, arguments: list[Any], rows: int) -> dict[str, Any]:
        number = emulated(text, [*arguments, (REAL, 32, (rows, OUTS))], build)
        per_128 = round(number / (OUTS * INS) * WEIGHTS, 2)
        return {"call": f"{OUTS}x{INS}", "rows": rows, "instructions": number, "instructions_per_128": per_128}

    for encoding in encodings:
        config = linear_low_bit_config.configurations(target.int8_tile, INS, OUTS, encoding, False)[0]
        text = assembly(linear_low_bit.linear_low_bit(config), target)
        for rows in (1, EMULATED_ROWS):
            arguments = [(SIGNED, 8, (rows, INS)), (REAL, 32, (rows, 1)), (UNSIGNED, 8, config.packed_shape)]
            yield {"kernel": "linear_low_bit", "weight": str(encoding), **count(text, arguments, rows)}
    for dtype in dense:
        layer = linear_dense.configurations(target.float_tile, INS, OUTS, dtype, False)[0]
        text = assembly(linear_dense.linear_dense(layer), target)
        for rows in (1, EMULATED_ROWS):
            weight = (*DENSE[dtype], (layer.panels, INS, layer.panel_width))
            yield {"kernel": "linear_dense", "weight": dtype, **count(text, [(REAL, 32, (rows, INS)), weight], rows)}


def measure_dense(build: str, dtype: str) -> Iterator[dict[str, Any]]:
    """The dense linear kernel: one row, and the largest register tile."""
    from planish.codegen.kernels.linear_dense import configurations, linear_dense
    from planish.targets import open_target

    target = open_target(build)
    config = configurations(target.float_tile, FEATURES, FEATURES, dtype, False)[0]
    lines = read_lines(assembly(linear_dense(config), target))
    # The program for one row comes first, and a tile of fewer rows may have as many products.
    for rows, count in ((1, config.one_row_panels * config.vectors), (config.rows, config.rows * config.vectors)):
        loop, _ = find_products(lines, "fmla", count)
        body = instructions(lines[loop.begin : loop.end])
        bits = 32 if dtype == "float32" else 16
        yield {"kernel": "linear_dense", "weight": dtype, **figures(body, MODELS[build], "fmla", rows, bits)}


LLAMA = {
    "neoverse-n1": [
        ("quants.c", "ggml_vec_dot_q4_0_q8_0", "sdot", 1, 2),
        ("repack.cpp", "ggml_gemv_q4_0_4x4_q8_0", "sdot", 1, 4),
        ("repack.cpp", "ggml_gemm_q4_0_4x4_q8_0", "sdot", 16, 4),
    ],
    "neoverse-n2": [
        ("repack.cpp", "ggml_gemv_q4_0_4x8_q8_0", "sdot", 1, 4),
        ("repack.cpp", "ggml_gemm_q4_0_4x8_q8_0", "smmla", 16, 4),
    ],
}
"""llama.cpp's kernels that serve such a processor: file, function, instruction, and the rows and the blocks of 32 weights
that one pass of the inner loop multiplies."""


def _name(names: Mapping[str, str], word: re.Match[str]) -> str:
    """The instruction that the assembly gives as a number."""
    return names[word[1]]


def measure_llama(folder: Path, model: str) -> Iterator[dict[str, Any]]:
    """llama.cpp's Q4_0 kernels, groups of 32 with float16 scales, from its folder `ggml`."""
    sources = folder / "src" / "ggml-cpu"
    command = [sys.executable, "-m", "ziglang", "c++", "-target", "aarch64-linux-gnu", "-O3"]
    command += [f"-mcpu={model.replace('-', '_')}"]
    command += ["-DNDEBUG", "-D_GNU_SOURCE", "-S", *(f"-I{p}" for p in (folder / "include", folder / "src", sources))]
    with tempfile.TemporaryDirectory() as scratch:
        for file, function, name, rows, blocks in LLAMA[model]:
            source, output = sources / "arch" / "arm" / file, Path(scratch, f"{file}.s")
            if not output.is_file():
                language = ["-x", "c"] if file.endswith(".c") else ["-x", "c++"]
                subprocess.run([*command, *language, str(source), "-o", str(output)], check=True, capture_output=True)
            # Written as numbers in the source, which has their names in comments.
            named = re.findall(r"\.inst (0x\w+)\s*// ([^\\]+)", source.read_text(encoding="utf-8"))
            text = output.read_text(encoding="utf-8", errors="replace")
            text = text[text.index(f"\n{function}:") :].split("\n.Lfunc_end", 1)[0]
            text = re.sub(r"\.inst\s+(0x\w+)", partial(_name, dict(named)), text)
            lines = read_lines(text)
            loop, _ = find_products(lines, name, rows * blocks * 32 // PRODUCTS[name])
            body = instructions(lines[loop.begin : loop.end])
            yield {"kernel": f"llama.cpp {function}", "group": 32, **figures(body, model, name, rows, 4.5)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llama", type=Path, metavar="FOLDER", help="the folder ggml of llama.cpp's sources")
    parser.add_argument("--emulate", action="store_true", help="count the instructions of whole calls under qemu-user")
    parser.add_argument("--weight", action="append", metavar="NAME", help="leave out planish's kernels with others")
    options = parser.parse_args()
    known = [*map(str, encodings()), *DENSE]
    names = options.weight or known
    if unknown := set(names) - set(known):
        parser.error(f"no weight is called {', '.join(sorted(unknown))}; choose from {', '.join(known)}")
    grouped, dense = [e for e in encodings() if str(e) in names], [name for name in DENSE if name in names]

    def show(found: dict[str, Any], build: str) -> None:
        print(json.dumps({"bench": "arm", "build": build, **found}), flush=True)

    for build in MODELS:
        for encoding in grouped:
            for found in measure_low_bit(build, encoding):
                show(found, build)
        for dtype in dense:
            for found in measure_dense(build, dtype):
                show(found, build)
        if options.emulate:
            for found in measure_calls(build, grouped, dense):
                show(found, build)
        if options.llama:
            for found in measure_llama(options.llama, MODELS[build]):
                show(found, build)


if __name__ == "__main__":
    main()
