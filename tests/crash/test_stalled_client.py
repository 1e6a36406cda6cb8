"""Clients that stop reading or sending without leaving: they keep no place, and what they used is charged."""

import asyncio
import contextlib
import json
import socket
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import pytest

from tests.conftest import Cluster, People, Person, serve, settings_for
from tests.processes import assert_books_are_clean, eventually
from vanilla_saas.app import create_app
from vanilla_saas.providers import gateway, metering


def stalled(url: str, person: Person, body: dict[str, Any]) -> socket.socket:
    """A connection that sends a request and reads nothing, with the smallest window there is."""
    parts = urlsplit(url)
    plain = socket.socket()
    plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
    plain.connect((parts.hostname, parts.port))
    data = json.dumps(body).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {person.key}\r\n"
    plain.sendall(f"{head}content-length: {len(data)}\r\n\r\n".encode() + data)
    return plain


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_does_not_read_is_charged_and_keeps_no_place(
    stream: bool,
    cluster: Cluster,
    database_name: str,
    tmp_path: Path,
    people: People,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(metering, "CALL_SECONDS", 2.0)
    monkeypatch.setattr(metering, "STALL_S", 0.2)
    person = await people.user(balance=1_000_000)
    script = {"completion_tokens": 1_000_000 if not stream else 100_000, "ignore_max_tokens": True}
    body = {"model": "sandbox-small", "max_tokens": 1000, "stream": stream}
    body["messages"] = [{"role": "user", "content": f"sandbox: {json.dumps(script)}"}]
    settings = settings_for(cluster, database_name, tmp_path, max_running_calls=1)
    async with serve(create_app(settings)) as url, aiohttp.ClientSession() as session:
        with contextlib.closing(stalled(url, person, body)):

            async def execution() -> Any:
                statement = "select * from ai_executions where user_id = $1"
                return await people.operator.fetchrow(statement, person.identity.user_id)

            row = await eventually(execution)
            if stream:
                # the second on a machine so slow that the client's buffers were not full by the deadline
                ended = {("cancelled", "client_disconnected"), ("failed", "upstream_timeout")}
                assert (row["status"], row["error_code"]) in ended
                assert 0 < row["output_tokens"] < 100_000
            else:
                assert (row["status"], row["output_tokens"]) == ("succeeded", 1_000_000)
            await people.set_balance(person, 1000)
            small = {**body, "stream": False, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 5}

            async def admitted() -> bool:
                async with session.post(f"{url}/v1/chat/completions", json=small, headers=person.headers) as answer:
                    assert answer.status in (200, 429), await answer.text()
                    return answer.status == 200

            await eventually(admitted, 5)
    assert (await people.wallet(person))["reserved_tokens"] == 0
    await assert_books_are_clean(people.operator)


async def test_a_client_that_sends_slowly_keeps_no_place_and_is_refused_in_time(
    cluster: Cluster, database_name: str, tmp_path: Path, people: People, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gateway, "BODY_SECONDS", 2.0)
    person = await people.user(balance=1000)
    body = {"model": "sandbox-small", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 5}
    settings = settings_for(cluster, database_name, tmp_path, max_running_calls=1)
    async with serve(create_app(settings)) as url, aiohttp.ClientSession() as session:
        parts = urlsplit(url)
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
        with contextlib.closing(writer):
            writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer vsk_nobody\r\n")
            writer.write(b"content-length: 100\r\n\r\n{")
            await writer.drain()
            async with session.post(f"{url}/v1/chat/completions", json=body, headers=person.headers) as answer:
                assert answer.status == 200, await answer.text()
            async with asyncio.timeout(20):
                assert b" 400 " in await reader.readline()
                assert b"did not arrive within 2 s" in await reader.readuntil(b"}}")
