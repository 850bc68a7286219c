"""Devices that a user names, and what is said of those that are not there."""

from __future__ import annotations

import socket

import pytest

from planish.codegen.remote import connect
from planish.ir import InputError


@pytest.mark.parametrize("text", ["", "rpc", "rpc:here", "rpc::9090", "rpc:host:port", "usb:0", "host:9090"])
def test_what_names_no_device(text: str) -> None:
    with pytest.raises(InputError) as caught:
        connect(text)
    assert str(caught.value) == f"{text!r} names no device; write rpc:HOST:PORT, or rpc:HOST:PORT/KEY"


def test_a_device_that_does_not_answer() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(InputError, match=rf"the device 127\.0\.0\.1:{port} cannot be reached: .*try again"):
        connect(f"rpc:127.0.0.1:{port}")
