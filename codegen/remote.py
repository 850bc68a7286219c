"""A machine that runs TVM's RPC server, as a device: code, weights and states go there once, tokens and logits to and fro.

The server may be TVM's Python or C++ one; it needs TVM's runtime alone. Tensors cross as the server's own; what an RPC
cannot carry is made there: the bundle of weights with the runtime's tensor cache, and a result's parts taken one by one.
"""

from __future__ import annotations

import math
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from planish.codegen.runtime.device import Device
from planish.codegen.runtime.machine import read_features
from planish.codegen.runtime.sizes import TensorSpec
from planish.codegen.runtime.tensors import from_compiled, map_weights
from planish.ir import InputError

_CPU, _NAIVE = 1, 1
_ONE_CORE_PER_THREAD = 1


class RemoteDevice(Device):
    """A machine reached by TVM's RPC.

    Args:
        host, port: where its server listens.
        key: the server's key, "" when it has none.
        features: its processor's features in LLVM's spelling; asked of the machine when None.
    """

    def __init__(self, host: str, port: int, key: str = "", features: frozenset[str] | None = None) -> None:
        from tvm import rpc, runtime

        self.where = f"{host}:{port}"
        self._features, self._runtime = features, runtime
        with self._answering("cannot be reached"):
            self._session = rpc.connect(host, port, key=key, session_timeout=0)
            self._processor = self._session.cpu(0)
            names = ("ffi.ArrayGetItem", "vm.builtin.tensor_cache.update", "runtime.config_threadpool")
            self._item, self._keep, self._threads = map(self._session.get_function, names)

    @contextmanager
    def _answering(self, problem: str) -> Iterator[None]:
        """Turns whatever RPC raises into one sentence."""
        try:
            yield
        except InputError:
            raise
        except Exception as error:
            lines = str(error).strip().splitlines() or [type(error).__name__]
            raise InputError(
                f"the device {self.where} {problem}: {lines[-1].strip()}; see that its RPC server runs, and try again"
            ) from error

    def features(self) -> frozenset[str] | None:
        if self._features is not None:
            return self._features
        try:
            # Only Linux has it, and not every server hands out files.
            return read_features(bytes(self._session.download("/proc/cpuinfo")).decode()) or None
        except Exception:
            return None

    def load(self, library: Path) -> Callable[[str], Any]:
        with self._answering(f"cannot load {library}"):
            name = f"{uuid.uuid4().hex}.so"
            self._session.upload(str(library), name)
            machine = self._session.load_module(name)["vm_load_executable"]()
            machine["vm_initialization"](_CPU, 0, _NAIVE)

        def find(name: str) -> Any:
            with self._answering(f"has no function {name!r}"):
                return machine[name]

        return find

    def weights(self, path: Path) -> Mapping[str, Any]:
        prefix, names = uuid.uuid4().hex, {}
        with self._answering("takes no weights"):
            for key, tensor in map_weights(path).items():
                names[key] = f"{prefix}.{key}"
                self._keep(names[key], self._place(np.from_dlpack(tensor)), True)
        return names

    def bundle(self, tensors: Sequence[Any]) -> Any:
        with self._answering("takes no weights"):
            return self._session.get_function("vm.builtin.param_array_from_cache_by_name_unpacked")(*tensors)

    def _place(self, array: Any) -> Any:
        return self._runtime.tensor(np.asarray(array, order="C"), self._processor)

    def zeros(self, shape: tuple[int, ...], dtype: Any) -> Any:
        with self._answering(f"has no memory for {math.prod(shape)} elements"):
            return self._place(np.zeros(shape, dtype))

    def grown(self, state: Any, shape: tuple[int, ...]) -> Any:
        with self._answering("does not answer"):
            old = state.numpy()
            larger = np.zeros(shape, old.dtype)
            larger[tuple(slice(0, n) for n in old.shape)] = old
            return self._place(larger)

    def call(
        self, function: Any, arrays: Sequence[Any], states: Sequence[Any], weights: Any, results: int
    ) -> list[Any]:
        with self._answering("does not answer"):
            made = function(*map(self._place, arrays), *states, weights)
            return [self._item(made, number) for number in range(results)]

    def fetch(self, result: Any, type: TensorSpec, torch_wanted: bool) -> Any:
        with self._answering("does not answer"):
            return from_compiled(result.numpy(), type, torch_wanted)

    def set_threads(self, count: int | None) -> None:
        if count is not None and count < 1:
            raise InputError(f"compiled code needs at least one thread, not {count}")
        with self._answering("does not answer"):
            self._threads(_ONE_CORE_PER_THREAD, 0 if count is None else count)


def connect(text: str) -> RemoteDevice:
    """The device that a user names: `rpc:HOST:PORT`, or `rpc:HOST:PORT/KEY`.

    Raises:
        InputError: for another form, or when nothing answers there.
    """
    scheme, _, rest = text.partition(":")
    address, _, key = rest.partition("/")
    host, _, port = address.rpartition(":")
    if scheme != "rpc" or not host or not port.isdigit():
        raise InputError(f"{text!r} names no device; write rpc:HOST:PORT, or rpc:HOST:PORT/KEY")
    return RemoteDevice(host, int(port), key)
