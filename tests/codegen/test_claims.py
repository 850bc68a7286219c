"""The loop over tasks: each is run once by any number of threads, and none waits for a thread that is held up."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
import torch
from tvm.tirx.script import builder as T

from planish.codegen.claims import PORTIONS
from planish.codegen.kernel_passes import compile_kernels
from planish.codegen.kernels import emit
from planish.codegen.runtime.library import use_threads
from planish.codegen.runtime.machine import usable_cores
from planish.targets.host.detect import detect_host

EXTENTS = (0, 1, 2, PORTIONS - 1, PORTIONS, PORTIONS + 1, 2 * PORTIONS + 7, 10007)
PATIENCE, NAP_MICROSECONDS = 100_000, 100


@pytest.fixture(autouse=True)
def _threads_as_before() -> Iterator[None]:
    yield
    use_threads(usable_cores())


@cache
def _counting() -> Any:
    """The kernel ``(y (n,) int32)``: y gains one in every task."""

    def body() -> None:
        extent = emit.symbol("n")
        y = emit.argument("y", (extent,), "int32")
        with emit.tasks("task", extent) as task:
            T.buffer_store(y, y[task] + 1, [task])

    return _compiled("counting", body)


@cache
def _waiting() -> Any:
    """The kernel ``(done (n,) int32, seen (1,) int32)``: the first task waits for the others and counts those it saw."""

    def body() -> None:
        extent = emit.symbol("n")
        done, seen = emit.argument("done", (extent,), "int32"), emit.argument("seen", (1,), "int32")
        with emit.tasks("task", extent) as task:
            naps = emit.scratch("naps", 1, "int32")

            def wait() -> None:
                T.buffer_store(naps, T.int32(0), [0])
                with T.While(T.And(seen[0] < T.cast(extent, "int32") - 1, naps[0] < PATIENCE)):
                    T.evaluate(T.call_extern("int32", "usleep", T.int32(NAP_MICROSECONDS)))
                    T.buffer_store(naps, naps[0] + 1, [0])
                    T.buffer_store(seen, T.int32(0), [0])
                    with emit.loop("other", extent) as other:
                        T.buffer_store(seen, seen[0] + done[other], [0])

            emit.branch(task == 0, wait, lambda: T.buffer_store(done, T.int32(1), [task]))

    return _compiled("waiting", body)


def _compiled(name: str, body: Any) -> Any:
    return compile_kernels(emit.prim_func(name, body), detect_host().tvm_target())[name]


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_every_task_is_run_once(threads: int) -> None:
    use_threads(threads)
    for extent in EXTENTS:
        y = torch.zeros(extent, dtype=torch.int32)
        for _ in range(5):
            _counting()(y)
        assert torch.equal(y, torch.full_like(y, 5)), extent


@pytest.mark.skipif(usable_cores() < 2, reason="one core: there is no second thread")
def test_a_thread_that_is_held_up_holds_up_no_task_but_its_own() -> None:
    use_threads(2)
    done, seen = torch.zeros(PORTIONS, dtype=torch.int32), torch.zeros(1, dtype=torch.int32)
    _waiting()(done, seen)
    assert seen.item() == PORTIONS - 1
