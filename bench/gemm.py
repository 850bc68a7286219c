"""A product with 4-bit weights for many rows, beside those of other runtimes, the activations' quantisation included.

    python bench/gemm.py --threads 2
    python bench/gemm.py --shapes 6400x2048 2048x6400 --rows 32 128 512 --groups 32

All multiply float32 rows by the same weights: codes of 4 bits in groups, each with a float16 scale. Ours, OpenVINO and ONNX
Runtime (MatMulNBits, accuracy level 4) quantise activations to int8 as they run; so does ggml, whose Q4_0 has groups of 32:
a wider group is several of equal scale there. torch multiplies bfloat16 by bfloat16. Weights are visited in turn, more of
them than any cache holds, all contestants take turns, and so does a loop that does nothing but read. Prints one JSON line
for each contestant, with the distance of its result from the float32 product. Needs the extra "bench".
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
from collections.abc import Callable, Iterator
from typing import Any, Protocol

COLD_BYTES = 96 << 20
OURS = "planish"


class Product(Protocol):
    """One product with weights of its own."""

    def run(self) -> None: ...

    def result(self) -> Any: ...


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=["4096x4096"], metavar="OUTxIN")
    parser.add_argument("--rows", nargs="+", type=int, default=[128])
    parser.add_argument("--groups", nargs="+", type=int, default=[32, 128])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    shapes = [tuple(map(int, shape.split("x"))) for shape in options.shapes]
    for _, ins in shapes:
        for group in options.groups:
            if group % 32 or ins % group:
                parser.error(f"groups of {group} do not divide {ins} inputs into groups of a multiple of 32")
    # Before TVM starts, for it reads the number once.
    os.environ["TVM_NUM_THREADS"] = str(options.threads)

    import torch

    from planish.targets.host.detect import detect_host

    torch.set_num_threads(options.threads)
    host = detect_host()
    today = datetime.date.today().isoformat()
    machine = {"device": host.model, "tile": host.int8_tile.name, "threads": options.threads, "date": today}
    for outs, ins in shapes:
        for group in options.groups:
            for rows in options.rows:
                for figure in measure(outs, ins, group, rows, options.threads, options.rounds):
                    print(json.dumps({"bench": "gemm", **figure, **machine}), flush=True)


def measure(outs: int, ins: int, group: int, rows: int, threads: int, rounds: int) -> Iterator[dict[str, Any]]:
    """One figure for each contestant."""
    import numpy as np
    import torch
    from decode import READ_BYTES, readers
    from measure import conditions, take_turns

    random = np.random.default_rng(0)
    codes = random.integers(0, 16, (outs, ins), dtype=np.uint8)
    scales = (random.random((outs, ins // group), dtype=np.float32) * 0.01 + 0.001).astype(np.float16)
    x = random.standard_normal((rows, ins), dtype=np.float32)
    levels = (torch.from_numpy(codes).float() - 8).unflatten(1, (-1, group)) * torch.from_numpy(scales).float()[
        ..., None
    ]
    exact = torch.from_numpy(x) @ levels.flatten(1).T
    makers = contestants(codes, scales, x, levels.flatten(1), threads)
    products = {name: [make() for _ in range(COLD_BYTES // size + 1)] for name, (make, size) in makers.items()}
    loops = readers()
    turns: dict[str, Callable[[int], None]] = {name: _in_turn(copies) for name, copies in products.items()}
    timings = take_turns({**turns, **loops}, rounds)
    bandwidth = max(READ_BYTES / timings.median(loop) for loop in loops)
    for name, copies in products.items():
        result = torch.as_tensor(copies[0].result())
        yield {
            "contestant": name,
            "rows": rows,
            "in_features": ins,
            "out_features": outs,
            "group": group,
            "weights": f"cold: {len(copies)} copies of {makers[name][1] / 1e6:.1f} MB in turn",
            "milliseconds": round(timings.median(name) * 1e3, 3),
            "best_milliseconds": round(timings.best(name) * 1e3, 3),
            "gop_per_s": round(2 * rows * ins * outs / timings.median(name) / 1e9, 1),
            "times_as_fast_as_ours": round(timings.ratio(OURS, name), 3),
            "relative_error": float(f"{float((result - exact).norm() / exact.norm()):.2g}"),
            "read_gb_per_s": round(bandwidth / 1e9, 2),
            **conditions(timings),
        }


def contestants(
    codes: Any, scales: Any, x: Any, levels: Any, threads: int
) -> dict[str, tuple[Callable[[], Product], int]]:
    """For each name, what makes a product with a copy of the weights, and the bytes of its codes or floats."""
    from peers import ggml, onnx_runtime, openvino_int4

    packed = ggml.pack_q4_0(codes, scales)
    return {
        OURS: (_ours(codes, scales, x), codes.size // 2),
        "OpenVINO int4, dynamic quantisation": (
            lambda: openvino_int4.Product(codes, scales, x, threads),
            codes.size // 2,
        ),
        "ggml Q4_0, repacked": (lambda: ggml.Product(packed, x, threads), codes.size // 2),
        "ONNX Runtime MatMulNBits, accuracy level 4": (
            lambda: onnx_runtime.Product(codes, scales, x, threads),
            codes.size // 2,
        ),
        "torch bfloat16": (lambda: Torch(levels, x), codes.size * 2),
    }


def _ours(codes: Any, scales: Any, x: Any) -> Callable[[], Product]:
    """The two kernels of a quantised linear layer, as an artifact has them."""
    import torch

    from planish.codegen.kernel_passes import compile_kernels
    from planish.codegen.kernels.linear_low_bit import linear_low_bit
    from planish.codegen.kernels.linear_low_bit_config import configurations, pack_weight
    from planish.codegen.kernels.quantize_activation import QuantizeActivation, quantize_activation
    from planish.ir import GroupedInt
    from planish.targets.host.detect import detect_host

    host = detect_host()
    (outs, ins), target = codes.shape, host.tvm_target()
    encoding = GroupedInt(4, ins // scales.shape[1])
    config = configurations(host.int8_tile, ins, outs, encoding, False)[0]
    multiply = compile_kernels(linear_low_bit(config), target)["linear_low_bit"]
    quantize = compile_kernels(quantize_activation(QuantizeActivation(ins, host.float_tile)), target)
    storage = {"values": encoding.packing.pack(torch.from_numpy(codes)), "scales": torch.from_numpy(scales)}
    packed, given = pack_weight(config, storage), torch.from_numpy(x)
    return lambda: Ours(quantize["quantize_activation"], multiply, packed.clone(), given, outs)


class Ours:
    """Quantise the rows, then multiply."""

    def __init__(self, quantize: Any, multiply: Any, weight: Any, x: Any, outs: int) -> None:
        import torch

        self._quantize, self._multiply, self._weight, self._x = quantize, multiply, weight, x
        self._codes, self._scale = torch.empty(x.shape, dtype=torch.int8), torch.empty(len(x), 1)
        self._y = torch.empty(len(x), outs)

    def run(self) -> None:
        self._quantize(self._x, self._codes, self._scale)
        self._multiply(self._codes, self._scale, self._weight, self._y)

    def result(self) -> Any:
        return self._y


class Torch:
    """bfloat16 by bfloat16."""

    def __init__(self, levels: Any, x: Any) -> None:
        import torch

        self._weight, self._x = levels.to(torch.bfloat16), torch.from_numpy(x).to(torch.bfloat16)
        self._y = torch.empty(0)

    def run(self) -> None:
        import torch

        with torch.no_grad():
            self._y = torch.nn.functional.linear(self._x, self._weight)

    def result(self) -> Any:
        return self._y.float()


def _in_turn(copies: list[Product]) -> Callable[[int], None]:
    return lambda call: copies[call % len(copies)].run()


if __name__ == "__main__":
    main()
