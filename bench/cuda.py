"""Speed of the CUDA kernels on a GPU, beside cuBLAS and the copy bandwidth of the same run.

    python bench/cuda.py compile out/cuda --arch sm_90     # needs nvcc, no GPU
    python bench/cuda.py run out/cuda                      # needs a GPU, torch and TVM's runtime, no compiler

Two steps, because a GPU machine need not have the compiler. Weights are visited in turn, more of them than the L2 cache
holds. Each contestant is captured in a CUDA graph, so that launches cost nobody anything, and their graphs take turns.
Prints one JSON line a figure.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

SHAPES = ((14336, 4096), (4096, 14336))
"""Output and input features of an 8B model's largest layers."""
GROUPS = (128, 32)
ROWS = (1, 8, 16, 64, 256, 4096)
COLD_BYTES, COPY_BYTES = 256 << 20, 1 << 30
CALLS, ROUNDS = 24, 9
PREFIX, TOKENS, PROMPT = 32, 60, 512


def kernel_name(outs: int, ins: int, group: int) -> str:
    return f"int4_{outs}x{ins}_g{group}"


def compile_kernels(folder: Path, arch: str) -> None:
    """Compile every kernel; print what ptxas says of it."""
    import tvm

    from planish.codegen.dialect import speaking
    from planish.codegen.kernels.blocks.linear_int4 import linear_int4
    from planish.codegen.kernels.blocks.linear_int4_layer import configure
    from planish.codegen.kernels.blocks.linear_int4_packing import BlockInt4Layout
    from planish.targets.cuda.target import CudaTarget

    target = CudaTarget.named(arch)
    functions, weights = {}, dict[str, dict[str, Any]]()
    with speaking(target.dialect):
        for outs, ins in SHAPES:
            for group in GROUPS:
                config = configure(BlockInt4Layout(outs, ins, group, "float16"), False, target.blocks)
                name = kernel_name(outs, ins, group)
                functions[name] = linear_int4(config).with_attr("global_symbol", name)
                layout = config.layout
                weights[name] = {
                    "shape": layout.shape, "value_bytes": layout.value_bytes, "units_start": layout.units_start
                }  # fmt: skip
    with target.compiling():
        library = tvm.compile(tvm.IRModule(functions), target.tvm_target(), tir_pipeline=target.kernel_passes)
    folder.mkdir(parents=True, exist_ok=True)
    library.export_library(str(folder / "kernels.so"), fcompile=target.linker())
    (folder / "weights.json").write_text(json.dumps(weights))
    show_resources(arch, target.resources)


def show_resources(arch: str, resources: Any) -> None:
    """What every kernel needs of a multiprocessor, a line each."""
    for used in resources:
        print(json.dumps({"figure": "resources", "arch": arch, **vars(used)}), flush=True)


def compile_model(folder: Path, arch: str, shape: str) -> None:
    """Compile a whole model in 4 bits, without its weights: they are drawn where it runs."""
    from shapes import SHAPES

    import planish
    from planish.codegen.build import build
    from planish.passes.dead_code import DeadCode
    from planish.passes.quantize import Quantize
    from planish.passes.quantize_activations import QuantizeActivations
    from planish.targets.cuda.target import CudaTarget

    with tempfile.TemporaryDirectory() as checkpoint:
        model = planish.trace(SHAPES[shape].outline(Path(checkpoint)), check=False)
        model = planish.compress(model, [Quantize(group=128), QuantizeActivations(), DeadCode()], check=False)
        target = CudaTarget.named(arch)
        artifact = build(planish.prepare(model, target.name, check=False).module, target)
    show_resources(arch, target.resources)
    folder = folder / shape
    folder.mkdir(parents=True, exist_ok=True)
    artifact.writers["kernels.so"](folder / "kernels.so")
    (folder / "manifest.json").write_text(json.dumps(artifact.manifest))


def run_model(folder: Path) -> list[dict[str, Any]]:
    """Decode and prefill of a model with random weights; a token counts until its logits are here."""
    import torch
    import tvm_ffi

    from planish.codegen.runtime.cuda import CudaDevice
    from planish.codegen.runtime.language_model import LanguageModel
    from planish.codegen.runtime.sizes import parse_type

    manifest = json.loads((folder / "manifest.json").read_text())

    class RandomWeights(CudaDevice):
        def weights(self, path: Path) -> dict[str, Any]:
            found = {}
            for key, text in manifest["weights"].items():
                type = parse_type(text)
                shape, dtype = type.shape({}), np.dtype(type.stored)
                if dtype.kind == "f":
                    tensor = torch.rand(shape, device="cuda").to(getattr(torch, dtype.name)) * 0.02
                else:
                    tensor = _random(shape, 0x3C if dtype.itemsize == 1 else 0x3C00).to(getattr(torch, dtype.name))
                found[key] = tvm_ffi.from_dlpack(tensor)
            return found

    model = LanguageModel(folder, manifest, RandomWeights())
    weights = sum(_bytes(parse_type(text)) for text in manifest["weights"].values())
    vocabulary = 1000
    session = model.session()
    session.read([[n % vocabulary for n in range(PREFIX)]])
    taken = []
    for call in range(TOKENS):
        start = time.perf_counter()
        session.read([[call % vocabulary]])
        session.forget_last(0)
        taken.append(time.perf_counter() - start)
    token = statistics.median(taken[3:])
    prompt = [n % vocabulary for n in range(PROMPT)]
    taken = []
    for _ in range(6):
        start = time.perf_counter()
        model.session().read([prompt])
        taken.append(time.perf_counter() - start)
    reading = statistics.median(taken[1:])
    return [
        {
            "figure": "decode", "shape": folder.name, "tokens_per_s": round(1 / token, 1),
            "weights_mb": round(weights / 1e6), "gb_per_s": round(weights / token / 1e9),
        },
        {"figure": "prefill", "shape": folder.name, "tokens": PROMPT, "tokens_per_s": round(PROMPT / reading)},
    ]  # fmt: skip


def _bytes(type: Any) -> int:
    size: int = math.prod(type.shape({})) * np.dtype(type.stored).itemsize
    return size


def run(folder: Path) -> None:
    """Measure on this machine's GPU."""
    import torch
    import tvm_ffi

    from planish.codegen.runtime.cuda import load_cuda_runtime

    load_cuda_runtime()
    library = tvm_ffi.load_module(str(folder / "kernels.so"))
    device = torch.cuda.get_device_name()
    shapes = json.loads((folder / "weights.json").read_text())

    def show(**figure: Any) -> None:
        print(json.dumps({**figure, "device": device}), flush=True)

    source = torch.empty(COPY_BYTES, dtype=torch.uint8, device="cuda").random_()
    sink = torch.empty_like(source)
    contestants: dict[str, Callable[[int], Any]] = {"copy": partial(_copy, source, sink)}
    bandwidth = 2 * COPY_BYTES / _median(contestants, calls=4)["copy"]
    show(figure="copy", gb_per_s=round(bandwidth / 1e9))
    del source, sink, contestants
    for model in sorted(folder.glob("*/manifest.json")):
        for figure in run_model(model.parent):
            show(**figure)
    for outs, ins in SHAPES:
        for group in GROUPS:
            name = kernel_name(outs, ins, group)
            kernel, layout = library[name], shapes[name]
            size = math.prod(layout["shape"])
            ours = [_weight(**layout) for _ in range(COLD_BYTES // size + 1)]
            dense = [torch.randn(outs, ins, device="cuda", dtype=torch.bfloat16) for _ in range(3)]
            for rows in ROWS:
                codes = torch.randint(-127, 128, (rows, ins), device="cuda").to(torch.int8)
                scale = torch.rand(rows, 1, device="cuda")
                y = torch.empty(rows, outs, device="cuda")
                x = torch.randn(rows, ins, device="cuda", dtype=torch.bfloat16)
                z = torch.empty(rows, outs, device="cuda", dtype=torch.bfloat16)
                _check(kernel, codes, scale, ours[0], y)
                seconds = _median(
                    {"ours": partial(_ours, kernel, codes, scale, ours, y), "cublas": partial(_cublas, x, dense, z)},
                    calls=CALLS if rows <= 256 else 4,
                )
                moved, work = size + rows * (ins + 4 * outs + 4), 2 * rows * outs * ins
                show(
                    figure="4-bit linear", outs=outs, ins=ins, group=group, rows=rows,
                    microseconds=round(seconds["ours"] * 1e6, 2), cublas_microseconds=round(seconds["cublas"] * 1e6, 2),
                    speedup=round(seconds["cublas"] / seconds["ours"], 3),
                    share_of_copy=round(moved / seconds["ours"] / bandwidth, 3),
                    tops=round(work / seconds["ours"] / 1e12, 1), cublas_tflops=round(work / seconds["cublas"] / 1e12, 1),
                )  # fmt: skip


def _ours(kernel: Any, codes: Any, scale: Any, weights: list[Any], y: Any, call: int) -> None:
    kernel(codes, scale, weights[call % len(weights)], y)


def _weight(shape: Sequence[int], value_bytes: int, units_start: int) -> Any:
    """A packed weight of random values, with random float16 scales from 2^-7 to 2^-5: whole in units of 2^-17."""
    import torch

    weight = _random(shape, 256)
    scales = torch.rand(shape[0], (shape[1] - value_bytes) // 2, device="cuda") * (2**-5 - 2**-7) + 2**-7
    weight[:, value_bytes:] = scales.half().view(torch.uint8)
    behind = weight.view(-1)[units_start:]
    behind[:] = torch.full((len(behind) // 4,), 2.0**-17, device="cuda").view(torch.uint8)
    return weight


def _check(kernel: Any, codes: Any, scale: Any, weight: Any, y: Any) -> None:
    """The schedules differ in nothing but the order in which groups are added: eight rows at a time tell of many."""
    import torch

    kernel(codes, scale, weight, y)
    few = torch.empty_like(y)
    for first in range(0, len(y), 8):
        part = slice(first, first + 8)
        kernel(codes[part], scale[part], weight, few[part])
    worst = ((y - few).abs().amax(1) / few.abs().amax(1)).max().item()
    if not worst <= 1e-5:
        raise SystemExit(f"{len(y)} rows at once differ from few by {worst:.1e} of the largest element")


def _cublas(x: Any, weights: list[Any], z: Any, call: int) -> None:
    import torch

    torch.mm(x, weights[call % len(weights)].T, out=z)


def _copy(source: Any, sink: Any, call: int) -> None:
    sink.copy_(source)


def _random(shape: Sequence[int], above: int) -> Any:
    import torch

    return torch.randint(0, above, tuple(shape), device="cuda", dtype=torch.uint8 if above <= 256 else torch.int32)


def _median(contestants: dict[str, Callable[[int], Any]], calls: int) -> dict[str, float]:
    """Median seconds of one call of each, their graphs of `calls` calls taking turns."""
    import torch

    graphs = {}
    for name, call in contestants.items():
        call(0)
        torch.cuda.synchronize()
        graphs[name] = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graphs[name]):
            for number in range(calls):
                call(number)
        graphs[name].replay()
    taken: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(ROUNDS):
        for name, graph in graphs.items():
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            graph.replay()
            end.record()
            end.synchronize()
            taken[name].append(start.elapsed_time(end) / 1e3 / calls)
    return {name: statistics.median(found) for name, found in taken.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=("compile", "run"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--arch", default="sm_90")
    parser.add_argument("--shape", help="also compile a whole model of this shape (bench/shapes.py)")
    options = parser.parse_args()
    if options.step == "compile":
        compile_kernels(options.folder, options.arch)
        if options.shape:
            compile_model(options.folder, options.arch, options.shape)
    else:
        run(options.folder)


if __name__ == "__main__":
    main()
