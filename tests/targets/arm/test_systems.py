"""Linux, Android and iOS: each library is linked without a compiler and is what its system loads; Android's is run."""

from __future__ import annotations

import importlib.util
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from planish.codegen.build import build
from planish.codegen.runtime.executable import open_artifact
from planish.ir import InputError, Module, TensorType
from planish.ir.ops import Slot, aten
from planish.passes.derive_programs import DerivePrograms
from planish.passes.pass_base import Context
from planish.targets import open_target
from planish.targets.arm.emulator import ROOT, Emulator
from planish.targets.arm.link import SYSTEMS
from planish.testing.compiled import call, compiled, faults, one_call
from planish.testing.emulated import needs_arm
from planish.testing.kernel_cases import INTEGERS, module_of
from planish.testing.tiny_decoder import tiny_decoder

needs_ziglang = pytest.mark.skipif(importlib.util.find_spec("ziglang") is None, reason="ziglang is not installed")
PROMPT, NEW_TOKENS = [1, 5, 3], 12

ELF, SHARED_OBJECT, AARCH64 = b"\x7fELF\x02\x01\x01", 3, 183
MACH_O, DYLIB, ARM64, BUILD_VERSION, ID_DYLIB, IOS = 0xFEEDFACF, 6, 0x0100000C, 0x32, 0xD, 2


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to write to, on a machine without programs."""
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    return tmp_path


def _saved(module: Module, target: str, folder: Path) -> tuple[dict[str, Any], bytes]:
    """The manifest and the library of an artifact."""
    artifact = build(module, open_target(target))
    return dict(artifact.manifest), (artifact.save(folder / "artifact") / "kernels.so").read_bytes()


def _negation() -> Module:
    call = aten("neg.default", Slot(0))
    return Module({"forward": one_call("forward", call, [TensorType(torch.float32, (3,))])})


def _commands(library: bytes) -> Iterator[tuple[int, bytes]]:
    """The load commands of a Mach-O file: kinds and contents."""
    (count,), offset = struct.unpack_from("<I", library, 16), 32
    for _ in range(count):
        kind, size = struct.unpack_from("<II", library, offset)
        yield kind, library[offset : offset + size]
        offset += size


@needs_ziglang
@pytest.mark.parametrize(("detail", "name"), [("cortex-a76", "arm:cortex-a76"), ("android", "arm:android/generic")])
def test_elf_without_a_compiler(detail: str, name: str, bare: Path) -> None:
    manifest, library = _saved(_negation(), f"arm:{detail}", bare)
    assert manifest["target"]["name"] == name
    assert library.startswith(ELF)
    assert struct.unpack_from("<HH", library, 16) == (SHARED_OBJECT, AARCH64)
    # Bionic looks symbols up in the libraries that are named and in no others.
    assert (b"\0libm.so\0" in library) == detail.startswith("android")


@needs_ziglang
def test_mach_o_without_a_compiler(bare: Path) -> None:
    manifest, library = _saved(_negation(), "arm:ios/apple-m2", bare)
    assert manifest["target"]["name"] == "arm:ios/apple-m2"
    magic, processor, _, kind = struct.unpack_from("<IIII", library)
    assert (magic, processor, kind) == (MACH_O, ARM64, DYLIB)
    assert b"_TVMFFIErrorSet" in library, "nothing is looked up when it is loaded"
    commands = dict(_commands(library))
    platform, least = struct.unpack_from("<II", commands[BUILD_VERSION], 8)
    assert (platform, least >> 16) == (IOS, 14)
    assert commands[ID_DYLIB][24:].rstrip(b"\0") == b"@rpath/kernels.so"


@pytest.mark.parametrize("name", sorted(SYSTEMS))
def test_a_system_alone_means_any_processor(name: str) -> None:
    alone, whole = open_target(f"arm:{name}"), open_target(f"arm:{name}/generic")
    assert alone.name == whole.name == ("arm:generic" if name == "linux" else f"arm:{name}/generic")
    assert str(alone.tvm_target().attrs["mtriple"]) == SYSTEMS[name].triple
    assert open_target(f"arm:{name}/cortex-x2+nosve2").features() == open_target("arm:cortex-x2+nosve2").features()


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("arm:andriod/cortex-a76", "there is no system 'andriod' for Arm; did you mean 'android'?"),
        ("arm:zephyr/generic", "there is no system 'zephyr' for Arm; known are linux, android, ios"),
        ("arm:andriod", "there is no Arm processor 'andriod'; did you mean 'android'?"),
        ("arm:ios/apple-m22", "there is no Arm processor 'apple-m22'; did you mean 'apple-m2'?"),
    ],
)
def test_unknown_names(text: str, sentence: str) -> None:
    with pytest.raises(InputError) as caught:
        open_target(text)
    assert str(caught.value) == sentence


@pytest.mark.parametrize("name", ["android", "ios"])
def test_no_linker(name: str, bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda *given: None)
    with pytest.raises(InputError) as caught:
        SYSTEMS[name].link([], bare / "kernels.so")
    advice = "`pip install ziglang`, or install lld"
    assert str(caught.value) == f"kernels.so cannot be linked: no linker was found; {advice}"


def _decoder() -> Module:
    return DerivePrograms().apply(tiny_decoder(), Context()).module


@pytest.fixture(scope="module")
def android(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Emulator]:
    """An emulated machine on which the C library's parts have the names that Android has for them."""
    folder = tmp_path_factory.mktemp("android")
    (folder / "libm.so").symlink_to(ROOT / "system/lib/aarch64-linux-gnu/libm.so.6")
    with Emulator("neoverse-n1", folder) as emulator:
        yield emulator


class TestAndroid:
    """What is linked for Android, run on an emulated processor under another system."""

    pytestmark: ClassVar[Any] = [*needs_arm, needs_ziglang]

    def test_a_language_model(self, android: Emulator, tmp_path: Path) -> None:
        module = _decoder()
        host: Any = compiled(module)
        folder = build(module, open_target("arm:android")).save(tmp_path / "artifact")
        program: Any = open_artifact(folder, device=android.connect())
        options: dict[str, Any] = {"max_new_tokens": NEW_TOKENS, "stop_tokens": ()}
        assert program.generate_ids(PROMPT, **options) == host.generate_ids(PROMPT, **options)
        inputs = [torch.tensor([PROMPT]), torch.ones(1, len(PROMPT), dtype=torch.bool)]
        assert not faults(module, "forward", inputs, call(program, "forward", inputs))

    def test_integers_have_the_bits_of_the_host(self, android: Emulator, tmp_path: Path) -> None:
        few = dict(list(INTEGERS.items())[:4])
        host = compiled(module_of(few))
        folder = build(module_of(few), open_target("arm:android")).save(tmp_path / "artifact")
        program = open_artifact(folder, device=android.connect())
        for number, (name, case) in enumerate(few.items()):
            inputs = case.inputs(number)
            for got, want in zip(call(program, name, inputs), call(host, name, inputs), strict=True):
                assert torch.equal(got, want), name
