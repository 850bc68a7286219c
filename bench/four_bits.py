"""What four bits lose: bits per byte of the bundled model with every matrix in groups of 32 or 128, and in ggml's Q4_0.

    python bench/four_bits.py

bench/decode.py compares the speed of these formats on models whose weights are random; here they hold learned ones. Ours are
rounded to nearest, and calibrated as in bench/pareto.py, with int8 activations as the kernels take them. Q4_0 is ggml's own
quantisation, its weights multiplied in float32: what llama.cpp loses by rounding activations is not counted. Sizes are those
of the encoded matrices. Prints one JSON line a figure. Needs the extra "bench".
"""

from __future__ import annotations

import argparse
import datetime
import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from pareto import CHECKPOINT, ROWS, Windows, quality

if TYPE_CHECKING:
    from planish.model import Model

GROUPS = (32, 128)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=128, help="windows to calibrate on")
    parser.add_argument("--seed", type=int, default=0, help="of the calibration windows")
    options = parser.parse_args()

    import planish

    original = planish.trace(CHECKPOINT, check=False)
    today = datetime.date.today().isoformat()

    def show(format: str, model: Model, size: int) -> None:
        made = {"format": format, "matrices_bytes": size, "bits_per_byte": round(quality(model), 4)}
        print(json.dumps({"bench": "four_bits", **made, "date": today}), flush=True)

    show("original", original, matrices_bytes(original))
    show("Q4_0", *in_q4_0(original))
    for group in GROUPS:
        for method in ("rtn", "gptq"):
            model = ours(original, group, method, options)
            show(f"4 bits, groups of {group}, {method}", model, matrices_bytes(model))


def matrices_bytes(model: Model) -> int:
    return sum(p.nbytes for p in model.module.params.values() if len(p.type.shape) == 2)


def ours(original: Model, group: int, method: str, options: argparse.Namespace) -> Model:
    import planish
    from planish.passes.calibration import Calibration
    from planish.passes.quantize import Quantize
    from planish.passes.quantize_activations import QuantizeActivations

    step: Any = Quantize(format=4, group=group, method=method)  # type: ignore[arg-type]
    data = None
    if method == "gptq":
        windows = Windows(options.seed)
        data = Calibration(tuple(windows.batch() for _ in range(options.samples // ROWS)))
    return planish.compress(original, [step, QuantizeActivations()], check=False, calibration=data)


def in_q4_0(original: Model) -> tuple[Model, int]:
    """The model with every matrix as Q4_0 holds it, and their bytes."""
    import gguf
    from gguf.quants import dequantize
    from peers import ggml

    from planish.ir.params import dense_param

    kind, size, found = gguf.GGMLQuantizationType.Q4_0, 0, []
    for name, param in original.module.params.items():
        if len(param.type.shape) == 2:
            packed = ggml.quantize(param.value().float().numpy(), kind)
            size += packed.nbytes
            found.append(dense_param(name, torch.from_numpy(dequantize(packed, kind).copy())))
    return replace(original, module=original.module.with_params(found)), size


if __name__ == "__main__":
    main()
