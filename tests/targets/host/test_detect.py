"""What a machine is said to be, from texts of ``/proc/cpuinfo``, and what is compiled for it."""

from __future__ import annotations

import pytest
from tvm.target import codegen as llvm

from planish.targets.host.detect import HostCpu, detect_host, read_cpuinfo
from planish.targets.host.float_tiles import AVX2, AVX512
from planish.targets.host.int8_tiles import AVX2_PAIRS, AVX512_PAIRS, AVX512_VNNI, AVX_VNNI, INT8_TILES


def cpuinfo(*cpus: tuple[int, int, str]) -> str:
    """The text for logical CPUs given as (number, core, flags)."""
    return "\n\n".join(
        f"processor\t: {number}\nmodel name\t: Example 9000\nphysical id\t: 0\ncore id\t\t: {core}\n"
        f"flags\t\t: fpu {flags}\npower management:"
        for number, core, flags in cpus
    )


def test_flags_become_features_and_siblings_one_core() -> None:
    text = cpuinfo(*((number, number // 2, "avx2 fma f16c avx512f avx512_vnni") for number in range(4)))
    cpu = read_cpuinfo(text, "znver4", {0, 1, 2, 3})
    assert cpu.model == "Example 9000" and cpu.llvm_name == "znver4" and cpu.cores == 2
    assert cpu.features == {"fpu", "avx2", "fma", "f16c", "avx512f", "avx512vnni"}


def test_only_cores_this_process_may_use_count() -> None:
    text = cpuinfo((0, 0, "avx2"), (1, 1, "avx2"), (2, 2, "avx2"))
    assert read_cpuinfo(text, "znver4", {2}).cores == 1


@pytest.mark.parametrize(
    "features, int8, floats",
    [
        ("avx2 fma f16c avx512f avx512bw avx512vnni avxvnni", AVX512_VNNI, AVX512),
        ("avx2 fma f16c avx512f avx512bw", AVX512_PAIRS, AVX512),
        ("avx2 fma f16c avxvnni", AVX_VNNI, AVX2),
        ("avx2 fma f16c", AVX2_PAIRS, AVX2),
    ],
)
def test_the_widest_tile_that_fits(features: str, int8: object, floats: object) -> None:
    cpu = HostCpu("Example", "znver5", frozenset(features.split()), 2)
    assert cpu.int8_tile is int8 and cpu.float_tile is floats


def test_a_processor_without_avx2_is_refused() -> None:
    cpu = HostCpu("Example 1000", "nehalem", frozenset({"fma", "f16c"}), 2)
    with pytest.raises(RuntimeError, match="cannot run on Example 1000: it lacks avx2; use an x86-64 processor"):
        _ = cpu.int8_tile


@pytest.mark.parametrize("tile", INT8_TILES, ids=lambda tile: tile.name)
@pytest.mark.parametrize("name", ["x86-64", "haswell", "alderlake", "znver5"])
def test_the_compilation_target_has_the_features_and_no_wider_ones(name: str, tile: object) -> None:
    assert tile in INT8_TILES
    features = INT8_TILES[INT8_TILES.index(tile)].features  # type: ignore[arg-type]
    target = HostCpu("Example", name, features, 2).tvm_target()
    for feature in ("avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512vnni", "avxvnni"):
        implied = feature in ("avx2", "fma", "f16c") and any(f.startswith("avx") for f in features)
        assert bool(llvm.target_has_features(feature, target)) == (feature in features or implied)


def test_this_machine() -> None:
    cpu = detect_host()
    assert cpu.cores >= 1 and cpu.int8_tile.features <= cpu.features
    assert llvm.target_has_features(sorted(cpu.int8_tile.features), cpu.tvm_target())
    lesser = cpu.restricted_to(AVX2_PAIRS.features)
    assert lesser.int8_tile is AVX2_PAIRS and lesser.cores == cpu.cores
