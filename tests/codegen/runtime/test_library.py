"""The thread pool of compiled code leaves the process as it was."""

from __future__ import annotations

import os

import pytest

from planish.codegen.runtime.device import LocalDevice
from planish.codegen.runtime.library import use_threads
from planish.ir import InputError


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system binds no threads")
@pytest.mark.parametrize("count", [1, 2])
def test_using_threads_leaves_the_calling_thread_on_all_its_cores(count: int) -> None:
    before = os.sched_getaffinity(0)
    use_threads(count)
    assert os.sched_getaffinity(0) == before


def test_no_thread_at_all_is_refused() -> None:
    with pytest.raises(InputError, match="at least one thread, not 0"):
        LocalDevice().set_threads(0)
