"""A name server that changes its mind between the look at an address and the connection."""

import socket
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from vanilla_saas import outgoing

HOST = "rebinding.example"


@dataclass
class Rebinding:
    """What was asked for."""

    looked_up: list[str] = field(default_factory=list)
    checked: list[str] = field(default_factory=list)


@pytest.fixture
def rebinding(monkeypatch: pytest.MonkeyPatch) -> Iterator[Rebinding]:
    """HOST is a public address at the first look and ours at every later one."""
    asked = Rebinding()
    make = outgoing._public_socket

    def resolve(host: str, *_: Any, **__: Any) -> list[Any]:
        asked.looked_up.append(host)
        address = "1.1.1.1" if len(asked.looked_up) == 1 else "127.0.0.1"
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 9))]

    def checking(address: tuple[Any, ...]) -> socket.socket:
        asked.checked.append(address[4][0])
        if address[4][0] == "1.1.1.1":
            raise OSError("no tests go to the internet")
        return make(address)

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    monkeypatch.setattr(outgoing, "_public_socket", checking)
    yield asked
    assert set(asked.looked_up) == {HOST}
