"""The target `host` where planish itself runs on a 64-bit Arm processor, told by what such a machine says of itself."""

from __future__ import annotations

import os
import platform
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from tvm.target import codegen as llvm

from planish.codegen.build import build
from planish.codegen.kernel_passes import compile_kernels
from planish.codegen.kernels import peaks
from planish.codegen.runtime.machine import read_features
from planish.ir import UnsupportedError
from planish.passes.derive_programs import DerivePrograms
from planish.passes.pass_base import Context
from planish.targets import open_target
from planish.targets.arm.float_tiles import NEON
from planish.targets.arm.int8_tiles import SDOT, SMMLA
from planish.targets.host import detect, target
from planish.targets.host.detect import read_cpuinfo
from planish.targets.host.measured import Speeds
from planish.testing.tiny_decoder import tiny_decoder

COMMON = "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm"
NEOVERSE_N1 = f"{COMMON} lrcpc dcpop asimddp ssbs"
NEOVERSE_V1 = f"{COMMON} jscvt fcma lrcpc dcpop sha3 asimddp sha512 sve asimdfhm i8mm bf16 rng"
CORES = 4


def cpuinfo(flags: str) -> str:
    """The text of Linux on such a processor, which has no model name and no core ids."""
    blocks = [f"processor\t: {n}\nBogoMIPS\t: 243.75\nFeatures\t: {flags}\nCPU part\t: 0xd0c\n" for n in range(CORES)]
    return "\n".join(blocks)


def pretend(patch: pytest.MonkeyPatch, folder: Path, name: str, flags: str) -> None:
    """Make this machine say that it is a 64-bit Arm one with a processor of that name; three of its cores are ours."""
    (folder / "cpuinfo").write_text(cpuinfo(flags), encoding="utf-8")
    patch.setattr(detect, "CPUINFO", folder / "cpuinfo")
    patch.setattr(platform, "machine", lambda: "aarch64")
    patch.setattr(llvm, "llvm_get_system_cpu", lambda: name)
    patch.setattr(os, "sched_getaffinity", lambda process: {0, 1, 3}, raising=False)
    patch.setattr(target, "speeds", lambda cpu: Speeds(1e10, 1e11, 2e11))


@pytest.mark.parametrize(
    ("name", "flags", "tile"),
    [("neoverse-n1", NEOVERSE_N1, SDOT), ("neoverse-v1", NEOVERSE_V1, SMMLA), ("generic", NEOVERSE_V1, SMMLA)],
)
def test_it_is_the_target(name: str, flags: str, tile: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, tmp_path, name, flags)
    host = open_target("host")
    assert host.float_tile is NEON and host.int8_tile is tile
    known = host.capabilities()
    assert (known.name, known.cores, known.vector_bits) == ("host", 3, 128)
    # What a loader on this machine will look for.
    assert {"neon", "dotprod"} <= host.features() <= read_features(cpuinfo(flags))
    assert ("i8mm" in host.features()) == (tile is SMMLA)
    assert str(host.tvm_target().attrs["mtriple"]) == "aarch64-linux-gnu"


def test_what_the_system_hides_is_not_compiled_for() -> None:
    """A kernel without SVE, on a processor that LLVM takes to have it."""
    flags = " ".join(f for f in NEOVERSE_V1.split() if f not in ("sve", "bf16"))
    cpu = read_cpuinfo(cpuinfo(flags), "neoverse-v1", set(range(CORES)), "aarch64")
    seen = set(map(str, llvm.llvm_get_cpu_features(cpu.tvm_target())))
    assert {"neon", "dotprod", "i8mm", "fullfp16"} <= seen
    assert not {"sve", "sve2", "bf16"} & seen


def test_a_processor_without_dot_products_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, tmp_path, "cortex-a72", COMMON)
    with pytest.raises(
        UnsupportedError, match="cannot run on cortex-a72: it lacks dotprod; use a 64-bit Arm processor"
    ):
        open_target("host")


@pytest.mark.full
def test_a_language_model_becomes_arm_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, tmp_path, "neoverse-n1", NEOVERSE_N1)
    host, machines = open_target("host"), list[int]()

    def link(objects: Sequence[Path], library: Path) -> None:
        machines.extend(struct.unpack_from("<H", path.read_bytes(), 18)[0] for path in objects)
        library.touch()

    monkeypatch.setattr(host, "link", link)
    artifact = build(DerivePrograms().apply(tiny_decoder(), Context()).module, host)
    artifact.save(tmp_path / "artifact")
    assert machines and set(machines) == {183}
    assert artifact.manifest["target"]["features"] == sorted(host.features())


def test_the_loops_that_measure_it_compile() -> None:
    cpu = read_cpuinfo(cpuinfo(NEOVERSE_V1), "neoverse-v1", set(range(CORES)), "aarch64")
    loops: list[Any] = [peaks.reading(NEON.lanes, 1 << 12, way) for way in peaks.READS]
    loops += [peaks.multiplying(NEON, 4, 8), *(peaks.summing_products(tile, 4, 2, 2) for tile in (SDOT, SMMLA))]
    for loop in loops:
        assert compile_kernels(loop, cpu.tvm_target()) is not None
