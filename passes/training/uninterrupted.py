"""A few statements that Ctrl-C cannot cut in two."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Within it an interrupt waits, and is handled as ever once it is left. Only the main thread gets any."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    waiting: list[tuple[int, FrameType | None]] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: waiting.append((number, frame)))
    try:
        yield
    finally:
        # None is a handler that was not set from Python and cannot be set again from it.
        signal.signal(signal.SIGINT, signal.SIG_DFL if before is None else before)
    if waiting and callable(before):
        before(*waiting[-1])
