"""Calls at once on one wallet, against real server processes over one database."""

import asyncio
import json
import socket
import struct
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import asyncpg
import pytest

from tests.conftest import Cluster, People, Person
from tests.processes import Running, assert_books_are_clean, eventually, over

CALLS, AFFORDED = 200, 10


@pytest.fixture(scope="module")
async def server(
    cluster: Cluster, database_name: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Running]:
    """One `vanilla-saas serve` for the tests that need no other."""
    async with over(cluster, database_name, tmp_path_factory.mktemp("home")).serving("serve") as running:
        yield running


def request(script: dict[str, Any], **more: Any) -> dict[str, Any]:
    text = f"sandbox: {json.dumps(script)}"
    return {"model": "sandbox-small", "messages": [{"role": "user", "content": text}], **more}


async def call(session: aiohttp.ClientSession, url: str, person: Person, body: dict[str, Any]) -> tuple[int, Any]:
    """Status and the answer's JSON, or its text when it was streamed."""
    async with session.post(f"{url}/v1/chat/completions", json=body, headers=person.headers) as answer:
        return answer.status, await (answer.text() if body.get("stream") else answer.json())


def many() -> aiohttp.ClientSession:
    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))


@pytest.mark.parametrize("processes", [pytest.param(1, marks=pytest.mark.long), 3])
async def test_two_hundred_calls_at_once_on_a_wallet_that_affords_ten(
    processes: int, cluster: Cluster, database_name: str, tmp_path: Path, people: People
) -> None:
    person = await people.user()
    body = request({"completion_tokens": 40, "latency_ms": 1500}, max_tokens=40)
    installation = over(cluster, database_name, tmp_path)
    async with installation.serving("serve", "--processes", str(processes)) as running, many() as session:
        status, probe = await call(session, running.url, person, body)
        assert status == 200, probe
        await people.set_balance(person, AFFORDED * probe["usage"]["total_tokens"])
        answers = await asyncio.gather(*(call(session, running.url, person, body) for _ in range(CALLS)))
        assert await running.stop() == 0
    codes = Counter(answer["error"]["code"] if status != 200 else "answered" for status, answer in answers)
    assert codes == {"answered": AFFORDED, "insufficient_tokens": CALLS - AFFORDED}
    wallet = await people.wallet(person)
    assert (wallet["available_tokens"], wallet["reserved_tokens"], wallet["borrowed_tokens"]) == (0, 0, 0)
    await assert_books_are_clean(people.operator)


async def test_debt_is_at_most_the_excess_of_the_calls_in_flight_and_admits_nothing_further(
    server: Running, people: People
) -> None:
    in_flight, generated, limit = 8, 90, 20
    over_limit = {"completion_tokens": generated, "ignore_max_tokens": True, "latency_ms": 700}
    person = await people.user()
    async with many() as session:
        _, probe = await call(session, server.url, person, request(over_limit, max_tokens=limit))
        reserved = probe["usage"]["prompt_tokens"] + limit
        await people.set_balance(person, in_flight * reserved)
        bodies = [request(over_limit, max_tokens=limit, stream=bool(n % 2)) for n in range(60)]
        answers = await asyncio.gather(*(call(session, server.url, person, body) for body in bodies))
        statuses = Counter(status for status, _ in answers)
        assert statuses == {200: in_flight, 402: 60 - in_flight}
        wallet = await people.wallet(person)
        assert wallet["available_tokens"] == wallet["reserved_tokens"] == 0
        assert wallet["borrowed_tokens"] == in_flight * (generated - limit)
        status, refused = await call(session, server.url, person, request({"completion_tokens": 1}, max_tokens=1))
    assert (status, refused["error"]["code"]) == (402, "insufficient_tokens")
    assert refused["error"]["borrowed"] == wallet["borrowed_tokens"]
    await assert_books_are_clean(people.operator)


async def test_streams_whose_provider_dies_cost_what_was_delivered(server: Running, people: People) -> None:
    person = await people.user(balance=100_000)
    body = request({"completion_tokens": 30, "error_after_chunks": 7}, max_tokens=30, stream=True)
    async with many() as session:
        answers = await asyncio.gather(*(call(session, server.url, person, body) for _ in range(40)))
    for status, text in answers:
        assert status == 200
        assert '"code":"provider_connection"' in text
        assert "[DONE]" not in text
    rows = await executions(people, person)
    assert [(row["status"], row["output_tokens"]) for row in rows] == [("failed", 7)] * 40
    await assert_charged(people, person, 100_000)


async def executions(people: People, person: Person) -> list[asyncpg.Record]:
    return await people.operator.fetch("select * from ai_executions where user_id = $1", person.identity.user_id)


async def assert_charged(people: People, person: Person, before: int) -> None:
    """The wallet lacks what its executions say, holds nothing and owes nothing."""
    charged = sum(row["charged_tokens"] for row in await executions(people, person))
    wallet = await people.wallet(person)
    found = (wallet["available_tokens"], wallet["reserved_tokens"], wallet["borrowed_tokens"])
    assert found == (before - charged, 0, 0)
    await assert_books_are_clean(people.operator)


def connect(server: Running, person: Person, body: dict[str, Any]) -> socket.socket:
    """A request on a raw socket."""
    parts = urlsplit(server.url)
    data = json.dumps(body).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {person.key}\r\n"
    plain = socket.create_connection((parts.hostname, parts.port), timeout=20)
    plain.sendall(f"{head}content-length: {len(data)}\r\n\r\n".encode() + data)
    return plain


def leave(plain: socket.socket, how: str) -> None:
    if how == "reset":
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    elif how == "half":
        plain.shutdown(socket.SHUT_WR)
        while plain.recv(65536):
            pass
    plain.close()


@pytest.mark.parametrize("how", ["close", "reset", "half"])
async def test_a_client_that_leaves_a_stream_pays_for_what_was_generated(
    how: str, server: Running, people: People
) -> None:
    person = await people.user(balance=100_000)
    body = request({"completion_tokens": 3000, "chunk_latency_ms": 10}, max_tokens=3000, stream=True)

    def read_a_little_and_leave() -> None:
        plain = connect(server, person, body)
        received = b""
        while received.count(b"data: ") < 5:
            received += plain.recv(4096)
        leave(plain, how)

    await asyncio.gather(*(asyncio.to_thread(read_a_little_and_leave) for _ in range(4)))
    rows = await eventually(lambda: all_of(4, people, person))
    assert {(row["status"], row["error_code"]) for row in rows} == {("cancelled", "client_disconnected")}
    assert all(0 < row["output_tokens"] < 2000 for row in rows)
    await assert_charged(people, person, 100_000)


async def all_of(count: int, people: People, person: Person) -> list[asyncpg.Record]:
    """The executions once there are so many and nothing is held."""
    rows = await executions(people, person)
    return rows if len(rows) >= count and not (await people.wallet(person))["reserved_tokens"] else []


@pytest.mark.parametrize("how", ["close", "reset"])
async def test_a_client_that_leaves_before_the_first_byte_of_a_stream_is_settled(
    how: str, server: Running, people: People
) -> None:
    person = await people.user(balance=5000)
    body = request({"completion_tokens": 50, "latency_ms": 400}, max_tokens=50, stream=True)
    plain = connect(server, person, body)
    await eventually(lambda: held(people, person))
    leave(plain, how)
    (row,) = await eventually(lambda: all_of(1, people, person))
    assert (row["status"], row["error_code"]) == ("cancelled", "client_disconnected")
    await assert_charged(people, person, 5000)


async def held(people: People, person: Person) -> bool:
    return bool((await people.wallet(person))["reserved_tokens"])


@pytest.mark.parametrize("how", ["close", "reset"])
async def test_a_client_that_leaves_a_plain_call_is_charged_the_answer_that_was_made(
    how: str, server: Running, people: People
) -> None:
    person = await people.user(balance=5000)
    plain = connect(server, person, request({"completion_tokens": 33, "latency_ms": 400}, max_tokens=100))
    await eventually(lambda: held(people, person))
    leave(plain, how)
    (row,) = await eventually(lambda: all_of(1, people, person))
    assert (row["status"], row["output_tokens"], row["usage_estimated"]) == ("succeeded", 33, False)
    await assert_charged(people, person, 5000)
