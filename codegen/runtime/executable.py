"""An opened artifact: call it with tensors, or generate text with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from planish.codegen.runtime.device import Device, LocalDevice
from planish.codegen.runtime.errors import input_error
from planish.codegen.runtime.machine import check_features
from planish.codegen.runtime.manifest import KERNELS, WEIGHTS, read_manifest
from planish.codegen.runtime.program import Program


class Executable:
    """A compiled module ready to run.

    Attributes:
        manifest: the artifact's manifest.
        programs: its functions by name.
        device: where it runs.
    """

    def __init__(
        self, folder: Path, manifest: dict[str, Any], device: Device, *, threads: int | None = None, keep: Any = None
    ) -> None:
        if manifest["target"]["device"] != device.kind:
            raise input_error(
                f"this artifact was compiled for {manifest['target']['name']} and cannot run on a device of the kind "
                f"{device.kind!r}: compile the model again for that device"
            )
        check_features(manifest["target"]["features"], device.features())
        self.folder, self.manifest, self.device, self._keep = folder, manifest, device, keep
        find, weights = device.load(folder / KERNELS), device.weights(folder / WEIGHTS)
        # Ranges are what the trace assumed; programs over a part of a sequence are checked for their own sizes.
        traced = {symbol: (low, high) for symbol, low, high in manifest["metadata"].get("dim_ranges", ())}
        self.programs = {
            name: Program(name, device, find(name), signature, weights, traced if name in ("forward", "encode") else {})
            for name, signature in manifest["functions"].items()
        }
        device.set_threads(threads)

    def __call__(self, *tensors: Any, **named: Any) -> Any:
        """Call `forward` with tensors in order or by name; one result comes alone, several as a tuple.

        Tensors are torch tensors or numpy arrays; results are torch tensors if any of them is one, else numpy arrays.

        Raises:
            InputError: when the module has no `forward`, or the tensors do not fit it.
        """
        if "forward" not in self.programs:
            raise input_error(f"this artifact has no function 'forward'; it has {', '.join(self.programs)}")
        if tensors and named:
            raise input_error("give tensors in order or by name, not both")
        results = self.programs["forward"](named or tensors)
        return results[0] if len(results) == 1 else tuple(results)


def open_artifact(
    folder: str | Path,
    *,
    threads: int | None = None,
    keep: Any = None,
    check: bool = True,
    device: Device | None = None,
) -> Executable:
    """Open a saved artifact.

    Args:
        folder: the artifact.
        threads: how many threads compiled code uses at most; as many as there are cores when None. Fewer are used while
            other processes keep cores busy, which changes no bit of a result.
        keep: an object that must live as long as the executable.
        check: compare every file with its digest.
        device: where to run it; this process, or this machine's first GPU for an artifact for CUDA, when None.

    Raises:
        InputError: with one sentence, when it is no artifact, damaged, of another version or for another machine.
    """
    manifest = read_manifest(folder, check=check)
    kind: type[Executable] = Executable
    if {"prefill", "extend", "decode"} <= manifest["functions"].keys():
        from planish.codegen.runtime.language_model import LanguageModel

        kind = LanguageModel
        if "encode" in manifest["functions"]:
            from planish.codegen.runtime.encoder_decoder import EncoderDecoder

            kind = EncoderDecoder
    return kind(Path(folder), manifest, device or _own_device(manifest), threads=threads, keep=keep)


def _own_device(manifest: dict[str, Any]) -> Device:
    """Where this machine runs an artifact."""
    if manifest["target"]["device"] == "cuda":
        from planish.codegen.runtime.cuda import CudaDevice

        return CudaDevice()
    return LocalDevice()
