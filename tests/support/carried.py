"""Tests of compiled code on a machine that has TVM's runtime and no compiler: made here, carried there, run there.

    python -m planish.testing.carried pack FOLDER cuda:sm_90
    python -m planish.testing.carried run FOLDER          # on the machine with the GPU

`pack` compiles every kernel case for a target, and small decoders whose caches are in few bits, and keeps operands and the
interpreter's results beside the artifacts; `run` holds the machine to the rule of `planish.testing.agreement` and leaves with
1 if a case breaks it.
"""

from __future__ import annotations

import sys
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file

from planish.testing.agreement import float_fault

if TYPE_CHECKING:
    # The machine with the GPU need not have what passes import.
    from planish.ir import Module
    from planish.testing.kernel_cases import Case

# Keys and values of small decoders. Sizes of heads: one, two and four words of codes, and one that no word divides.
CACHES: dict[str, dict[str, Any]] = {
    "decoder_int8": {"keys": "int8", "values": "int8", "size": 16},
    "decoder_int4_fp8": {"keys": "int4", "values": "fp8", "size": 12, "scales": "bfloat16"},
    "decoder_zeros": {"keys": "int8", "values": "int4", "size": 64, "zero_points": True},
    "decoder_window": {"keys": "fp8", "values": "int4", "size": 44, "window": 5},
}
TOKENS, FIRST = 70, 60
"""Tokens of a decoder, and how many of them it reads at once; the rest one by one."""


@cache
def cases() -> dict[str, Case]:
    """Every kernel case, the linear layers of all encodings among them."""
    from planish.testing.kernel_cases import LOW_BITS, everything

    return {**everything(), **LOW_BITS}


def decoder(size: int, window: int | None = None, **formats: Any) -> Module:
    """A decoder whose cache is in few bits."""
    from planish.passes.derive_programs import DerivePrograms
    from planish.passes.pass_base import Context
    from planish.passes.quantize_cache import QuantizeCache
    from planish.testing.tiny_decoder import tiny_decoder

    derived = DerivePrograms().apply(tiny_decoder(layers=1, size=size, window=window), Context()).module
    return QuantizeCache(**formats).apply(derived, Context()).module


def pack(folder: Path, target: str) -> None:
    """Compile the kernel cases and write them with their operands and results."""
    from planish.codegen.build import build
    from planish.ir import Interpreter
    from planish.targets import open_target
    from planish.testing.kernel_cases import module_of

    module, tensors = module_of(cases()), {}
    build(module, open_target(target)).save(folder / "artifact")
    for number, (name, case) in enumerate(cases().items()):
        inputs = case.inputs(number)
        plain, exact = (Interpreter(module, promote=p).run(name, inputs).outputs for p in (False, True))
        for kind, found in (("input", inputs), ("plain", plain.values()), ("exact", exact.values())):
            for n, tensor in enumerate(found):
                tensors[f"{name}/{kind}/{n}"] = tensor.contiguous().clone()
    ids = torch.randint(0, 11, (1, TOKENS), generator=torch.Generator().manual_seed(3))
    for name, options in CACHES.items():
        module = decoder(**options)
        build(module, open_target(target)).save(folder / name)
        call = {"input_ids": ids, "start": torch.tensor([0]), "length": torch.tensor([TOKENS])}
        for kind, promote in (("plain", False), ("exact", True)):
            logits = Interpreter(module, promote=promote).run("extend", call, bindings={"C": 80})[0]
            tensors[f"{name}/{kind}/0"] = logits.contiguous().clone()
        tensors[f"{name}/input/0"] = ids.clone()
    save_file(tensors, folder / "cases.safetensors")


def run(folder: Path) -> list[str]:
    """What breaks the rule on this machine's GPU."""
    from planish.codegen.runtime.cuda import CudaDevice
    from planish.codegen.runtime.executable import open_artifact

    tensors = load_file(folder / "cases.safetensors")
    runs: dict[str, Any] = dict(open_artifact(folder / "artifact", device=CudaDevice()).programs)
    runs |= {name: partial(_logits, folder / name) for name in CACHES}
    found = []
    for name, program in runs.items():

        def of(kind: str, name: str = name) -> list[torch.Tensor]:
            keys = [k for k in tensors if k.startswith(f"{name}/{kind}/")]
            return [tensors[f"{name}/{kind}/{n}"] for n in range(len(keys))]

        try:
            results = [torch.as_tensor(r) for r in program(of("input"))]
        except Exception as error:
            found.append(f"{name}: {error}")
            continue
        for got, plain, exact in zip(results, of("plain"), of("exact"), strict=True):
            if got.shape != plain.shape or got.dtype != plain.dtype:
                found.append(f"{name} is {got.dtype}{list(got.shape)}, not {plain.dtype}{list(plain.shape)}")
            elif not plain.dtype.is_floating_point:
                found += [] if torch.equal(got, plain) else [f"{name} differs"]
            elif fault := float_fault(got, plain, exact):
                found.append(f"{name} {fault}")
    print(f"{len(runs)} functions, {len(found)} faults")
    return found


def _logits(folder: Path, inputs: list[torch.Tensor]) -> list[Any]:
    """A decoder's logits: some tokens at once, the others one after another."""
    from planish.codegen.runtime.cuda import CudaDevice
    from planish.codegen.runtime.executable import open_artifact

    model: Any = open_artifact(folder, device=CudaDevice())
    session, (ids,) = model.session(1), inputs[0].tolist()
    read = [session.read_all([ids[:FIRST]])[0]] + [session.read_all([[token]])[0] for token in ids[FIRST:]]
    return [torch.cat([torch.from_numpy(logits) for logits in read])[None]]


def main() -> None:
    command, folder, *target = sys.argv[1:]
    if command == "pack":
        pack(Path(folder), *target)
        return
    faults = run(Path(folder))
    print("\n".join(faults))
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
