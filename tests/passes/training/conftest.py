"""All of it runs in one thread."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from planish.testing.training import one_thread


@pytest.fixture(autouse=True)
def in_one_thread() -> Iterator[None]:
    with one_thread():
        yield
