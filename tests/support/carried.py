"""Tests of compiled code on a machine that has TVM's runtime and no compiler: made here, carried there, run there.

    python -m planish.testing.carried pack FOLDER cuda:sm_90
    python -m planish.testing.carried run FOLDER          # on the machine with the GPU

`pack` compiles every kernel case for a target and keeps operands and the interpreter's results beside the artifact; `run`
holds the machine to the rule of `planish.testing.agreement` and leaves with 1 if a case breaks it.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from planish.testing.agreement import float_fault


def pack(folder: Path, target: str) -> None:
    """Compile the kernel cases and write them with their operands and results."""
    from planish.codegen.build import build
    from planish.ir import Interpreter
    from planish.targets import open_target
    from planish.testing.kernel_cases import everything, module_of

    module, tensors = module_of(everything()), {}
    build(module, open_target(target)).save(folder / "artifact")
    for number, (name, case) in enumerate(everything().items()):
        inputs = case.inputs(number)
        plain, exact = (Interpreter(module, promote=p).run(name, inputs).outputs for p in (False, True))
        for kind, found in (("input", inputs), ("plain", plain.values()), ("exact", exact.values())):
            for n, tensor in enumerate(found):
                tensors[f"{name}/{kind}/{n}"] = tensor.contiguous().clone()
    save_file(tensors, folder / "cases.safetensors")


def run(folder: Path) -> list[str]:
    """What breaks the rule on this machine's GPU."""
    from planish.codegen.runtime.cuda import CudaDevice
    from planish.codegen.runtime.executable import open_artifact

    executable = open_artifact(folder / "artifact", device=CudaDevice())
    tensors = load_file(folder / "cases.safetensors")
    found = []
    for name, program in executable.programs.items():

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
    print(f"{len(executable.programs)} functions, {len(found)} faults")
    return found


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
