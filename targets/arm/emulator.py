"""An Arm machine without one: qemu's user-mode emulation runs Python and TVM's own RPC server.

`install` puts a small 64-bit Arm system together from Debian's packages and from wheels; it needs Debian or a child of
it, and qemu-user. `Emulator` starts the server there, and `codegen/remote.py` speaks to it as to any other machine.
What runs is the artifact's real code; how long it takes says nothing.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Self

from planish.codegen.remote import RemoteDevice
from planish.ir import InputError
from planish.targets.arm.processors import BASELINE

ROOT = Path(sys.prefix) / "arm-emulator"
PROCESSORS = {"neoverse-n1": BASELINE, "max": BASELINE | {"i8mm", "bf16", "sve2"}}
"""Processors that qemu emulates, with what planish may use of them."""

_PYTHON = "3.11"
_PACKAGES = (
    "python3.11-minimal libpython3.11-minimal libpython3.11-stdlib libc6 libstdc++6 libgcc-s1 zlib1g libexpat1 libssl3 "
    "libffi8 libbz2-1.0 liblzma5"
).split()
_WHEELS = (
    "apache-tvm",
    "apache-tvm-ffi",
    "numpy",
    "ml_dtypes",
    "typing_extensions",
    "psutil",
    "cloudpickle",
    "tornado",
)
_PLATFORMS = ("manylinux_2_28_aarch64", "manylinux_2_17_aarch64", "manylinux2014_aarch64")
_SERVER = """
import sys
from tvm.rpc.server import PopenRPCServerState
state = PopenRPCServerState("127.0.0.1", 9190, 9990, silent=True)
print(state.port, flush=True)
state.thread.join()
"""


def missing() -> str:
    """Why there is no emulated machine here, in one clause; "" when there is one."""
    if shutil.which("qemu-aarch64") is None:
        return "qemu-aarch64 is not installed (on Debian: apt-get install qemu-user)"
    if not (ROOT / "ready").is_file():
        return "the emulated system is not set up (python -m planish.targets.arm.emulator)"
    return ""


def install(root: Path = ROOT) -> None:
    """Download and unpack the emulated system, once; a folder that is there is replaced only when all went well.

    Raises:
        InputError: with the step that failed.
    """
    if (root / "ready").is_file():
        return
    for tool in ("apt-get", "dpkg-deb"):
        if shutil.which(tool) is None:
            raise InputError(f"the emulated Arm system is made of Debian's packages, and this machine has no {tool}")
    fresh = root.with_name(root.name + ".partial")
    shutil.rmtree(fresh, ignore_errors=True)
    for name in ("packages", "lists/partial", "cache/archives/partial", "system", "site", "wheels"):
        (fresh / name).mkdir(parents=True)
    _system(fresh)
    _site(fresh)
    for name in ("packages", "lists", "cache", "wheels"):
        shutil.rmtree(fresh / name)
    (fresh / "ready").touch()
    shutil.rmtree(root, ignore_errors=True)
    fresh.rename(root)


def _system(fresh: Path) -> None:
    # Lists of its own, so that this machine's packages are left as they are.
    options = [
        "APT::Architecture=arm64", "APT::Architectures=arm64", f"Dir::State::Lists={fresh / 'lists'}",
        f"Dir::Cache={fresh / 'cache'}", "APT::Sandbox::User=",
    ]  # fmt: skip
    apt = ["apt-get", "-qq", *(word for option in options for word in ("-o", option))]
    _run([*apt, "update"], fresh)
    _run([*apt, "download", *_PACKAGES], fresh / "packages")
    for package in sorted((fresh / "packages").iterdir()):
        _run(["dpkg-deb", "-x", str(package), str(fresh / "system")], fresh)


def _site(fresh: Path) -> None:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    for platform in _PLATFORMS:
        command += ["--platform", platform]
    pinned = [f"{name}=={version(name)}" for name in _WHEELS]
    _run([*command, "--python-version", _PYTHON, "--dest", str(fresh / "wheels"), *pinned], fresh)
    for wheel in sorted((fresh / "wheels").iterdir()):
        with zipfile.ZipFile(wheel) as content:
            content.extractall(fresh / "site")


def _run(command: Sequence[str], folder: Path) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines() or [f"exit code {done.returncode}"]
        raise InputError(f"the emulated Arm system cannot be set up: {' '.join(command[:2])} says: {lines[-1]}")


def python(processor: str, libraries: Path | None = None) -> tuple[list[str], dict[str, str]]:
    """What runs the emulated system's Python: a command, which takes Python's arguments, and its environment.

    `libraries` is a folder of libraries by names that the system lacks.
    """
    system = ROOT / "system"
    command = ["qemu-aarch64", "-cpu", processor, "-L", str(system)]
    if libraries is not None:
        command += ["-E", f"LD_LIBRARY_PATH={libraries}"]
    environment = {
        "PYTHONHOME": str(system / "usr"), "PYTHONPATH": str(ROOT / "site"), "TVM_USE_RUNTIME_LIB": "1",
        "TVM_NUM_THREADS": "2", "PATH": os.environ.get("PATH", ""), "HOME": str(ROOT),
    }  # fmt: skip
    return [*command, str(system / f"usr/bin/python{_PYTHON}")], environment


class Emulator:
    """An emulated Arm machine with a running RPC server, while the `with` block lasts.

    Args:
        processor: a key of `PROCESSORS`.
        libraries: as for `python`.

    Raises:
        InputError: when it is not set up, or does not start.
    """

    def __init__(self, processor: str = "max", libraries: Path | None = None) -> None:
        if reason := missing():
            raise InputError(f"there is no emulated Arm machine: {reason}")
        self.processor, self._libraries = processor, libraries

    def __enter__(self) -> Self:
        command, environment = python(self.processor, self._libraries)
        self._process = subprocess.Popen(
            [*command, "-c", _SERVER], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
            start_new_session=True,
        )  # fmt: skip
        assert self._process.stdout is not None and self._process.stderr is not None
        line = self._process.stdout.readline().strip()
        if not line.isdigit():
            complaint = self._process.stderr.read().strip().splitlines() or ["it says nothing"]
            self.__exit__(None, None, None)
            raise InputError(f"the emulated Arm machine does not start: {complaint[-1]}")
        self.port = int(line)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # The server forks for each connection: the whole group goes.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, 9)
        self._process.wait()

    def connect(self) -> RemoteDevice:
        """A new connection to it."""
        return RemoteDevice("127.0.0.1", self.port, features=PROCESSORS[self.processor])


if __name__ == "__main__":
    try:
        install()
    except InputError as error:
        sys.exit(f"error: {error}")
