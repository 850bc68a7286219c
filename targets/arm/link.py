"""The systems that 64-bit Arm processors run, and linking for each from any machine.

ziglang links for all of them and needs no compiler; LLVM's linkers and a system's own tools are taken where they are found.
"""

from __future__ import annotations

import importlib.util
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from planish.ir import InputError
from planish.targets.arm.processors import nearest
from planish.targets.linker import link_with

_GNU = "aarch64-linux-gnu"
_IOS_VERSION = "14.0"

# What linkers themselves refer to in iOS's own library; all else is looked up when the library is loaded.
_LIBSYSTEM = """--- !tapi-tbd
tbd-version: 4
targets: [ arm64-ios ]
install-name: '/usr/lib/libSystem.B.dylib'
exports:
  - targets: [ arm64-ios ]
    symbols: [ dyld_stub_binder ]
...
"""


@dataclass(frozen=True)
class System:
    """One operating system as a target.

    Attributes:
        name: as the user writes it.
        triple: LLVM's name of it, with the processor's architecture.
        link: links objects into a shared library; raises InputError when there is no linker for it, or with the last
            one's complaint.
    """

    name: str
    triple: str
    link: Callable[[Sequence[Path], Path], None]


def _zig(target: str) -> Iterator[list[str]]:
    if importlib.util.find_spec("ziglang") is not None:
        yield [sys.executable, "-m", "ziglang", "cc", "-target", target, "-shared"]


def _linux_linkers() -> Iterator[list[str]]:
    names = [f"{_GNU}-gcc", f"{_GNU}-g++"]
    if platform.machine() == "aarch64" and platform.system() == "Linux":
        names += ["cc", "gcc"]
    for name in names:
        if found := shutil.which(name):
            yield [found, "-shared", "-fPIC"]
    if found := shutil.which("ld.lld"):
        yield [found, "-shared"]
    # The oldest C library whose phones and servers are still in use.
    yield from ([*command, "-fPIC"] for command in _zig(f"{_GNU}.2.28"))


def _link_linux(objects: Sequence[Path], library: Path) -> None:
    link_with(_linux_linkers(), objects, library, f"`pip install ziglang`, or install gcc-{_GNU}")


def _android_linkers(soname: str) -> Iterator[list[str]]:
    options = ["--allow-shlib-undefined", "--no-as-needed", f"-soname={soname}"]
    if found := shutil.which("ld.lld"):
        yield [found, "-shared", *options]
    yield from ([*command, "-nostdlib", f"-Wl,{','.join(options)}"] for command in _zig("aarch64-linux-android"))


def _link_android(objects: Sequence[Path], library: Path) -> None:
    advice = "`pip install ziglang`, or install lld"
    with tempfile.TemporaryDirectory() as folder:
        # Android finds memcpy and expf only in libraries that this one names: libm, which names libc. Whatever has libm's
        # name serves for stating it.
        stub = Path(folder) / library.name
        link_with(_android_linkers("libm.so"), objects, stub, advice)
        link_with(_android_linkers(library.name), [*objects, stub], library, advice)


def _ios_linkers(name: str, root: Path) -> Iterator[list[str]]:
    """`name` is the library's; `root` is a folder with a description of iOS's own library as `usr/lib/libSystem.tbd`."""
    options = ["-undefined", "dynamic_lookup", "-install_name", f"@rpath/{name}"]
    if found := shutil.which("xcrun"):
        minimum = f"-mios-version-min={_IOS_VERSION}"
        yield [found, "--sdk", "iphoneos", "clang", "-arch", "arm64", minimum, "-dynamiclib", *options]
    if found := shutil.which("ld64.lld"):
        yield [found, "-arch", "arm64", "-platform_version", "ios", _IOS_VERSION, _IOS_VERSION, "-dylib", *options]
    for command in _zig(f"aarch64-ios.{_IOS_VERSION}"):
        # Before 0.17 zig searches the root for the description.
        yield [*command, "-nostdlib", "--sysroot", str(root), "-L/usr/lib", f"-Wl,{','.join(options)}"]


def _link_ios(objects: Sequence[Path], library: Path) -> None:
    advice = "`pip install ziglang`, or install lld"
    with tempfile.TemporaryDirectory() as folder:
        # Since 0.17 zig brings a libSystem.tbd, which is macOS's; of two for one library it takes the first by file name.
        first, searched = Path(folder, "iOS.tbd"), Path(folder, "usr", "lib", "libSystem.tbd")
        searched.parent.mkdir(parents=True)
        for description in (first, searched):
            description.write_text(_LIBSYSTEM, encoding="utf-8")
        link_with(_ios_linkers(library.name, Path(folder)), [*objects, first], library, advice)


SYSTEMS = {
    s.name: s
    for s in (
        System("linux", _GNU, _link_linux),
        System("android", "aarch64-linux-android", _link_android),
        System("ios", f"arm64-apple-ios{_IOS_VERSION}", _link_ios),
    )
}
"""By name, the one that is meant when none is named first."""


def find_system(name: str) -> System:
    """The system that a user names.

    Raises:
        InputError: for an unknown one, with the nearest known one.
    """
    if name not in SYSTEMS:
        raise InputError(f"there is no system {name!r} for Arm; {nearest(name, SYSTEMS)}")
    return SYSTEMS[name]
